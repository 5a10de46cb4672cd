"""The emulated host: a Debian root that serves every kernel, and an initramfs for each.

The root comes from mmdebstrap: QEMU, an SSH server, Python, and nothing of the kernel. What
depends on the kernel or on the run travels in the initramfs.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hostfault.case.model import HostImage, Kernel
from hostfault.image.initramfs import lay_out, pack
from hostfault.image.mend import mend
from hostfault.image.programs import seal
from hostfault.image.qemu import PROGRAM
from hostfault.kernel.fetch import KEYRING, explained, mirror
from hostfault.kernel.modules import modules_for, some_of
from hostfault.plumbing.cache import Cache, disk_usage, key_of
from hostfault.plumbing.errors import LaunchError, SetupError
from hostfault.plumbing.mmdebstrap import mmdebstrap
from hostfault.plumbing.packages import find_tool, run_tool
from hostfault.plumbing.project import IMAGES, read_list
from hostfault.plumbing.ssh_keys import Identity

log = logging.getLogger(__name__)

SUITE = "trixie"
HOST_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "pvpanic-pci")
BOCHS_MODULES = ("ata_piix", "sr_mod")  # of a machine in Bochs; its root is a CD
USEFUL_MODULES = ("loop", "tun", "vhost_net")  # what some case needs, and others do without
CPU_FLAGS = {"kvm-amd": "svm", "kvm-intel": "vmx"}  # what makes a CPU fit for a module
SCRATCH = 2 << 30  # bytes of the disk left free for the run; holes on our own disk
BUILD_PATIENCE = 1800.0  # seconds for mmdebstrap, on a slow network
BUILD_ROOM = 768 << 20  # bytes that mmdebstrap may need while it works; 420 MiB were seen
_FOLDERS = ("proc", "sys", "dev", "new", "payload")
_LAYOUT = "3"  # change it when this module makes the same recipe into something else


def host_image(cache: Cache) -> HostImage:
    """The root of the emulated host, made on first use.

    Raises :class:`CacheMissError` if there is none and the mirror cannot be reached.
    """
    key = key_of({"layout": _LAYOUT, "suite": SUITE, "mirror": mirror(), "recipe": _root_recipe()})
    place = cache.obtain("host-images", key, _build_root)
    return HostImage(key, disk=place / "disk.ext4", root=place / "root")


def _root_recipe() -> str:
    lists = [read_list(IMAGES / "host" / name) for name in ("packages", "exclude")]
    return "\n".join(" ".join(each) for each in lists)


def _build_root(place: Path) -> None:
    log.info("making the host image from %s (about a minute)", SUITE)
    archive, root = place / "root.tar", place / "root"
    _bootstrap(archive)
    root.mkdir()
    # Who runs this owns the files: nothing in the root depends on an owner, and the disk image
    # below makes them root's. Device nodes need real root rights, and devtmpfs brings its own.
    run_tool(
        ["tar", "-C", str(root), "--no-same-owner", "--exclude=./dev/*", "-xf", str(archive)],
        what="unpacking the host's root",
    )
    archive.unlink()
    _make_disk(root, place / "disk.ext4")
    # After that: in the emulated host QEMU is at home and runs as Debian made it.
    seal(root)
    mend(root / f"usr/bin/{PROGRAM}")


def _bootstrap(archive: Path) -> None:
    excluded = [
        f"--dpkgopt=path-exclude={pattern}" for pattern in read_list(IMAGES / "host" / "exclude")
    ]
    sources = [
        f"deb [signed-by={KEYRING}] {mirror()} {suite} main"
        for suite in (SUITE, f"{SUITE}-backports")
    ]
    try:
        mmdebstrap(
            [
                "--variant=minbase",
                "--architectures=amd64",
                "--format=tar",
                f"--include={','.join(read_list(IMAGES / 'host' / 'packages'))}",
                *excluded,
                # dropbear asks for a shell that /etc/shells knows; dash starts faster than bash
                '--customize-hook=chroot "$1" usermod --shell /bin/sh root',
                SUITE,
                str(archive),
                *sources,
            ],
            room=BUILD_ROOM,
            patience=BUILD_PATIENCE,
        )
    except LaunchError as error:
        raise _explain(error) from error


def _explain(error: LaunchError) -> Exception:
    """The error that says what a person can do about a failure of mmdebstrap."""
    if "No space left on device" in error.log_tail:
        return error
    if re.search(r"^E: apt-get update .*failed", error.log_tail, re.MULTILINE):
        return explained(error, "the host image", SUITE)
    return SetupError(f"the host image could not be made\n{error}")


def _make_disk(root: Path, disk: Path) -> None:
    """An ext4 image of a tree, all of it root's, with :data:`SCRATCH` bytes free."""
    megabytes = (disk_usage(root) * 5 // 4 + SCRATCH) >> 20
    mke2fs = [
        find_tool("mke2fs"),
        "-q",
        "-t",
        "ext4",
        "-m",
        "0",
        "-L",
        "hostfault",
        "-d",
        str(root),
    ]
    mke2fs += ["-E", "lazy_itable_init=1,lazy_journal_init=1", str(disk), f"{megabytes}M"]
    # Not by a user namespace: those may be forbidden, as Ubuntu 24.04 does it.
    as_root = [] if os.geteuid() == 0 else ["fakeroot"]
    run_tool([*as_root, *mke2fs], what="making the host's disk")


def host_initramfs(
    cache: Cache,
    kernel: Kernel,
    host_image: HostImage,
    identity: Identity,
    payload: Mapping[str, Path],
    devices: Sequence[str] = HOST_MODULES,
    kvm: Sequence[str] = tuple(CPU_FLAGS),
) -> Path:
    """The initramfs with which ``kernel`` boots the host image.

    ``payload`` are files and directories that the host will find as ``/run/hostfault/NAME``,
    ``devices`` the modules of the machine's, ``kvm`` those of which one must be there.
    Raises :class:`SetupError` if the kernel lacks a module.
    """
    extra = [*some_of(kernel, kvm, at_least=1), *some_of(kernel, USEFUL_MODULES)]
    modules = modules_for(kernel, [*devices, *extra])
    recipe = IMAGES / "host"
    key = key_of(
        {
            "layout": _LAYOUT,
            "host image": host_image.key,
            "init": recipe / "init",
            "second init": recipe / "second-init",
            "identity": identity.host_public + identity.client_public,
            **{f"module {number}": each.file for number, each in enumerate(modules)},
            **{f"payload {name}": path for name, path in payload.items()},
        }
    )

    def build(place: Path) -> None:
        log.info("making the host's initramfs for %s", kernel.release)
        with tempfile.TemporaryDirectory(dir=place) as tree_name:
            tree = Path(tree_name)
            lay_out(
                tree,
                root=host_image.root,
                folders=_FOLDERS,
                modules=modules,
                flags=CPU_FLAGS,
                identity=identity,
            )
            shutil.copy(recipe / "init", tree / "init")
            shutil.copy(recipe / "second-init", tree / "second-init")
            for name, source in payload.items():
                _copy(source, tree / "payload" / name)
            pack(tree, place / "initramfs")

    return cache.obtain("host-initramfs", key, build) / "initramfs"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
