"""The selftest as a program: compiled in a kernel's own selftests, by the tree's own Makefile.

One program serves every kernel: it is linked statically against the framework of the newest
catalogued kernel. That framework skips itself on kernels before 6.8, for want of an ioctl of
which it needs nothing new; kernels/selftest/older_kernels.c answers for them.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from hostfault.kernel.buildroot import BuildRoot, build_root, suite_for
from hostfault.kernel.catalog import CatalogEntry, load, newest
from hostfault.kernel.choose import packaged
from hostfault.kernel.fetch import mirror, unpack
from hostfault.kernel.packaged import package_version
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import LaunchError
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.process import run
from hostfault.plumbing.project import PROJECT

log = logging.getLogger(__name__)

SOURCES = PROJECT / "kernels" / "selftest"
TEST = "unbacked_page_test"
SHIM = "older_kernels"
PATIENCE = 900.0  # seconds for one make, on a slow machine
KVM_TESTS = "tools/testing/selftests/kvm"
# Of a kernel's source, what its selftests of KVM, `make headers` and checkpatch read.
PARTS = (
    "Makefile",
    "arch/x86",
    "include/asm-generic",
    "include/uapi",
    "scripts",
    "tools/arch/x86",
    "tools/build",
    "tools/include",
    "tools/lib",
    "tools/scripts",
    "tools/testing/selftests",
    "usr",
)
# What the test takes of it when it is compiled.
KEPT = ("scripts", "tools", "usr/include")
_LAYOUT = "1"  # change it when the same inputs are made into something else


@dataclass(frozen=True)
class Framework:
    """The selftests of a kernel, with its headers, ready for a test to be put in."""

    key: str  # hash of everything it was made from
    version: str  # of the Debian package, e.g. "7.3.4-1~bpo13+1"
    tree: Path
    root: BuildRoot  # what compiles it


def framework(cache: Cache) -> Framework:
    """The selftests of the newest catalogued kernel; about half a minute on first use.

    Raises :class:`~hostfault.plumbing.errors.SetupError` if the source cannot be had.
    """
    entry = load()[newest()]
    version = package_version(packaged(entry, cache).image)
    root = build_root(cache, suite_for(entry.release))
    key = key_of(
        {
            "layout": _LAYOUT,
            "mirror": mirror(),
            "version": version,
            "parts": " ".join((*PARTS, *KEPT)),
            "toolchain": root.toolchain,
        }
    )
    place = cache.obtain(
        "selftest-trees", key, lambda empty: _make_framework(empty, entry, version, root)
    )
    return Framework(key, version, place / "tree", root)


def _make_framework(place: Path, entry: CatalogEntry, version: str, root: BuildRoot) -> None:
    name = f"linux-source-{'.'.join(version.split('.')[:2])}"
    packages, source, tree = place / "packages", place / "src", place / "tree"
    for folder in (packages, source, tree):
        folder.mkdir()
    unpack(packages, entry.suite, [f"{name}={version}"])
    log.info("unpacking the selftests of %s", version)
    archive = packages / "usr/src" / f"{name}.tar.xz"
    run_tool(
        ["tar", "-C", str(source), "--strip-components=1", "-xf", str(archive)]
        + [f"{name}/{part}" for part in PARTS],
        what=f"unpacking {name}",
    )
    root.make(source, "headers", "ARCH=x86", what=f"headers of {version}", patience=PATIENCE)
    for part in KEPT:
        (tree / part).parent.mkdir(parents=True, exist_ok=True)
        (source / part).rename(tree / part)
    shutil.rmtree(source)
    shutil.rmtree(packages)
    (place / "src.log").unlink(missing_ok=True)


def selftest(cache: Cache) -> Path:
    """The selftest's program, for every kernel. Raises :class:`LaunchError` if it does not build.

    A warning of the compiler is an error, as it would be for the kernel's reviewers.
    """
    found = framework(cache)
    sources = [SOURCES / f"{TEST}.c", SOURCES / f"{SHIM}.c"]
    key = key_of({"layout": _LAYOUT, "framework": found.key, **{p.name: p for p in sources}})
    return cache.obtain("selftests", key, lambda empty: _build(empty, found)) / TEST


def _build(place: Path, found: Framework) -> None:
    log.info("compiling the selftest with the framework of %s", found.version)
    tree = place / "src"
    run_tool(
        ["cp", "-a", "--reflink=auto", str(found.tree), str(tree)], what="copying the selftests"
    )
    shutil.copy(SOURCES / f"{TEST}.c", tree / KVM_TESTS / "x86")
    shutil.copy(SOURCES / f"{SHIM}.c", tree)
    compiler = ["gcc", "-O2", "-Wall", "-Werror", "-Iusr/include", "-c", f"{SHIM}.c"]
    found.root.run(tree, compiler, what=f"compiling {SHIM}.c", patience=PATIENCE)
    found.root.make(
        tree,
        *("-C", KVM_TESTS, "ARCH=x86", "OUTPUT=/src/out", "EXTRA_CFLAGS=-Werror"),
        f"TEST_GEN_PROGS_x86=x86/{TEST}",  # this one, and none of the tree's
        *("LIBVFIO_O=", f"LDLIBS=/src/{SHIM}.o"),  # no VFIO, which wants libuuid
        "LDFLAGS=-static -pthread -no-pie -Wl,--wrap=ioctl",
        f"/src/out/x86/{TEST}",
        what=f"compiling {TEST}.c",
        patience=PATIENCE,
    )
    (tree / "out/x86" / TEST).rename(place / TEST)
    shutil.rmtree(tree)
    (place / "src.log").unlink(missing_ok=True)


def checkpatch(cache: Cache) -> str:
    """What the kernel's checkpatch.pl --strict says of our C code; "" if nothing.

    Raises :class:`LaunchError` if it could not look at all.
    """
    scripts = framework(cache).tree / "scripts"
    line = ["perl", str(scripts / "checkpatch.pl"), "--strict", "--no-tree", "--terse"]
    line += ["--no-summary", "--show-types", "--file"]
    try:
        return run([*line, *map(str, sorted(SOURCES.glob("*.c")))], what="checkpatch").strip()
    except LaunchError as error:
        if error.code != 1:  # 1: it has something to say
            raise
        return error.log_tail.strip()
