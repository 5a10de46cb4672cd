"""An emulated host that carries this project, so that pytest can run in there.

Its /dev/kvm works, so it is what a local host is elsewhere.
"""

from __future__ import annotations

import platform
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hostfault.case.model import HostImage
from hostfault.host import outer_qemu as host_machine
from hostfault.host.emulated import payload
from hostfault.host.outer_qemu import MachineSpec, Sockets
from hostfault.host.qemu import find_qemu
from hostfault.image import guest_image, host_image, host_initramfs
from hostfault.kernel import resolve
from hostfault.kernel.catalog import newest
from hostfault.plumbing.cache import Cache, default_cache, key_of
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.process import run
from hostfault.plumbing.short_directory import short_directory
from hostfault.plumbing.ssh_keys import identity
from hostfault.remote.ssh import SshShell, connect

PROJECT = Path(__file__).parents[2]
HERE = "/run/hostfault"  # in the host
PACKAGES = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
LEFT = "ls -d /tmp/hostfault-* 2>/dev/null; busybox pidof qemu-system-x86_64"


def pytest_in(where: str) -> str:
    """The start of a command that runs the project's pytest in a directory of the host."""
    project = f"{where}/project"
    return (
        f"cd {project} && PYTHONPATH={where}/site:{project}:{project}/tests/machine "
        "python3 -m pytest -p local_lab --host local --qemu system"
    )


def site_packages(cache: Cache, image: HostImage) -> Path:
    """The Python packages of the harness, for the Python of the host image."""
    version = next((image.root / "usr/lib").glob("python3.*")).name.removeprefix("python")
    wanted = {"packages": " ".join(PACKAGES), "python": version, "machine": platform.machine()}

    def build(place: Path) -> None:
        tags = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_34", "_2_28", "2014")]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(place)]
        options = [f"--python-version={version}", "--only-binary=:all:", *tags]
        run([*pip, *options, *PACKAGES], what="pip")

    return cache.obtain("site-packages", key_of(wanted), build)


def project_files() -> Mapping[str, Path]:
    """What pytest needs of the project, by its name below /run/hostfault."""
    files = [
        PROJECT / "pyproject.toml",
        PROJECT / "conftest.py",
        *(PROJECT / "kernels").glob("*.toml"),
        PROJECT / "ci" / "matrix.toml",
        *(PROJECT / "hostfault").rglob("*.py"),
        *(PROJECT / "tests" / "dax").rglob("*.py"),
        *(PROJECT / "tests" / "ram").rglob("*.py"),
        PROJECT / "tests" / "machine" / "local_lab.py",
        PROJECT / "tests" / "machine" / "witness_rights.py",
    ]
    return {f"project/{each.relative_to(PROJECT)}": each for each in files}


@contextmanager
def host_with_project(tmp_path: Path, more: Mapping[str, Path] | None = None) -> Iterator[SshShell]:
    """A shell of root's on such a host, for the length of the block; ``more`` are files there."""
    cache = default_cache()
    keys = identity(cache)
    kernel = resolve(newest(), cache)
    image = host_image(cache)
    guest = guest_image(cache, kernel, image, keys, ("virtiofs",))
    public = tmp_path / "host_public"
    public.write_text(keys.host_public)
    load = {
        **payload(kernel.image, guest.initramfs, keys),
        **project_files(),
        **(more or {}),
        "site": site_packages(cache, image),
        "client_key.openssh": keys.client_key,
        "host_public": public,
    }
    initramfs = host_initramfs(cache, kernel, image, keys, load)
    spec = MachineSpec(find_qemu("image", image), image, kernel, initramfs, "tcg")
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        machine = stack.enter_context(host_machine.start(spec, directory, tmp_path, incoming=False))
        machine.boot(Deadline(120.0, "the emulated host to boot"))
        ssh = Sockets.below(directory).host_ssh
        shell = connect("host", ssh, keys, Deadline(60.0, "SSH of the emulated host"))
        stack.callback(shell.close)
        yield shell
