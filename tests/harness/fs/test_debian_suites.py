"""fio and stress-ng: what goes into the guest, and what their words mean."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from hostfault.fs import debian
from hostfault.fs.__main__ import debian_parts
from hostfault.fs.debian import read_fio, read_stress
from hostfault.plumbing.errors import UsageError

LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
STRESS_NG = """\
int puts(const char *s);
int main(void) { return puts("class 'filesystem' stressors: access dir") < 0; }
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a small program in the place of each suite, and this machine's C library."""
    root = tmp_path_factory.mktemp("root")
    for folder in ("usr/bin", LIBRARIES, "lib64"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/" + debian.LOADER, root / debian.LOADER)
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", root / LIBRARIES)
    source = root / "stress.c"
    source.write_text(STRESS_NG)
    for program in (debian.FIO, debian.STRESS):
        subprocess.run(["gcc", "-o", root / program, source], check=True)
    return root


def test_a_program_runs_with_nothing_but_what_is_packed(root: Path, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(debian.archive(root, debian.STRESS))) as tar:
        names = tar.getnames()
        tar.extractall(tmp_path)  # our own: Python 3.11.2 knows no filter
    assert set(names) == {debian.STRESS, debian.LOADER, str(LIBRARIES / "libc.so.6")}
    line = debian.started(tmp_path, debian.STRESS)
    said = subprocess.run(line, env={}, capture_output=True, text=True, check=True).stdout
    assert "stressors" in said


def test_this_machine_is_a_root_like_any_other() -> None:
    with tarfile.open(fileobj=io.BytesIO(debian.archive(Path("/"), "usr/bin/bash"))) as tar:
        assert str(LIBRARIES / "libc.so.6") in tar.getnames()


def test_what_runs_is_what_the_programs_can_do(root: Path) -> None:
    fio, stress = debian_parts(root, [])
    assert fio.tests == tuple(debian.FIO_RUNS)
    assert stress.tests == ("access", "dir")
    assert [part.tests for part in debian_parts(root, ["stress-ng dir", "fio mmap"])] == [
        ("mmap",),
        ("dir",),
    ]


def test_a_root_that_lacks_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="apt-get install fio"):
        list(debian_parts(tmp_path, []))


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (0, "job: (groupid=0, jobs=1): err= 0: pid=70", "passed"),
        (0, "", "failed"),  # it says so of each job
        (1, "verify: bad header offset 0\njob: err= 0", "failed"),
    ],
)
def test_fio_passes_by_its_exit_code_and_its_words(code: int, text: str, verdict: str) -> None:
    assert read_fio("mmap", code, text).verdict == verdict


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (0, "stress-ng: info:  [7] successful run completed in 2.00s", "passed"),
        (0, "stress-ng: fail:  [7] dir: readdir failed, errno=5", "failed"),
        (2, "stress-ng: error: [7] process 8 (stress-ng-dir) terminated", "failed"),
        (3, "stress-ng: info: no resources", "skipped"),
        (4, "stress-ng: info: not implemented", "skipped"),
        (1, "stress-ng: info:  [7] disabled 'bind-mount' as it may hang the machine", "skipped"),
        (0, "stress-ng: warn:  [7] [8] (iomix) aborted early, out of system resources", "skipped"),
        (0, "stress-ng: info:  [7] verity: ioctl is not supported, skipping stressor", "skipped"),
    ],
)
def test_a_stressor_passes_by_its_exit_code_and_if_nothing_failed(
    code: int, text: str, verdict: str
) -> None:
    assert read_stress("dir", code, text).verdict == verdict


def test_a_command_runs_in_a_directory_of_its_own_and_its_code_reaches_us(tmp_path: Path) -> None:
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "old").touch()
    line = debian.afresh(str(directory), "sh -c 'pwd; ls; exit 5'").replace(
        "/tmp/log", str(tmp_path / "log")
    )
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.returncode, done.stdout) == (5, f"{directory}\n")
