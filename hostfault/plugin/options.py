"""What a person asked for on the command line, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from hostfault.case.model import Verdict, VerdictKind
from hostfault.plugin.capabilities import check_names


@dataclass(frozen=True)
class Settings:
    """The options of a run; None means "find out": the lab resolves it."""

    host: str = "auto"  # "auto" | "local" | "emulated"
    host_kernel: str | None = None  # a name, a path, ...; None: the newest of the catalog
    guest_kernel: str | None = None  # the same
    qemu: str = "image"  # "image" | "system" | a path
    accept: str = "vm"  # "vm": stopping the whole VM will do; "task": the task must be told
    require: tuple[str, ...] = ()  # capabilities whose absence is an error
    known_issues: bool = True  # whether kernels/known_issues.toml applies
    artifacts: Path | None = None  # None: a new directory in .hostfault/runs
    overwrite: bool = False  # whether `artifacts` may hold an earlier run
    hide_passes: bool = False  # whether the table leaves out what is as it should be

    def accepts(self, verdict: Verdict) -> bool:
        """Whether a test whose host cannot back the page passes with that verdict.

        ``ok`` passes too: then the host could back the page after all.
        """
        if verdict.kind is VerdictKind.VM_EXIT:
            return self.accept == "vm"
        return verdict.kind in (VerdictKind.TASK_ERROR, VerdictKind.OK)


def add_options(parser: pytest.Parser) -> None:
    """Register the command-line options."""
    group = parser.getgroup("hostfault", "faults of the host under a KVM guest")
    group.addoption(
        "--host",
        choices=("auto", "local", "emulated"),
        default="auto",
        help="where the KVM under test runs (default auto: local if a guest boots on /dev/kvm)",
    )
    for role in ("host", "guest"):
        group.addoption(
            f"--{role}-kernel",
            metavar="KERNEL",
            help=f"the {role}'s kernel: a name of kernels/catalog.toml, NAME+SERIES with a series "
            "of kernels/patches, tree:PATH to a source tree, or BZIMAGE[:MODULES] "
            "(default: the newest of the catalog)",
        )
    group.addoption(
        "--qemu",
        default="image",
        metavar="image|system|PATH",
        help="the QEMU to test (default image: the one in the host image)",
    )
    group.addoption(
        "--accept",
        choices=("vm", "task"),
        default="vm",
        help="what passes: stopping the VM with an error (default), or only telling the task",
    )
    group.addoption(
        "--require",
        action="append",
        default=[],
        metavar="CAPABILITY",
        help="fail, not skip, where this capability is missing; may be repeated; 'all': no test "
        "may be skipped; 'kvm': this machine's own kernel is tested, or none",
    )
    group.addoption(
        "--no-known-issues",
        action="store_true",
        help="let known issues fail (kernels/known_issues.toml)",
    )
    group.addoption(
        "--artifacts",
        metavar="DIR",
        help="where the evidence of every test goes (default .hostfault/runs/<time>)",
    )
    group.addoption(
        "--artifacts-overwrite",
        action="store_true",
        help="let --artifacts hold an earlier run: the folders of tests that run are replaced",
    )
    group.addoption(
        "--hide-passes",
        action="store_true",
        help="leave passes out of the table at the end",
    )


def from_config(config: pytest.Config) -> Settings:
    """The settings of a run. Raises :class:`hostfault.plumbing.errors.UsageError`."""
    required = tuple(config.getoption("--require"))
    check_names(required)
    artifacts = config.getoption("--artifacts")
    return Settings(
        host=config.getoption("--host"),
        host_kernel=config.getoption("--host-kernel"),
        guest_kernel=config.getoption("--guest-kernel"),
        qemu=config.getoption("--qemu"),
        accept=config.getoption("--accept"),
        require=required,
        known_issues=not config.getoption("--no-known-issues"),
        artifacts=config.invocation_params.dir / artifacts if artifacts else None,
        overwrite=config.getoption("--artifacts-overwrite"),
        hide_passes=config.getoption("--hide-passes"),
    )
