"""The commands in ci/: what they install, what they leave alone, and their exit codes.

They run in a copy of ci/, with stand-ins for the programs that would change this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Every stand-in notes its name and its words in "calls"; a file named CODE-name is its exit code.
STAND_IN = """#!/bin/sh
name=$(basename "$0")
echo "$name $*" >>"$CALLS"
echo "$name ${PYTHONPATH-}${PYTHONHOME-} ${TMPDIR-}" >>"$CALLS.environment"
if [ -e "$CALLS.code-$name" ]; then exit "$(cat "$CALLS.code-$name")"; fi
"""
DPKG_QUERY = """#!/bin/sh
code=0
shift 2 # --show and its format
for package in "$@"; do
    if grep -qx "$package" "$CALLS.missing" 2>/dev/null; then code=1
    else echo "installed $package"; fi
done
exit $code
"""
# A Python that makes a virtual environment of stand-ins.
PYTHON = """#!/bin/sh
if [ "$1" = -I ]; then shift; fi
case $1 in
-c) echo 3.13.0 ;;
-m) shift 3
    echo "python -m venv $*" >>"$CALLS"
    rm -rf "$1" # --clear
    mkdir -p "$1/bin"
    for name in pip pytest ruff mypy lint-imports; do
        cp "$(dirname "$0")/apt-get" "$1/bin/$name"
    done ;;
esac
"""


class Sandbox:
    """A project with ci/ in it, and a PATH of stand-ins before the system's."""

    def __init__(self, home: Path) -> None:
        self.project = home / "a project"
        self.calls_file = home / "calls"
        self.bin = home / "bin"
        self.bin.mkdir()
        shutil.copytree(ROOT / "ci", self.project / "ci")
        (self.project / ".ci").mkdir()
        (self.project / "images").mkdir()
        (self.project / "ci" / "data.toml").touch()
        shutil.copy(ROOT / ".ci" / "run", self.project / ".ci" / "run")
        (self.project / "pyproject.toml").write_text("[project]\n")
        for name in ("apt-get", "shellcheck"):
            self.program(name, STAND_IN)
        self.program("dpkg-query", DPKG_QUERY)
        self.program("python3", PYTHON)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def missing(self, *packages: str) -> None:
        Path(f"{self.calls_file}.missing").write_text("".join(f"{each}\n" for each in packages))

    def let_fail(self, name: str, code: int) -> None:
        Path(f"{self.calls_file}.code-{name}").write_text(str(code))

    def run(
        self, command: str, *words: str, cwd: Path | None = None, **environment: str
    ) -> tuple[int, list[str]]:
        self.calls_file.write_text("")
        done = subprocess.run(
            [self.project / command, *words],
            cwd=cwd or self.project,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "CALLS": str(self.calls_file),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, self.calls_file.read_text().splitlines()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def starting_with(calls: list[str], *words: str) -> list[str]:
    return [call for call in calls if call.startswith(words)]


def test_a_machine_that_has_everything_is_left_alone(sandbox: Sandbox) -> None:
    sandbox.run("ci/dax")
    code, calls = sandbox.run("ci/dax")
    assert code == 0
    assert len(calls) == 1, "nothing but pytest is called the second time"


@pytest.mark.skipif(os.geteuid() != 0, reason="as another user this would call sudo")
def test_only_what_is_missing_is_installed(sandbox: Sandbox) -> None:
    sandbox.missing("kmod", "mmdebstrap")
    _, calls = sandbox.run("ci/dax")
    (install,) = starting_with(calls, "apt-get -q install")
    assert install.endswith(" kmod mmdebstrap")


@pytest.mark.skipif(os.geteuid() != 0, reason="as another user this would call sudo")
def test_an_installation_that_fails_ends_the_command(sandbox: Sandbox) -> None:
    sandbox.missing("kmod")
    sandbox.let_fail("apt-get", 100)
    code, calls = sandbox.run("ci/dax")
    assert code == 1
    assert not starting_with(calls, "pytest")


def test_the_environment_is_made_anew_when_its_description_changes(sandbox: Sandbox) -> None:
    made = [starting_with(sandbox.run("ci/dax")[1], "python", "pip") for _ in range(2)]
    assert [call.split()[0] for call in made[0]] == ["python", "pip"]
    assert made[0][1].endswith("a project[dev]")
    assert made[1] == []
    (sandbox.project / "pyproject.toml").write_text("[project]\nname = 'new'\n")
    assert len(starting_with(sandbox.run("ci/dax")[1], "python", "pip")) == 2


def test_an_extra_is_added_once_and_again_when_the_environment_is_made_anew(
    sandbox: Sandbox,
) -> None:
    sandbox.run("ci/dax")  # which needs none
    added = [starting_with(sandbox.run("ci/test")[1], "pip") for _ in range(2)]
    assert [call.rpartition("[")[2] for call in added[0]] == ["nightly]"]
    assert added[1] == []
    (sandbox.project / "pyproject.toml").write_text("[project]\nname = 'new'\n")
    extras = [call.rpartition("[")[2] for call in starting_with(sandbox.run("ci/test")[1], "pip")]
    assert extras == ["dev]", "nightly]"]


def test_an_environment_that_could_not_be_filled_is_tried_again(sandbox: Sandbox) -> None:
    sandbox.let_fail("pip", 1)
    code, calls = sandbox.run("ci/dax")
    assert code == 1
    assert not starting_with(calls, "pytest")
    Path(f"{sandbox.calls_file}.code-pip").unlink()
    code, calls = sandbox.run("ci/dax")
    assert (code, len(starting_with(calls, "pip"))) == (0, 1)


def test_what_another_python_needs_does_not_reach_ours(sandbox: Sandbox) -> None:
    sandbox.run("ci/dax", PYTHONPATH="/planted", PYTHONHOME="/elsewhere", TMPDIR="/small")
    environment = Path(f"{sandbox.calls_file}.environment").read_text().splitlines()
    assert environment == [f"pip  {sandbox.project}/.venv", "pytest  /small"]


def test_no_module_of_the_callers_directory_is_imported(sandbox: Sandbox, tmp_path: Path) -> None:
    """The real Python is asked whether it will do: in a kernel tree there may be any file."""
    tree, deed = tmp_path / "tree", tmp_path / "deed"
    tree.mkdir()
    for name in ("ensurepip", "venv", "sys", "pytest", "re"):
        (tree / f"{name}.py").write_text(f"open({str(deed)!r}, 'w')\n")
    asks = f'-c) exec {sys.executable} $isolated "$@" ;;'
    real = PYTHON.replace("then shift;", "then isolated=-I; shift;")
    sandbox.program("python3", real.replace("-c) echo 3.13.0 ;;", asks))
    code, _ = sandbox.run("ci/dax", cwd=tree)
    assert code == 0
    assert not deed.exists()
    subprocess.run([sandbox.bin / "python3", "-c", "import ensurepip"], cwd=tree, check=True)
    assert deed.exists(), "what is planted is imported where nothing keeps it out"


def test_only_its_owner_can_hold_the_lock_of_the_set_up(sandbox: Sandbox) -> None:
    (sandbox.project / ".venv.lock").touch(0o666)
    sandbox.run("ci/dax")
    assert (sandbox.project / ".venv.lock").stat().st_mode & 0o777 == 0o600


def test_options_and_the_callers_directory_reach_pytest(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.let_fail("pytest", 5)
    code, calls = sandbox.run("ci/dax", "-k", "zero load", "--host-kernel=./b", cwd=tmp_path)
    project = sandbox.project
    assert code == 5
    assert calls[-1] == (
        f"pytest -c {project}/pyproject.toml -k dax {project}/tests/dax {project}/tests/ram "
        "-k zero load --host-kernel=./b"
    )


@pytest.mark.parametrize("command", ["ci/test", ".ci/run"])
def test_every_check_runs_and_the_worst_code_is_returned(sandbox: Sandbox, command: str) -> None:
    sandbox.let_fail("mypy", 3)
    sandbox.let_fail("shellcheck", 1)
    code, calls = sandbox.run(command)
    assert code == 3
    names = [call.split()[0] for call in calls][3:]  # after those that made the environment
    assert names == ["ruff", "ruff", "mypy", "lint-imports", "shellcheck", "pytest"]
    (shellcheck,) = starting_with(calls, "shellcheck")
    linted = set(shellcheck.split()[3:])
    assert linted >= {"ci/dax", "ci/setup", "ci/test", ".ci/run"}
    assert "ci/data.toml" not in linted
