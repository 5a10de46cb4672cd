"""The guest: an initramfs with the probe, an SSH server and the modules of one kernel."""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hostfault.case.model import GuestImage, HostImage, Kernel
from hostfault.image.initramfs import add_modules, lay_out, pack
from hostfault.image.programs import libraries_of
from hostfault.kernel.modules import modules_for, some_of
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.project import IMAGES
from hostfault.plumbing.ssh_keys import Identity

log = logging.getLogger(__name__)

PROBE_SOURCES = IMAGES / "probe"
CROWD_SOURCE = IMAGES / "probe" / "crowd.c"  # of the error-table study
GUEST_MODULES = ("virtio_pci", "virtio_net", "pvpanic-pci")
SSH_SERVER = "usr/sbin/dropbear"  # in the host image
USEFUL_MODULES = ("virtio_blk",)  # what some access needs, and others do without
LATER = "later"  # in /modules: the list of what is loaded only then (hostfault/guest/nesting.py)
NESTED_MODULES = ("kvm-amd",)  # what the guest needs to run a guest of its own
_FOLDERS = ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "sbin", "lib64")
_STATICALLY = ("gcc", "-static", "-O1", "-Wall", "-Wextra")
_LAYOUT = "2"  # change it when this module puts other things into the tree


def guest_image(
    cache: Cache,
    kernel: Kernel,
    host_image: HostImage,
    identity: Identity,
    extra_modules: Sequence[str] = (),
    extra_programs: Sequence[str] = (),
) -> GuestImage:
    """The initramfs for a guest kernel, with busybox and dropbear from the host image.

    ``extra_modules`` are what a backing needs beyond :data:`GUEST_MODULES`, ``extra_programs`` what
    it needs of the host image, as paths there. Raises :class:`SetupError` if the kernel lacks a
    module.
    """
    useful = some_of(kernel, USEFUL_MODULES)
    modules = modules_for(kernel, [*GUEST_MODULES, *useful, *extra_modules])
    nested = modules_for(kernel, some_of(kernel, NESTED_MODULES))
    probe, crowd = build_probe(cache), build_program(cache, CROWD_SOURCE)
    key = key_of(
        {
            "layout": _LAYOUT,
            "host image": host_image.key,
            "recipe": IMAGES / "guest",
            "probe": probe,
            "crowd": crowd,
            "programs": " ".join(extra_programs),
            "identity": identity.host_public + identity.client_public,
            **{f"module {number}": each.file for number, each in enumerate(modules)},
            **{f"nested {number}": each.file for number, each in enumerate(nested)},
        }
    )

    def build(place: Path) -> None:
        log.info("making the guest's initramfs for %s", kernel.release)
        with tempfile.TemporaryDirectory(dir=place) as tree_name:
            tree = Path(tree_name)
            lay_out(
                tree,
                root=host_image.root,
                folders=_FOLDERS,
                modules=modules,
                flags={},
                identity=identity,
            )
            add_modules(tree, nested, LATER)
            shutil.copytree(IMAGES / "guest", tree, dirs_exist_ok=True)
            for program in (probe, crowd):
                shutil.copy(program, tree / "bin" / program.name)
            for name in (SSH_SERVER, *extra_programs):
                _add_program(tree, host_image.root, name)
            pack(tree, place / "initramfs")

    place = cache.obtain("guest-images", key, build)
    return GuestImage(key, place / "initramfs", probe_source_hash())


@functools.cache
def _compiler() -> str:
    return run_tool(["gcc", "--version"], what="gcc").splitlines()[0]


def build_probe(cache: Cache) -> Path:
    """The probe with all of its accesses, compiled statically by this machine's gcc."""
    return compile_c(cache, "probe", _probe_sources(), [PROBE_SOURCES / "probe.h"])


def build_program(cache: Cache, source: Path) -> Path:
    """A program of one C file, compiled statically by this machine's gcc; named as the file is."""
    return compile_c(cache, source.stem, [source], [])


def compile_c(
    cache: Cache,
    name: str,
    sources: Sequence[Path],
    headers: Sequence[Path],
    line: Sequence[str] = _STATICALLY,
) -> Path:
    """The file ``name`` that this machine's gcc makes of ``sources``; the cache has a kind of it.

    Raises :class:`LaunchError` with the compiler's errors.
    """

    def build(place: Path) -> None:
        words = [*line, "-o", str(place / name), *map(str, sources)]
        run_tool(words, what=f"compiling {name}")

    files = {f"source {each.name}": each for each in (*sources, *headers)}
    key = key_of({"compiler": _compiler(), "line": " ".join(line), **files})
    return cache.obtain(name, key, build) / name


def _probe_sources() -> list[Path]:
    mains = [PROBE_SOURCES / "probe.c", PROBE_SOURCES / "task.c"]
    return [*mains, *sorted((PROBE_SOURCES / "access").glob("*.c"))]


def probe_source_hash() -> str:
    """The sha256 of the probe's sources, which tells observations of different probes apart."""
    texts = [path.read_bytes() for path in (*_probe_sources(), PROBE_SOURCES / "probe.h")]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _add_program(tree: Path, root: Path, program: str) -> None:
    """Copy a program and its libraries to where its loader looks for them."""
    shutil.copy(root / program, tree / "sbin" / Path(program).name)
    for library in libraries_of(root, program):
        target = tree / ("lib64" if library.parts[0] == "lib64" else library.parent) / library.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / library, target)
