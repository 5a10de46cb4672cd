"""The command-line options, and the settings that they amount to."""

from __future__ import annotations

import secrets
import shlex

import pytest

from hostfault.case.capabilities import check_names
from hostfault.case.model import STOCK
from hostfault.case.settings import CPUS, VMM_POLICIES, Settings
from hostfault.plugin import sets
from hostfault.plugin.workers import number_of, workers_of
from hostfault.plumbing.errors import UsageError

KINDS = ("auto", "local", "emulated")
OVER_SSH = "ssh://"
SEEDS = 1 << 32


def add_options(parser: pytest.Parser) -> None:
    """Register the command-line options."""
    group = parser.getgroup("hostfault", "faults of the host under a KVM guest")
    _add_machines(group)
    _add_words(group)
    _add_outcomes(group)
    _add_evidence(group)
    _add_chance(group)
    group.addoption(
        "--set",
        default=sets.DEFAULT,
        metavar="NAME",
        help=f"which set of ci/matrix.toml tests/matrix runs (default {sets.DEFAULT})",
    )


def _add_machines(group: pytest.OptionGroup) -> None:
    """Which host, kernels and QEMU."""
    group.addoption(
        "--host",
        action="append",
        default=[],
        metavar="|".join((*KINDS, "ssh://[USER@]MACHINE[:PORT]")),
        help="where the KVM under test runs (default auto: local if a guest boots on /dev/kvm); "
        "several machines for pytest-xdist, one a worker",
    )
    group.addoption(
        "--host-console",
        default="",
        metavar="FILE|COMMAND",
        help="what shows the console of a host over SSH: a file, or a command that prints it",
    )
    group.addoption(
        "--cpu",
        choices=CPUS,
        default=CPUS[0],
        help="whose CPU an emulated host has, and so which half of KVM is tested "
        f"(default {CPUS[0]}; intel: in Bochs)",
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
        metavar="image|system|PATH|NAME+SERIES|tree:PATH",
        help="the QEMU to test (default image: the one in the host image); one with a series of "
        "images/qemu/patches, or a source tree, is built here",
    )
    group.addoption(
        "--virtiofsd",
        default="",
        metavar="PROGRAM [OPTIONS]",
        help="a virtiofs back-end in place of ours, with a DAX window by vhost-user; it is given "
        "--socket-path, --shared-dir and --tag",
    )
    group.addoption(
        "--vmm-policy",
        choices=VMM_POLICIES,
        default=STOCK,
        help="what the guest's QEMU does about a page that KVM reports (default stock: as QEMU "
        "does; mce: a machine check for the guest; stop: the vCPU waits and tries again; "
        "qemu-stop, qemu-mce, qemu-auto: QEMU's own, by a memory backend's on-unbacked)",
    )


def _add_words(group: pytest.OptionGroup) -> None:
    """What is added to command lines."""
    for option, what in (
        ("--qemu-option", "the command line of the guest's QEMU"),
        ("--guest-append", "the command line of the guest's kernel"),
        ("--host-append", "the command line of an emulated host's kernel"),
        ("--kvm-option", "the parameters of an emulated host's KVM, as npt=0 or kvm.tdp_mmu=0"),
    ):
        group.addoption(
            option,
            action="append",
            default=[],
            metavar="WORDS",
            help=f"add words, split as a shell does, to {what}; may be repeated",
        )


def _add_outcomes(group: pytest.OptionGroup) -> None:
    """What passes, fails or is skipped."""
    group.addoption(
        "--accept",
        choices=("vm", "task"),
        default="vm",
        help="what passes: an exit that stops the VM, too (default), or only an error for the task",
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


def _add_chance(group: pytest.OptionGroup) -> None:
    """What is left to chance."""
    group.addoption(
        "--seed",
        type=int,
        default=secrets.randbelow(SEEDS),
        metavar="N",
        help="of what the access storm leaves to chance (default: another one each time; it is in "
        "verdict.json, among the options)",
    )


def _add_evidence(group: pytest.OptionGroup) -> None:
    """What is kept and shown."""
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
    sets.load().check(config.getoption("--set"))
    artifacts = config.getoption("--artifacts")
    return Settings(
        host=_host(config),
        host_console=config.getoption("--host-console"),
        cpu=config.getoption("--cpu"),
        host_kernel=config.getoption("--host-kernel"),
        guest_kernel=config.getoption("--guest-kernel"),
        qemu=config.getoption("--qemu"),
        virtiofsd=tuple(shlex.split(config.getoption("--virtiofsd"))),
        vmm_policy=config.getoption("--vmm-policy"),
        accept=config.getoption("--accept"),
        require=required,
        known_issues=not config.getoption("--no-known-issues"),
        artifacts=config.invocation_params.dir / artifacts if artifacts else None,
        overwrite=config.getoption("--artifacts-overwrite"),
        seed=config.getoption("--seed") % SEEDS,
        hide_passes=config.getoption("--hide-passes"),
        qemu_options=_words(config, "--qemu-option"),
        guest_append=_words(config, "--guest-append"),
        host_append=_words(config, "--host-append"),
        kvm_options=_words(config, "--kvm-option"),
    )


def _host(config: pytest.Config) -> str:
    """The host of this process: with pytest-xdist each worker has a machine of its own.

    Raises :class:`UsageError`.
    """
    asked: list[str] = config.getoption("--host")
    machines = [each for each in asked if each.startswith(OVER_SSH)]
    if unknown := [each for each in asked if each not in (*KINDS, *machines)]:
        raise UsageError(
            f"--host {unknown[0]}: give {', '.join(KINDS)} or ssh://[user@]machine[:port]"
        )
    if not machines:
        return asked[-1] if asked else KINDS[0]
    if len(machines) != len(asked) or len(set(machines)) != len(machines):
        raise UsageError(f"--host: several hosts are several machines over SSH, not {asked}")
    number, workers = number_of(config), workers_of(config)
    if number is not None:  # one that is started anew gets the machine of the one that died
        return machines[number % len(machines)]
    if workers != len(machines):
        raise UsageError(
            f"--host: {len(machines)} machines and {workers} workers: each has its own, so give "
            f"-n {len(machines)} (pytest-xdist)"
        )
    return machines[0]


def _words(config: pytest.Config, option: str) -> tuple[str, ...]:
    """The words of an option that may be repeated."""
    return tuple(word for each in config.getoption(option) for word in shlex.split(each))
