"""A suite of tests that pytest runs in place of the real one, and leaves what the real one leaves.

What each case says stands in ``says.json``: by kernel, then by case, a word or a list of them, one
for each run. ``*`` stands for any. The words are verdicts, or ``known``, ``skip``, ``trouble``,
``waits``, ``breaks``, ``dies`` (pytest is killed), ``hangs``; ``slowly`` before
one makes it take a third of a second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hostfault.nightly.__main__ import main
from hostfault.nightly.results import Result
from hostfault.nightly.runs import PytestPrograms
from hostfault.nightly.store import Night, NightStore

CASES = ("none-load-apf", "zero-load-apf", "zero-store-apf", "middle-load-apf")

CONFTEST = """
import json, os, pathlib, re, select, signal, sys, time
import pytest

ROOT = pathlib.Path(__file__).parent
GOOD = ("ok", "task-error", "vm-exit")
SAMPLES = [
    {"at": -0.05, "faults": [], "vcpu_seconds": 6.5, "run_state": "running"},
    {"at": 0.1, "faults": [{"gfn": 16, "rip": 4200117, "count": 90}], "vcpu_seconds": 6.6,
     "run_state": "running"},
    {"at": 0.3, "faults": [{"gfn": 16, "rip": 4200117, "count": 310}], "vcpu_seconds": 6.8,
     "run_state": "internal-error"},
]

def pytest_addoption(parser):
    for name in ("--host", "--host-kernel", "--artifacts"):
        parser.addoption(name)
    parser.addoption("--artifacts-overwrite", action="store_true")

def pytest_configure(config):
    if config.getoption("--host-kernel") == "9.9":
        raise pytest.UsageError("there is no kernel '9.9'; known are 7.3.4")

def word_of(kernel, case, request):
    says = json.loads((ROOT / "says.json").read_text())
    words = {**says.get("*", {}), **says.get(kernel, {})}
    said = words.get(case, words.get("*", "task-error"))
    if isinstance(said, str):
        return said
    count = ROOT / f"count-{kernel}-{case}"
    number = int(count.read_text()) if count.exists() else 0
    count.write_text(str(number + 1))
    return said[min(number, len(said) - 1)]

@pytest.fixture
def case(request, pytestconfig):
    local = pytestconfig.getoption("--host") == "local"
    kernel = "local" if local else pytestconfig.getoption("--host-kernel")
    name = request.node.callspec.id
    with (ROOT / "began").open("a") as log:
        log.write(f"{kernel} {name}\\n")
    word = word_of(kernel, name.removeprefix("virtiofs-dax-"), request)
    order = json.loads(os.environ.get("HOSTFAULT_CHAOS", "null"))
    if order is not None and not pathlib.Path(order["done"]).exists():
        pathlib.Path(order["done"]).touch()
        word = "trouble"
    if word == "skip":
        pytest.skip("kvm: no usable /dev/kvm: there is no /dev/kvm")
    folder = pathlib.Path(pytestconfig.getoption("--artifacts")) / re.sub(
        r"[^\\\\w.]+", "-", request.node.name).strip("-")
    folder.mkdir(parents=True)
    if word in ("trouble", "waits"):
        kind = "DeadlineError" if word == "waits" else "ConnectionLostError"
        (folder / "error.txt").write_text(f"{kind}: the agent went away\\n")
        pytest.fail(f"harness trouble ({kind}): the agent went away", pytrace=False)
    if word == "breaks":
        raise KeyError("no such thing")
    if word == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if word.startswith("slowly "):
        select.select([], [], [], 0.3)
        word = word.removeprefix("slowly ")
    if word == "hangs":
        (ROOT / "hangs").touch()
        select.select([], [], [], 60)
    verdict = "spin" if word == "known" else word
    packaged = not local and "+" not in kernel
    told = ROOT / "summary"
    said = told.read_text() if told.exists() else "310 faults on gfn 0x10"
    record = {
        "verdict": verdict, "summary": said, "accepted": verdict in GOOD,
        "known_issue": "kvm-apf-error" if word == "known" else None,
        "test": request.node.nodeid, "host_kind": "local" if local else "emulated",
        "host_reason": "", "host_release": f"{kernel}-cloud-amd64" if not local else "6.1.0-50",
        "host_kernel": None if local else
            {"name": kernel, "release": f"{kernel}-cloud-amd64", "packaged": packaged},
        "kvm_build_id": "c9fc", "guest_kernel": {"name": "7.3.4", "release": "7.3.4-cloud-amd64"},
        "qemu": {"source": "image", "version": "11.1.3"}, "backing": "virtiofs-dax",
        "fault": name.split("-")[2], "access": name.split("-")[3], "async_pf": True, "vcpus": 1,
        "options": {}, "seconds": {"restore": 0.1, "touch to verdict": 0.4}, "cached": True,
        "evidence": [said, "QMP query-status: running"], "recovery": "none",
    }
    if word == "known":
        request.node.add_marker(pytest.mark.xfail(strict=True, reason="known issue"))
    observation = {"expected_gfn": 16, "samples": SAMPLES,
                   "events": [{"name": "STOP", "at": 0.2, "data": {}, "host": False}]}
    if (ROOT / "draw").exists():  # most tests look at no plot, and each takes its time
        (folder / "observation.json").write_text(json.dumps(observation))
    (folder / "registers.txt").write_text("RIP=00000000004016b5\\n")
    (folder / "verdict.json").write_text(json.dumps(record))
    return verdict
"""

MODULE = """
import pytest
CASES = {cases!r}

@pytest.mark.parametrize("scenario", CASES, ids=["virtiofs-dax-" + case for case in CASES])
def test_truncate(case, scenario):
    if case not in ("ok", "task-error", "vm-exit"):
        pytest.fail(f"{{case.upper()}}: it never moved", pytrace=False)
"""


class Suite:
    """The suite in a directory, and a place for its nights."""

    def __init__(self, place: Path) -> None:
        self.root = place / "suite"
        self.store = NightStore(place / "nights")
        module = self.root / "tests" / "dax" / "test_truncate.py"
        module.parent.mkdir(parents=True)
        module.write_text(MODULE.format(cases=CASES))
        (self.root / "conftest.py").write_text(CONFTEST.replace("\\\\", "\\"))
        (self.root / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
        self.says({})

    @property
    def programs(self) -> PytestPrograms:
        argv = (sys.executable, "-P", "-m", "pytest", "-c", str(self.root / "pytest.ini"))
        return PytestPrograms((*argv, "--rootdir", str(self.root)), self.root)

    def says(self, words: dict[str, dict[str, Any]]) -> None:
        """From now on the cases say this; a case that is not named says task-error."""
        (self.root / "says.json").write_text(json.dumps(words))
        for count in self.root.glob("count-*"):
            count.unlink()

    def words(self, *more: str, kernels: str = "7.3.4") -> list[str]:
        """A command line for a night."""
        return ["--set", "dax", "--kernels", kernels, "--results", str(self.store.root), *more]

    def night(self, *more: str, kernels: str = "7.3.4") -> int:
        """Run a night; returns its exit code."""
        return main(self.words(*more, kernels=kernels), self.programs)

    @property
    def last(self) -> Night:
        return self.store.nights()[-1]

    def results(self) -> list[Result]:
        """Of the last night."""
        return self.store.results(self.last.name)

    def file(self, name: str) -> str:
        """One of the last night's files."""
        return (self.store.folder(self.last.name) / name).read_text()

    def began(self) -> list[str]:
        """Kernel and case of every test that was begun so far."""
        path = self.root / "began"
        return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":  # a process of its own, for those who want to kill it
    place, *words = sys.argv[1:]
    suite = Suite.__new__(Suite)
    suite.root = Path(place) / "suite"
    sys.exit(main(words, suite.programs))
