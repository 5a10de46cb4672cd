"""Stand-ins for the compiler and the lab of a bisection; all between them is real.

As a program: ``bisect`` is ci/bisect with the stand-ins, ``build`` is its builder. As a plugin of
pytest: a lab whose verdict stands in the source of the kernel. STAND_INS in the environment makes
them fail, see the tests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import select
import sys
from pathlib import Path

from hostfault.bisect import build
from hostfault.bisect.__main__ import run
from hostfault.bisect.children import StepPrograms
from hostfault.case import known_issues
from hostfault.case.model import Kernel, Qemu, Scenario, Verdict, VerdictKind, observation_from_json
from hostfault.case.record import LabFacts, Record
from hostfault.case.settings import Settings
from hostfault.kernel import FORMS, Form
from hostfault.kernel.catalog import load
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import LaunchError, SetupError

HERE = Path(__file__).parent
TROUBLE = os.environ.get("STAND_INS", "")
QEMU = Qemu("image", "11.1.3", ("qemu",))
FIXED = "/* the guest's owner is told */"


def text_of(tree: Path, name: str) -> str:
    return (tree / name).read_text()


def kernel(name: str) -> Kernel:
    """What a name would build or fetch; the build id is a hash of the tree."""
    if not name.startswith("tree:"):
        return Kernel(name, f"{name}-stock", Path(name), Path(f"lib/{name}"), packaged=True)
    tree = Path(name.removeprefix("tree:"))
    files = sorted(path for path in tree.rglob("*.c") if ".git" not in path.parts)
    build_id = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    modules = tree.parent / "modules"
    (modules / "updates").mkdir(parents=True, exist_ok=True)
    return Kernel(name, "7.3.4", tree / "bzImage", modules, False, build_id)


def compile_kernel(name: str, _cache: Cache) -> Kernel:
    """Compile the kernel of a tree; that of a package was compiled before."""
    if name.startswith("tree:"):
        _meet_compiler_trouble()
    tree = name.removeprefix("tree:")
    if tree != name and "not_written" in text_of(Path(tree), "arch/x86/kvm/debugfs.c"):
        words = "debugfs.c:3:8: error: implicit declaration of kvm_is_not_written_yet"
        raise LaunchError("compiling KVM", ["make", "modules"], 2, words)
    return kernel(name)


def compile_afresh(name: str, _cache: Cache) -> dict[str, str]:
    _meet_compiler_trouble()
    return {"compiled": name}


def _meet_compiler_trouble() -> None:
    if TROUBLE == "no compiler":
        words = "debugfs.c:3:8: error: what is a semicolon?"
        raise LaunchError("compiling KVM", ["make", "modules"], 2, words)
    if TROUBLE == "compiler killed":
        raise LaunchError("compiling KVM", ["make"], 2, "gcc: fatal error: Killed signal (9)")
    if TROUBLE == "compiler hangs":
        select.select([], [], [])


class Lab:
    """Judges the kernel under test by its source, a packaged one by its age."""

    def __init__(self, settings: Settings) -> None:
        assert settings.host_kernel is not None
        self.settings = settings
        self.name = settings.host_kernel
        self.kernel = kernel(self.name)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_what: object) -> None:
        return None

    def facts(self) -> LabFacts:
        under_test = self.kernel
        if TROUBLE == "wrong kernel":
            under_test = dataclasses.replace(under_test, build_id="another")
        return LabFacts("emulated", "asked for", under_test, "7.3.4", kernel("7.3.4"), QEMU)

    def run(self, test: str, scenario: Scenario, folder: Path) -> Record:
        self._meet_trouble()
        path = HERE.parents[1] / "observations" / "vm-exit.error-table-7.3.4.json"
        observation = observation_from_json(json.loads(path.read_text()))
        observation = dataclasses.replace(observation, scenario=scenario)
        kind = VerdictKind.VM_EXIT if self._is_fixed() else VerdictKind.SPIN
        return Record(
            test=test,
            facts=self.facts(),
            settings=self.settings,
            observation=observation,
            verdict=Verdict(kind, f"{kind.value}, said the stand-in", ()),
            phases={},
            cached=False,
            issue=self._issue(scenario),
            folder=folder,
        )

    def _issue(self, scenario: Scenario) -> known_issues.KnownIssue | None:
        issues = known_issues.load() if self.settings.known_issues else ()
        return known_issues.match(issues, self.facts().host_kernel, scenario)

    def _meet_trouble(self) -> None:
        built = self.name.startswith("tree:")
        if TROUBLE == "lab broken" or self.name in os.environ.get("BROKEN_PACKAGES", "").split():
            raise SetupError("the machine is out of order")
        if built and TROUBLE == "hangs":
            Path(os.environ["RUNNING"]).write_text(str(os.getpid()))
            select.select([], [], [])
        if built and "panic(" in text_of(Path(self.name[5:]), "virt/kvm/kvm_main.c"):
            raise SetupError("the emulated host did not come up in 3 attempts")

    def _is_fixed(self) -> bool:
        if self.name.startswith("tree:"):
            return FIXED in text_of(Path(self.name[5:]), "arch/x86/kvm/mmu/mmu.c")
        names = list(load())
        first = os.environ.get("FIRST_FIXED", "")
        return bool(first) and names.index(self.name) >= names.index(first)


def pytest_hostfault_lab(settings: Settings) -> Lab:
    return Lab(settings)


if __name__ == "__main__":
    command = sys.argv.pop(1)
    if command == "build":
        FORMS.insert(0, Form("tree:PATH", lambda _: True, compile_kernel))
        build.compile_afresh = compile_afresh
        build.command(sys.argv[1:])
    else:
        run(
            StepPrograms(
                build=(sys.executable, "-P", __file__, "build"),
                pytest=(*StepPrograms().pytest, "-p", "bisect_stand_ins"),
            )
        )
