"""mmdebstrap: the directory that it gets to work in, and what is said if it may not work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hostfault.plumbing.errors import LaunchError, SetupError
from hostfault.plumbing.mmdebstrap import mmdebstrap, scratch_directory

MIB = 1 << 20
# Says what is said of a file system that is mounted with some options, in a mount namespace.
ASK = """
mount -t tmpfs -o "$1" scratch "$2" || exit 77
exec "$3" -c 'import pathlib, sys
from hostfault.plumbing.errors import SetupError
from hostfault.plumbing.mmdebstrap import scratch_directory
try:
    scratch_directory(100 << 20, [pathlib.Path(sys.argv[1])])
except SetupError as error:
    print(error)' "$2"
"""


def said_of_a_tmpfs(options: str, path: Path) -> str:
    line = ["unshare", "--mount", "sh", "-c", ASK, "sh", options, str(path), sys.executable]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode in (1, 77) and "denied" in done.stderr + done.stdout:
        pytest.skip("only root may mount")
    if "not permitted" in done.stderr:
        pytest.skip("only root may mount")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_directory_that_will_do_is_taken(tmp_path: Path) -> None:
    usual = Path("/var/tmp")
    assert scratch_directory(MIB, [tmp_path / "none", usual, Path("/")]) == usual


def test_each_directory_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        scratch_directory(1 << 60, [tmp_path / "none", Path("/var/tmp")])
    message = str(caught.value)
    assert f"{tmp_path / 'none'} cannot be written" in message
    assert "/var/tmp has " in message
    assert f"set TMPDIR to one with {1 << 40} MiB" in message


def test_a_file_system_of_which_nothing_may_be_run_is_not_taken(tmp_path: Path) -> None:
    assert "is mounted noexec" in said_of_a_tmpfs("noexec", tmp_path)


def test_a_small_file_system_is_not_taken(tmp_path: Path) -> None:
    assert "has 16 MiB free" in said_of_a_tmpfs("size=16m", tmp_path)
    assert said_of_a_tmpfs("size=200m", tmp_path) == ""


def test_without_root_rights_a_directory_closed_to_others_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SetupError, match="not open to the ids that mmdebstrap works with"):
        scratch_directory(MIB, [tmp_path])


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of mmdebstrap: notes its TMPDIR; fails with the words in "says" if there are."""
    program = tmp_path / "mmdebstrap"
    program.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\necho "$TMPDIR" >room\n'
        "if [ -e says ]; then cat says >&2; exit 25; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


@pytest.mark.parametrize(("chosen", "taken"), [("/tmp", "/tmp"), ("/proc", "/var/tmp")])
def test_the_callers_tmpdir_is_taken_if_it_will_do(
    chosen: str, taken: str, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", chosen)
    mmdebstrap([], room=MIB, patience=10.0)
    assert (stand_in / "room").read_text().strip() == taken


@pytest.mark.parametrize(
    "words",
    [
        "E: unable to pick chroot mode automatically (use --mode for manual selection)",
        "newuidmap: write to uid_map failed: Operation not permitted",
    ],
)
def test_a_user_without_user_namespaces_is_told_what_to_do(
    words: str, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand_in / "says").write_text(words)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SetupError, match=r"run this as root; or .* /etc/subuid") as caught:
        mmdebstrap([], room=MIB, patience=10.0)
    assert words in str(caught.value)


def test_another_failure_is_passed_on_with_its_words(stand_in: Path) -> None:
    (stand_in / "says").write_text("E: setup failed")
    with pytest.raises(LaunchError, match="E: setup failed"):
        mmdebstrap([], room=MIB, patience=10.0)
