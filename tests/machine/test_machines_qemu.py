"""The image's QEMU on a machine that has a QEMU of its own: it must not touch that one's files.

The machine is a root of bubblewrap's that has nothing but such files, all of them deadly: modules
that end whoever loads them, and firmware that is none.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hostfault.case.model import HostImage, Qemu
from hostfault.host.qemu import environment_of, find_qemu
from hostfault.image import host_image
from hostfault.plumbing.cache import Cache, default_cache

MODULES = "usr/lib/x86_64-linux-gnu/qemu"
POISON = "void __attribute__((constructor)) poison(void) { __builtin_trap(); }\n"
# Of those that QEMU knows and the image lacks; "-device help" asks for all.
MISSING = (
    "audio-pa.so",
    "audio-sdl.so",
    "hw-display-virtio-gpu-gl.so",
    "ui-gtk.so",
    "ui-opengl.so",
)


@pytest.fixture(scope="module")
def cache() -> Iterator[Cache]:
    cache = default_cache()
    yield cache
    cache.close()


@pytest.fixture(scope="module")
def image(cache: Cache) -> HostImage:
    return host_image(cache)


@pytest.fixture(scope="module")
def qemu(image: HostImage) -> Qemu:
    return find_qemu("image", image)


@pytest.fixture
def machine(image: HostImage, tmp_path: Path) -> list[str]:
    """The start of a command line that runs a program on that machine."""
    enter = ["bwrap", "--bind", str(tmp_path / "root"), "/", "--proc", "/proc", "--dev", "/dev"]
    enter += ["--ro-bind", str(image.root), str(image.root), "--unshare-pid", "--die-with-parent"]
    root = tmp_path / "root"
    source = tmp_path / "poison.c"
    source.write_text(POISON)
    poison = tmp_path / "poison.so"
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", poison, source], check=True)
    build = re.search(
        rb"Debian 1:11[^ )\0]*", (image.root / "usr/bin" / "qemu-system-x86_64").read_bytes()
    )
    assert build is not None, "the image's QEMU names its build"
    version = re.sub(r"[^A-Za-z0-9+\-.~]", "_", build[0].decode())
    names = {path.name for path in (image.root / MODULES).glob("*.so")} | set(MISSING)
    for folder in (MODULES, f"var/run/qemu/{version}"):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(poison.read_bytes())
    for folder in ("usr/share/qemu", "usr/share/seabios"):
        (root / folder).mkdir(parents=True)
        for name in ("bios-256k.bin", "bios.bin", "kvmvapic.bin", "linuxboot_dma.bin"):
            (root / folder / name).write_bytes(b"no firmware")
    tried = subprocess.run([*enter, "/none"], capture_output=True, text=True, check=False)
    if "Operation not permitted" in tried.stderr or "No permissions" in tried.stderr:
        pytest.skip(f"bubblewrap can make no root here: {tried.stderr.strip()}")
    return enter


def run(line: Sequence[str], qemu: Qemu, said: str = "") -> str:
    environment = environment_of(qemu)
    done = subprocess.run(
        line, input=said, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_module_may_be_asked_for(machine: list[str], qemu: Qemu) -> None:
    assert '"vhost-user-test-device-pci"' in run([*machine, *qemu.argv, "-device", "help"], qemu)


def test_the_firmware_is_the_images(machine: list[str], qemu: Qemu) -> None:
    line = [*machine, *qemu.argv, "-machine", "q35", "-display", "none", "-S", "-monitor", "stdio"]
    roms = run([*line, "-nodefaults"], qemu, "info roms\nquit\n")
    assert "bios-256k.bin" in roms
    assert "kvmvapic.bin" in roms


def test_the_callers_environment_does_not_reach_it(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QEMU_MODULE_DIR", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "none.so"))
    assert run([*qemu.argv, "--version"], qemu).startswith("QEMU emulator version 11.1")
