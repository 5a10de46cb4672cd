"""Suites that Debian packages, fio and stress-ng: out of a root, with their libraries.

The guest has no shared libraries of its own, and a program is run by its root's loader.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

from hostfault.fs.suites import PartOutcome
from hostfault.image.programs import LOADER
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.process import run

PLACE = "/tmp/debian"  # noqa: S108 (in the guest)
FIO, STRESS = "usr/bin/fio", "usr/bin/stress-ng"
# The second one is named by an absolute path in a library that fio needs.
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph")

# Each writes its file in blocks of several sizes, reads it again, and compares checksums.
FIO_RUNS = {
    "psync": "--ioengine=psync --rw=randrw --bsrange=512-64k",
    "psync direct": "--ioengine=psync --direct=1 --rw=randrw --bs=4k",
    "mmap": "--ioengine=mmap --rw=randrw --bs=4k",
    "pvsync": "--ioengine=pvsync --rw=randrw --bsrange=4k-128k",
    "libaio, 16 under way": "--ioengine=libaio --iodepth=16 --direct=1 --rw=randrw --bs=4k",
    "four jobs": "--ioengine=psync --numjobs=4 --rw=write --bs=16k --fsync=8",
}
# Of stress-ng's class "filesystem", one after the other; what it left and whether it says "fail".
STRESS_SECONDS = 2
_STRESS_FAILED = re.compile(r"stress-ng: fail:.*")
_STRESS_SKIPPED = re.compile(
    r"stress-ng: \w+: +\[\d+\] +(?:\S+: .*(?:skipping|not supported)|disabled '\S+' ).*"
)
# Of those whose file would be of 1 GiB: the share is smaller.
_SIZES = {name: f" --{name}-bytes 16m" for name in ("fallocate", "hdd", "iomix", "sync-file")}


def archive(root: Path, program: str) -> bytes:
    """The program of a root with its loader and libraries, as a gzipped tar archive.

    Raises :class:`UsageError` if the root has no such program.
    """
    if not (root / program).is_file():
        package = Path(program).name
        raise UsageError(f"--debian {root}: no {program} (Debian: apt-get install {package})")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for path in (program, LOADER, *_libraries(root, program)):
            tar.add((root / path).resolve(), path)
    return stream.getvalue()


def _libraries(root: Path, program: str) -> list[str]:
    """The shared libraries that a program of a root needs, as paths relative to it."""
    loader, *rest = started(root, program)
    found = []
    for line in run([loader, "--list", *rest], what=f"listing the libraries of {program}").split():
        if Path(line).is_relative_to(root) and line.partition(".so")[1] and line != loader:
            found.append(str(Path(line).relative_to(root)))
    return [path for path in dict.fromkeys(found) if path.startswith(_LIBRARIES)]


def started(root: Path | str, program: str) -> list[str]:
    """The start of a command line that runs a program of a root by its own loader."""
    start = str(root).rstrip("/")  # or what the loader lists of "/" is below "//"
    libraries = ":".join(f"{start}/{each}" for each in _LIBRARIES)
    return [f"{start}/{LOADER}", "--library-path", libraries, f"{start}/{program}"]


def _line(program: str) -> str:
    """How it is started in the guest."""
    return " ".join(started(PLACE, program))


def afresh(directory: str, line: str) -> str:
    """A command that runs a line in a new directory, and tells the end of what it said."""
    fresh = f"rm -rf {directory} && mkdir {directory} && cd {directory}"
    return f"{fresh} && {{ {line} >/tmp/log 2>&1; code=$?; tail -n 80 /tmp/log; exit $code; }}"


def fio_command(options: str, where: str, megabytes: int = 8) -> str:
    """How fio is run in a guest: verified, and once more from what is in the file afterwards."""
    common = f"--name=job --directory={where}/fio --size={megabytes}m --verify=crc32c"
    common += f" --do_verify=1 --verify_fatal=1 --randseed=1 --fallocate=none {options}"
    common += " --group_reporting"  # or the words of several jobs are more than what is kept
    return afresh(f"{where}/fio", f"{_line(FIO)} {common}")


def read_fio(name: str, code: int, text: str) -> PartOutcome:
    """What a run of fio came to: its exit code, and that it verified something."""
    if code == 0 and "err= 0" in text:
        return PartOutcome("fio", name, "passed", "")
    return PartOutcome("fio", name, "failed", f"exit code {code}: {text[-600:]}")


def stressors(root: Path) -> list[str]:
    """The stressors of the class, by what the root's stress-ng says (stress-ng(1), --class)."""
    line = [*started(root, STRESS), "--class", "filesystem?"]
    _, colon, names = run(line, what="stress-ng").partition("stressors:")
    if not colon:
        raise UsageError(f"--debian {root}: its stress-ng does not name its stressors: {names}")
    return names.split()


def stress_command(name: str, where: str) -> str:
    """How one stressor is run in a guest."""
    words = f"--{name} 1 --verify --timeout {STRESS_SECONDS} --temp-path {where}/stress"
    words += _SIZES.get(name, "")
    return afresh(f"{where}/stress", f"{_line(STRESS)} {words}")


def read_stress(name: str, code: int, text: str) -> PartOutcome:
    """What a stressor came to. (stress-ng(1): 3 is a lack of something, 4 not implemented.)"""
    failed, skipped = _STRESS_FAILED.findall(text), _STRESS_SKIPPED.search(text)
    if not failed and skipped:
        return PartOutcome("stress-ng", name, "skipped", skipped[0][-200:])
    if not failed and "out of system resources" in text:
        return PartOutcome("stress-ng", name, "skipped", text[-200:].strip())
    if code == 0 and not failed:
        return PartOutcome("stress-ng", name, "passed", "")
    if code in (3, 4) and not failed:
        return PartOutcome("stress-ng", name, "skipped", text[-200:].strip())
    return PartOutcome(
        "stress-ng", name, "failed", f"exit code {code}: {'; '.join(failed)[:600] or text[-600:]}"
    )
