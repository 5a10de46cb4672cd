"""Where kernels and QEMU are compiled: a Debian root of its own, entered with bubblewrap.

So the compiler is that of the suite which the kernel is for, whatever this machine runs, and a
build reaches neither the network nor anything but its own source tree and ccache's directory.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.kernel.fetch import KEYRING, mirror
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import CacheMissError, LaunchError, NoBuildRootError, SetupError
from hostfault.plumbing.mmdebstrap import mmdebstrap
from hostfault.plumbing.packages import find_tool, run_tool
from hostfault.plumbing.process import spawn
from hostfault.plumbing.project import IMAGES, read_list
from hostfault.plumbing.versions import version_of

log = logging.getLogger(__name__)

BOOTSTRAP_PATIENCE = 1800.0  # seconds for mmdebstrap, on a slow network
BOOTSTRAP_ROOM = 1024 << 20  # bytes that mmdebstrap may need while it works; 540 MiB were seen
CCACHE_SIZE = "3G"
PACKAGES = IMAGES / "build" / "packages"
DECISIVE = ("gcc", "binutils", "pahole", "make")  # what decides over a kernel
_LAYOUT = "1"  # change it when this module makes the same package list into something else
_BAD_LINE = re.compile(
    r": (?:fatal )?error: |: error, |undefined reference to|^ERROR: |^ld: |\bld: error"
    r"|No space left on device|Killed signal|internal compiler error|^error: |\*\*\* "
    r"|out of memory|memory exhausted|Cannot allocate memory"
)
_CONTEXT_LINE = re.compile(r"^\s+(?:\d+ )?\|")  # the source line and the caret below it


@dataclass(frozen=True)
class BuildRoot:
    """A Debian root with a compiler, and how to run programs in it."""

    suite: str  # "trixie"
    root: Path
    toolchain: str  # versions of what decides over the result, one a line
    ccache: Path  # shared by all builds of a cache

    def argv(self, tree: Path, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` in here, in ``tree``, which it sees as /src."""
        settings = {
            "PATH": "/usr/lib/ccache:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "CCACHE_DIR": "/ccache",
            "CCACHE_MAXSIZE": CCACHE_SIZE,
            "CCACHE_COMPILERCHECK": "content",
            # The same source makes the same kernel, whoever builds it and when.
            "KBUILD_BUILD_USER": "hostfault",
            "KBUILD_BUILD_HOST": "hostfault",
            "KBUILD_BUILD_TIMESTAMP": "2020-01-01",
        }
        return [
            *(find_tool("bwrap"), "--unshare-all", "--die-with-parent", "--clearenv"),
            *("--ro-bind", str(self.root), "/", "--dev", "/dev", "--proc", "/proc"),
            *("--tmpfs", "/tmp", "--bind", str(tree), "/src", "--chdir", "/src"),  # noqa: S108
            *("--bind", str(self.ccache), "/ccache"),
            *(word for name, value in settings.items() for word in ("--setenv", name, value)),
            *command,
        ]

    def run(self, tree: Path, command: Sequence[str], *, what: str, patience: float) -> str:
        """Run a command to its end, and return what it printed.

        ``patience`` is in seconds. Raises :class:`LaunchError`, whose last words are the lines
        of the compiler (or linker, or make) that say what is wrong, not the whole log, and
        :class:`NoBuildRootError` if this machine does not allow a build root.
        """
        self.ccache.mkdir(parents=True, exist_ok=True)
        output = tree.with_name(f"{tree.name}.log")
        output.unlink(missing_ok=True)
        argv = self.argv(tree, command)
        with spawn(argv, log=output) as child:
            try:
                code = child.wait(patience)
            except subprocess.TimeoutExpired:
                words = f"still running after {patience:.0f} s\n{_text(output)[-1000:]}"
                raise LaunchError(what, argv, None, words) from None
        text = _text(output)
        if code != 0 and text.startswith("bwrap: "):
            raise NoBuildRootError(
                "bubblewrap may not make a build root here (in a container: allow user namespaces, "
                "or give it CAP_SYS_ADMIN; in a chroot it cannot: systemd-nspawn makes a root that "
                f"will do)\n{text.strip()}"
            )
        if code != 0:
            raise LaunchError(what, command, code, error_lines(text))
        return text

    def make(self, tree: Path, *words: str, what: str, patience: float) -> str:
        """Run make in a kernel tree, as :meth:`run` does."""
        jobs = f"-j{os.cpu_count() or 1}"
        return self.run(tree, ["make", "--silent", jobs, *words], what=what, patience=patience)


def build_root(
    cache: Cache, suite: str, listed: Path = PACKAGES, decisive: Sequence[str] = DECISIVE
) -> BuildRoot:
    """The build root of a Debian suite, made on first use (about half a minute).

    ``listed`` is the file with its packages; ``decisive`` are those whose versions decide over
    what is built. Raises :class:`CacheMissError` if there is none and the mirror cannot be read.
    """
    packages = read_list(listed)
    key = key_of(
        {"layout": _LAYOUT, "suite": suite, "mirror": mirror(), "packages": " ".join(packages)}
    )
    place = cache.obtain(
        "build-roots", key, lambda empty: _bootstrap(empty, suite, packages, decisive)
    )
    return BuildRoot(
        suite=suite,
        root=place / "root",
        toolchain=(place / "toolchain").read_text(),
        ccache=cache.root / "ccache",
    )


def suite_for(version: str) -> str:
    """The Debian suite whose compiler fits a kernel; newer ones do not build 6.1."""
    return "bookworm" if version_of(version) < (6, 2) else "trixie"


def _bootstrap(place: Path, suite: str, packages: Sequence[str], decisive: Sequence[str]) -> None:
    log.info("making a build root from %s (about half a minute)", suite)
    archive, root = place / "root.tar", place / "root"
    source = f"deb [signed-by={KEYRING}] {mirror()} {suite} main"
    line = [
        *("--variant=minbase", "--architectures=amd64", "--format=tar"),
        *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("man", "doc", "locale")),
        *(f"--include={','.join(packages)}", suite, str(archive), source),
    ]
    try:
        mmdebstrap(line, room=BOOTSTRAP_ROOM, patience=BOOTSTRAP_PATIENCE)
    except LaunchError as error:
        if "No space left on device" in error.log_tail:
            raise
        if "apt-get update" in error.log_tail:
            raise CacheMissError(
                f"the build root ({suite}) is not in the cache, and {mirror()} cannot be read: "
                f"connect to the network (HOSTFAULT_MIRROR names another mirror)\n{error}"
            ) from error
        raise SetupError(f"the build root ({suite}) could not be made\n{error}") from error
    root.mkdir()
    # Who runs this owns the files, and device nodes come from bubblewrap.
    unpack = ["tar", "-C", str(root), "--no-same-owner", "--exclude=./dev/*", "-xf", str(archive)]
    run_tool(unpack, what="unpacking the build root")
    archive.unlink()
    for name in ("src", "ccache"):
        (root / name).mkdir()
    status = (root / "var/lib/dpkg/status").read_text()
    (place / "toolchain").write_text(versions(status, decisive))


def versions(status: str, packages: Sequence[str]) -> str:
    """The versions of some packages in a dpkg status file, one a line."""
    found = dict(
        re.findall(r"^Package: (\S+)$(?:.|\n(?!\n))*?\nVersion: (\S+)$", status, re.MULTILINE)
    )
    return "".join(f"{name} {found.get(name, 'absent')}\n" for name in packages)


def error_lines(output: str, limit: int = 30) -> str:
    """What a person needs of a failed build's output: the errors, each with its source line."""
    lines = output.splitlines()
    chosen: list[str] = []
    for number, line in enumerate(lines):
        if not _BAD_LINE.search(line):
            continue
        chosen.append(line)
        for follower in lines[number + 1 : number + 4]:
            if not _CONTEXT_LINE.match(follower):
                break
            chosen.append(follower)
    if not chosen:
        return "\n".join(lines[-limit:])
    more = len(chosen) - limit
    return "\n".join(chosen[:limit] + ([f"... and {more} lines more"] if more > 0 else []))


def _text(path: Path) -> str:
    """A log less its first line, which is the command."""
    if not path.exists():
        return ""
    return path.read_text(errors="replace").partition("\n")[2]
