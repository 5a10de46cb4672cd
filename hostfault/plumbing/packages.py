"""Programs of the system that build kernels and images: found, or asked for by package name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from hostfault.plumbing.errors import SetupError
from hostfault.plumbing.process import run

# Which package of Debian and Ubuntu has a program. ci/setup installs them all.
PACKAGES = {
    "apt-get": "apt",
    "bwrap": "bubblewrap",
    "cp": "coreutils",
    "cpio": "cpio",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "fakeroot": "fakeroot",
    "gcc": "gcc libc6-dev",
    "git": "git",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "modprobe": "kmod",
    "patch": "patch",
    "tar": "tar",
    "zstd": "zstd",
}


def find_tool(name: str) -> str:
    """The full path of a program, also where only root's PATH has it.

    Raises :class:`SetupError` that says what to install.
    """
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which(name, path=f"{path}:/usr/sbin:/sbin")
    if found is None:
        raise SetupError(f"{name} is missing: apt-get install {PACKAGES[name]} (or run ci/dax)")
    return found


def run_tool(
    argv: Sequence[str],
    *,
    what: str,
    timeout: float = 600.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_text: str | None = None,
) -> str:
    """:func:`hostfault.plumbing.process.run` for a program named in :data:`PACKAGES`."""
    line = [find_tool(argv[0]), *argv[1:]]
    return run(line, what=what, timeout=timeout, env=env, cwd=cwd, input_text=input_text)
