"""What a person asked for, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import STOCK, Verdict, VerdictKind

VMM_POLICIES = (STOCK, "mce", "stop")  # see images/vmm-policy


@dataclass(frozen=True)
class Settings:
    """The options of a run; None means "find out": the lab resolves it."""

    host: str = "auto"  # "auto" | "local" | "emulated" | "ssh://..."
    host_console: str = ""  # a file, or a command, that shows the console of one over SSH
    host_kernel: str | None = None  # a name, a path, ...; None: the newest of the catalog
    guest_kernel: str | None = None  # the same
    qemu: str = "image"  # "image" | "system" | a path
    virtiofsd: tuple[str, ...] = ()  # program and options of a back-end in place of ours
    vmm_policy: str = STOCK  # of VMM_POLICIES: what is done about a page that KVM cannot back
    accept: str = (
        "vm"  # "vm": an exit that stops the VM will do; "task": only an error for the task
    )
    require: tuple[str, ...] = ()  # capabilities whose absence is an error
    known_issues: bool = True  # whether kernels/known_issues.toml applies
    artifacts: Path | None = None  # None: a new directory in .hostfault/runs
    overwrite: bool = False  # whether `artifacts` may hold an earlier run
    hide_passes: bool = False  # whether the table leaves out what is as it should be
    qemu_options: tuple[str, ...] = ()  # words added to the command line of the guest's QEMU
    guest_append: tuple[str, ...] = ()  # words added to the guest kernel's command line
    host_append: tuple[str, ...] = ()  # ... to that of an emulated host's kernel
    kvm_options: tuple[str, ...] = ()  # parameters of its KVM, as "npt=0" or "kvm.tdp_mmu=0"

    def accepts(self, verdict: Verdict) -> bool:
        """Whether a test whose host cannot back the page passes with that verdict.

        ``ok`` passes too: then the host could back the page after all.
        """
        if verdict.kind is VerdictKind.VM_EXIT:
            return self.accept == "vm"
        return verdict.kind in (VerdictKind.TASK_ERROR, VerdictKind.OK)
