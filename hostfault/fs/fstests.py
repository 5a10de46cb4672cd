"""fstests' generic quick group: built and run in a Debian root of its own.

Its tests are shell scripts that need bash, perl and xfsprogs, so that root goes into the guest's
memory, less its compiler, and the share is mounted in it. There is no second file system.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from hostfault.fs.suites import PartOutcome
from hostfault.kernel.buildroot import BuildRoot, build_root
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.project import IMAGES

SUITE = "trixie"
PACKAGES = IMAGES / "fstests" / "packages"
DECISIVE = ("gcc", "libc6-dev", "xfsprogs", "perl")
BUILD = "make -s configure && ./configure -q --libexecdir=/usr/lib --exec_prefix=/ && make -s -j2"
CACHE_LIMIT = 512 << 20  # bytes of built ones; one takes 70 MB
BUILD_PATIENCE = 1800.0  # seconds
TEST_PATIENCE = 120  # seconds for one test
PLACE = "/tmp/fstests"  # noqa: S108 (in the guest)
ROOM = "800m"  # of the guest's memory
NEEDS_SECOND = "asks for a second file system (_require_scratch)"
OPTIONS = "-o dax=always"
_LAYOUT = "2"  # change it when this module makes another archive of the same things
_USERS = ("fsgqa", "fsgqa2", "123456-fsgqa")
# Neither compiles nor installs anything in the guest.
_LEFT_OUT = re.compile(
    r"usr/(?:include|share/(?!misc|perl|terminfo|zoneinfo|file)|lib/(?:gcc|git-core|apt|dpkg|python3)"
    r"|libexec/gcc|sbin/xfs_scrub|src)(?:/|$)|var/(?:lib|cache)/(?:apt|dpkg)|boot|src|ccache"
    r"|usr/lib/x86_64-linux-gnu/(?:gconv|libicu|libLLVM|libasan|libtsan|liblsan|libubsan|libhwasan)"
    r"|usr/bin/(?:x86_64-linux-gnu-|lto-dump|gdb)|.*\.a$|.*/\.deps|.*/\.libs/.*\.o$|.*\.o$"
)
_GROUPS = re.compile(r"^_begin_fstest\b(.*)$", re.MULTILINE)
_NOT_RUN = re.compile(r"\[not run\]\s*(.*)")
_END = re.compile(r"^(?:Ran|Not run|Failures|Passed all|Failed \d+ of)\b", re.MULTILINE)


def tests(source: Path) -> list[str]:
    """The group's tests, as ``check`` names them. Raises :class:`UsageError` if there are none."""
    found = []
    for path in sorted((source / "tests" / "generic").glob("[0-9][0-9][0-9]")):
        groups = _GROUPS.search(path.read_text(errors="replace"))
        if groups and "quick" in groups[1].split():
            found.append(f"generic/{path.name}")
    if not found:
        raise UsageError(f"--fstests {source}: has no test of the group quick in tests/generic")
    return found


def needs_second(source: Path, name: str) -> bool:
    """Whether a test asks for a scratch device, which there is none of."""
    return "_require_scratch" in (source / "tests" / name).read_text(errors="replace")


def archive(source: Path, cache: Cache) -> bytes:
    """A root with fstests in it, built, as a gzipped tar archive; both are kept in the cache.

    Raises :class:`~hostfault.plumbing.errors.HostfaultError`.
    """
    root = build_root(cache, SUITE, PACKAGES, DECISIVE)
    recipe = {
        "layout": _LAYOUT,
        "build": BUILD,
        "left out": _LEFT_OUT.pattern,
        "toolchain": root.toolchain,
    }
    key = key_of({**recipe, "packages": PACKAGES, "source": source})
    place = cache.obtain("fstests", key, lambda empty: _build(source, root, empty))
    cache.prune("fstests", CACHE_LIMIT)
    return (place / "root.tar.gz").read_bytes()


def _build(source: Path, root: BuildRoot, place: Path) -> None:
    tree = place / "tree"
    shutil.copytree(source, tree, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    root.run(tree, ["sh", "-c", BUILD], what="building fstests", patience=BUILD_PATIENCE)
    with tarfile.open(place / "root.tar.gz", "w:gz", compresslevel=6) as tar:
        tar.add(root.root, ".", filter=packed)
        tar.add(tree, "fstests", filter=packed)
        for path, text in added_files(root.root):
            _add(tar, path, text)
    shutil.rmtree(tree)


def packed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """What goes into the guest, owned by root there."""
    if _LEFT_OUT.match(member.name.removeprefix("./")):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def added_files(root: Path) -> Iterator[tuple[str, str]]:
    """Files of the root that are made: its users, and what ``check`` is to know."""
    users = groups = shadow = ""
    for number, name in enumerate(_USERS, 2000):
        users += f"{name}:x:{number}:{number}::/tmp:/bin/bash\n"
        groups += f"{name}:x:{number}:\n"
        shadow += f"{name}:*:20000:0:99999:7:::\n"  # or su refuses the user
    yield "etc/passwd", (root / "etc/passwd").read_text() + users
    yield "etc/group", (root / "etc/group").read_text() + groups
    yield "etc/shadow", (root / "etc/shadow").read_text() + shadow
    config = f"FSTYP=virtiofs\nTEST_DEV=TAG\nTEST_DIR=/mnt\nTEST_FS_MOUNT_OPTS='{OPTIONS}'\n"
    yield "fstests/local.config", config


def _add(tar: tarfile.TarFile, path: str, text: str) -> None:
    data = text.encode()
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def room_command() -> str:
    """Where the root is unpacked: no more of the guest's memory than it needs."""
    return f"mkdir -p {PLACE} && mount -t tmpfs -o size={ROOM},mode=755 root {PLACE}"


def ready_command(tag: str, where: str) -> str:
    """The share is mounted in the root in place of where it was, with what programs expect."""
    binds = " && ".join(f"mount --rbind /{each} {PLACE}/{each}" for each in ("proc", "sys", "dev"))
    return (
        f"{binds} && sed -i s/=TAG/={tag}/ {PLACE}/fstests/local.config"
        f" && umount {where} && mount -t virtiofs {OPTIONS} {tag} {PLACE}/mnt"
    )


def check_command(name: str, patience: int = TEST_PATIENCE) -> str:
    """How one test is run, and what it said: the end of check's words, then its difference."""
    results = f"results/{name}"
    inside = (
        f"cd /fstests; timeout -k 5 {patience} ./check {name} >/tmp/log 2>&1; code=$?; "
        f"[ $code != 124 ] || echo NO-END >>/tmp/log; tail -n 40 /tmp/log; "
        f"[ ! -f {results}.out.bad ] || diff tests/{name}.out {results}.out.bad | head -n 30; "
        f"[ ! -f {results}.dmesg ] || tail -n 30 {results}.dmesg; "
        "rm -rf results /mnt/* || true"
    )
    return f"chroot {PLACE} /bin/bash -c '{inside}'"


def read_check(name: str, text: str, patience: int = TEST_PATIENCE) -> PartOutcome:
    """What a run of ``check`` with one test came to, by its words.

    Of a test that is not run it says, too, that all have passed.
    """
    lacks = _NOT_RUN.search(text)
    if lacks:
        return PartOutcome("fstests", name, "skipped", lacks[1].strip()[:200])
    if "NO-END" in text:
        said = text[-500:].strip()
        return PartOutcome("fstests", name, "trouble", f"no end within {patience} s: {said}")
    if re.search(r"^Passed all 1 tests", text, re.MULTILINE):
        return PartOutcome("fstests", name, "passed", "")
    if not _END.search(text):
        return PartOutcome("fstests", name, "trouble", f"no verdict: {text[-900:].strip()}")
    begin = text.find(f"\n{name} ")
    return PartOutcome("fstests", name, "failed", text[max(begin, 0) :].strip()[:1500])
