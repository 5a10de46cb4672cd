"""What is run of each suite, and what its words mean."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.packages import run_tool

# What glibc on Linux has of what the suites' configure scripts look for.
_PJD_HAVE = (
    "faccessat fchmodat fchownat fstatat linkat mkdirat mkfifoat mknodat openat posix_fallocate "
    "readlinkat renameat symlinkat unlinkat utimensat sys_sysmacros_h struct_stat_st_atim "
    "struct_stat_st_ctim struct_stat_st_mtim"
)
_FSX_HAVE = (
    "sys_types_h sys_stat_h sys_statvfs_h sys_time_h sys_ioctl_h sys_wait_h malloc_h dirent_h "
    "stdlib_h unistd_h errno_h string_h sys_fcntl_h time_h sys_param_h libgen_h assert_h strings_h "
    "err_h linux_falloc_h copy_file_range"
)
_SUMMARY = (
    # What is still to do (TAP's "# TODO") fails nothing.
    "awk '/^1\\.\\./ {print} /^ok/ || /^not ok.*# TODO/ {ok++; next} "
    "/^not ok/ {bad++; if (bad <= 20) print} "
    'END {print "ok " ok + 0 " bad " bad + 0}\''
)
# pjdfstest makes names of random digits with it.
OPENSSL = b'#!/bin/sh\nmd5sum | { read -r sum _; echo "$sum"; }\n'
NOBODY = "grep -q ^nobody: /etc/passwd || echo nobody:x:65534:65534::/:/bin/false >>/etc/passwd"

FSX_RUNS = {
    "with mmap": "",
    "without mmap": "-R -W",
    "direct": "-Z -r 4096 -w 4096",
    "closing and opening": "-c 20",
    "files of 8 MiB": "-l 8388608",
}


@dataclass(frozen=True)
class PartOutcome:
    """What became of one part of a suite."""

    suite: str
    name: str
    verdict: str  # "passed" | "failed" | "skipped" (by the suite itself) | "trouble" (no end)
    detail: str  # of a failure: what the suite said


def pjdfstest_archive(source: Path, place: Path) -> bytes:
    """The program, built, and the tests, as a gzipped tar archive.

    Raises UsageError or LaunchError.
    """
    program = place / "pjdfstest"
    _build(source / "pjdfstest.c", program, _PJD_HAVE, place)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        archive.add(program, "pjdfstest/pjdfstest")
        archive.add(source / "tests", "pjdfstest/tests")
    return stream.getvalue()


def pjdfstest_files(source: Path) -> list[str]:
    """Its tests, as paths below "tests"."""
    found = sorted(str(path.relative_to(source / "tests")) for path in source.glob("tests/*/*.t"))
    if not found:
        raise UsageError(f"--pjdfstest {source}: has no tests/*/*.t")
    return found


def pjdfstest_command(name: str, where: str) -> str:
    """How one of its tests is run in a guest, and summed up."""
    fresh = f"rm -rf {where}/pjd && mkdir {where}/pjd && cd {where}/pjd"
    return f"{fresh} && sh /tmp/pjdfstest/tests/{name} 2>&1 | {_SUMMARY}"


def read_tap(name: str, text: str) -> PartOutcome:
    """What a test of pjdfstest came to, from its plan and its counts."""
    plan = re.search(r"^1\.\.(\d+)(.*)$", text, re.MULTILINE)
    counts = re.search(r"^ok (\d+) bad (\d+)$", text, re.MULTILINE)
    if plan is None or counts is None:
        return PartOutcome("pjdfstest", name, "failed", f"no plan or no end: {text[-300:].strip()}")
    planned, good, bad = int(plan[1]), int(counts[1]), int(counts[2])
    if planned == 0:
        return PartOutcome("pjdfstest", name, "skipped", plan[2].strip(" #"))
    if bad or good != planned:
        lines = [line[:200] for line in text.splitlines() if line.startswith("not ok")]
        words = "; ".join(lines[:20]) or "some are missing"
        return PartOutcome("pjdfstest", name, "failed", f"{good} of {planned}: {words}")
    return PartOutcome("pjdfstest", name, "passed", f"{good}")


def fsx_program(source: Path, place: Path) -> bytes:
    """The program fsx out of a tree of fstests. Raises UsageError or LaunchError."""
    program = place / "fsx"
    options = ("-I", str(source / "src"), "-include", "getopt.h")
    _build(source / "ltp" / "fsx.c", program, _FSX_HAVE, place, *options)
    return program.read_bytes()


def fsx_command(options: str, where: str, operations: int, seed: int) -> str:
    """How it is run in a guest."""
    file = f"{where}/fsx"
    line = f"./fsx -q -N {operations} -S {seed} {options} {file} >fsx.log 2>&1"
    return f"rm -f {file}*; cd /tmp; {line}; code=$?; tail -n 30 fsx.log; exit $code"


def read_fsx(name: str, code: int, text: str) -> PartOutcome:
    """What a run of fsx came to."""
    verdict = "passed" if code == 0 else "failed"
    return PartOutcome(
        "fsx", name, verdict, "" if code == 0 else f"exit code {code}: {text[-600:]}"
    )


def table(outcomes: Sequence[PartOutcome]) -> str:
    """Counts of each suite, then every failure."""
    return "\n".join(_lines(outcomes))


def _lines(outcomes: Sequence[PartOutcome]) -> Iterator[str]:
    yield f"{'suite':12}{'passed':>8}{'failed':>8}{'skipped':>9}{'trouble':>9}"
    for suite in dict.fromkeys(outcome.suite for outcome in outcomes):
        verdicts = [outcome.verdict for outcome in outcomes if outcome.suite == suite]
        counts = [verdicts.count(each) for each in ("passed", "failed", "skipped", "trouble")]
        yield f"{suite:12}{counts[0]:8}{counts[1]:8}{counts[2]:9}{counts[3]:9}"
    for outcome in outcomes:
        if outcome.verdict in ("failed", "trouble"):
            yield f"{outcome.suite} {outcome.name}: {outcome.detail}"


def _build(source: Path, program: Path, have: str, place: Path, *options: str) -> None:
    """Compile one file statically, with a config.h of what is there."""
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    lines = ["#define STDC_HEADERS 1"]
    lines += [f"#define HAVE_{name.upper()} 1" for name in have.split()]
    (place / "config.h").write_text("\n".join(lines) + "\n")
    line = [
        "gcc",
        "-static",
        "-O1",
        "-w",
        "-D_GNU_SOURCE",
        "-I",
        str(place),
        *options,
        "-o",
        str(program),
    ]
    run_tool([*line, str(source)], what=f"compiling {source.name}")
