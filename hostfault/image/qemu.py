"""QEMUs that are built here, for the guest: from a name with a patch series, or a source tree.

``NAME+SERIES``
    a source of images/qemu/sources.toml with a series of images/qemu/patches
``tree:PATH``
    a QEMU source tree, in git or not

Built is what a guest of this suite needs: QEMU for x86 with KVM, a few devices, user networking and
the filter for system calls. Its libraries and its firmware are those of the host image.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.settings import TREE
from hostfault.kernel import series as patch_series
from hostfault.kernel.buildroot import BuildRoot, build_root
from hostfault.kernel.fetch import fetch_source
from hostfault.kernel.kvm_only import build_id
from hostfault.kernel.source import digest_of_all, git_files, manifest
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import SetupError, UsageError
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.project import IMAGES
from hostfault.plumbing.versions import version_of

log = logging.getLogger(__name__)

RECIPE = IMAGES / "qemu"
SERIES = RECIPE / "patches" / "series.toml"
SOURCES = RECIPE / "sources.toml"
DEVICES = RECIPE / "hostfault.mak"
SUITE = "trixie"  # of the build root: that of the host image, whose libraries it runs with
PROGRAM = "qemu-system-x86_64"
CONFIGURE_PATIENCE = 900.0  # seconds, on a slow machine
BUILD_PATIENCE = 3600.0  # the same; 4 minutes on two cores
LIMITS = {"qemus": 256 << 20}  # what the cache may keep, in bytes
CONFIGURE: tuple[str, ...] = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--disable-download",
    "--enable-kvm",
    "--enable-slirp",
    "--enable-seccomp",
    "--disable-tcg",
    "--disable-debug-info",
    "--disable-docs",
    "--disable-install-blobs",
    # Below the prefix, QEMU looks for its firmware relative to where the program lies.
    "--prefix=/opt/hostfault",
    "--libexecdir=/usr/lib/qemu",
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios",
    f"--with-devices-x86_64={DEVICES.stem}",
)
# What decides over a build besides the source.
_DECISIVE = ("gcc", "binutils", "libglib2.0-dev", "libslirp-dev", "libseccomp-dev")
_CONFIGURATIONS = "configs/devices/x86_64-softmmu"
_LAYOUT = "1"  # change it when the same inputs are made into something else
_IN_EVERY_TREE = ("VERSION", "configure", f"{_CONFIGURATIONS}/default.mak")
_UNREAD = re.compile(r"\.git/|(?:.*/)?build/")  # of a tree that is not in git


@dataclass(frozen=True)
class BuiltQemu:
    """A QEMU that was built here."""

    program: Path
    build_id: str  # of the program, in hex


@dataclass(frozen=True)
class _Source:
    """Where a QEMU comes from."""

    name: str  # what identifies it, for the cache
    lay_out: Callable[[Path], None]  # make it in an empty directory


def build_qemu(choice: str, cache: Cache) -> BuiltQemu:
    """The QEMU that ``choice`` names, built if it is not in the cache.

    Raises :class:`UsageError` for what does not exist, :class:`SetupError` for what cannot be had,
    and :class:`LaunchError` with the compiler's lines for what does not build.
    """
    source = _tree(choice) if choice.startswith(TREE) else _packaged(choice, cache)
    root = build_root(cache, SUITE, RECIPE / "packages", _DECISIVE)
    key = key_of(
        {
            "layout": _LAYOUT,
            "source": source.name,
            "configure": " ".join(CONFIGURE),
            "devices": DEVICES.read_text(),
            "toolchain": root.toolchain,
        }
    )
    place = cache.obtain("qemus", key, lambda empty: _build(empty, source, root))
    for kind, most in LIMITS.items():
        cache.prune(kind, most)
    return BuiltQemu(place / PROGRAM, (place / "build-id").read_text())


def sources() -> dict[str, str]:
    """The names of sources, oldest first, and the Debian suite that has each."""
    with SOURCES.open("rb") as stream:
        return {each["name"]: each["suite"] for each in tomllib.load(stream)["source"]}


def newest() -> str:
    """The name of the newest source."""
    return list(sources())[-1]


def suite_of(name: str) -> str:
    """The Debian suite that has a source. Raises :class:`UsageError` that lists those there are."""
    known = sources()
    if name not in known:
        raise UsageError(f"{name}: no source of QEMU; known are {', '.join(known)}")
    return known[name]


def lay_out(package: Path, tree: Path) -> None:
    """Unpack a source package and apply its own patches, as dpkg-source(1) does for "3.0 (quilt)".

    ``package`` is a directory with its files. Raises :class:`SetupError` if one is missing.
    """
    for pattern, below in (("*.orig.tar.*", tree), ("*.debian.tar.*", tree / "debian")):
        archives = sorted(package.glob(pattern))
        if len(archives) != 1:
            raise SetupError(f"{package} has not one {pattern}, but {len(archives)}")
        below.mkdir(exist_ok=True)
        line = ["tar", "-C", str(below), "--strip-components=1", "--no-same-owner"]
        run_tool([*line, "-xf", str(archives[0])], what=f"unpacking {archives[0].name}")
    listed = (tree / "debian/patches/series").read_text().splitlines()
    names = [line.split()[0] for line in listed if line.strip() and not line.startswith("#")]
    patch_series.apply([tree / "debian/patches" / name for name in names], tree)


def package_version(package: Path) -> str:
    """The version of a source package, by its .dsc. Raises :class:`SetupError` without one."""
    for description in package.glob("*.dsc"):
        if found := re.search(r"^Version: (\S+)$", description.read_text(), re.MULTILINE):
            return found[1]
    raise SetupError(f"{package} has no .dsc that tells a version")


def patches_of(choice: str) -> tuple[Path, ...]:
    """The patches of NAME+SERIES. Raises :class:`UsageError` for what there is not."""
    name, _, wanted = choice.partition("+")
    suite_of(name)
    return patch_series.find(wanted, SERIES).patches_for(version_of(name))


def _packaged(choice: str, cache: Cache) -> _Source:
    patches = patches_of(choice)
    suite = suite_of(choice.partition("+")[0])
    package = fetch_source(cache, suite, "qemu")

    def make(tree: Path) -> None:
        lay_out(package, tree)
        patch_series.apply(patches, tree)

    texts = key_of({str(number): patch for number, patch in enumerate(patches)})
    return _Source(f"qemu {package_version(package)} with {texts}", make)


def _tree(choice: str) -> _Source:
    path = Path(choice.removeprefix(TREE)).absolute()
    if missing := [each for each in _IN_EVERY_TREE if not (path / each).is_file()]:
        raise UsageError(f"--qemu {choice}: no QEMU source tree: it has no {missing[0]}")
    log.info("reading %s", path)
    names = _files_of(path)

    def make(tree: Path) -> None:
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path / name, tree / name, follow_symlinks=False)

    return _Source(f"tree {digest_of_all(manifest(path, names))}", make)


def _files_of(tree: Path) -> list[str]:
    """The files of a source tree: git's, or all but what a build in it has left."""
    if (tree / ".git").exists():
        return sorted(git_files(tree))
    names = (str(each.relative_to(tree)) for each in tree.rglob("*") if not each.is_dir())
    return sorted(name for name in names if not _UNREAD.match(name))


def _build(place: Path, source: _Source, root: BuildRoot) -> None:
    log.info("building QEMU (some minutes)")
    tree = place / "src"
    tree.mkdir()
    source.lay_out(tree)
    shutil.copy(DEVICES, tree / _CONFIGURATIONS / DEVICES.name)
    build = tree / "build"
    shutil.rmtree(build, ignore_errors=True)
    configure, compile_it = _lines()
    root.run(tree, configure, what="configuring QEMU", patience=CONFIGURE_PATIENCE)
    root.run(tree, compile_it, what="compiling QEMU", patience=BUILD_PATIENCE)
    shutil.copy(build / PROGRAM, place / PROGRAM)
    (place / "build-id").write_text(build_id(place / PROGRAM))
    shutil.rmtree(tree)
    tree.with_name("src.log").unlink()


def _lines() -> tuple[Sequence[str], Sequence[str]]:
    """The commands that make it, in the tree."""
    jobs = f"-j{os.cpu_count() or 1}"
    return ("./configure", *CONFIGURE), ("ninja", jobs, "-C", "build", PROGRAM)
