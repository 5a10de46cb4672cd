"""What a person asked for, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import STOCK, Verdict, VerdictKind

PRELOADED = ("mce", "stop")  # by a library in the guest's QEMU: see images/vmm-policy
# By QEMU itself, and what its memory backends' option on-unbacked is then: see images/qemu.
ON_UNBACKED = {"qemu-stop": "stop", "qemu-mce": "mce", "qemu-auto": "auto"}
VMM_POLICIES = (STOCK, *PRELOADED, *ON_UNBACKED)
CPUS = ("amd", "intel")  # that an emulated host can have: from QEMU, from Bochs
TREE = "tree:"  # begins a name of a kernel or a QEMU that is a source tree


@dataclass(frozen=True)
class Settings:
    """The options of a run; None means "find out": the lab resolves it."""

    host: str = "auto"  # "auto" | "local" | "emulated" | "ssh://..."
    host_console: str = ""  # a file, or a command, that shows the console of one over SSH
    cpu: str = CPUS[0]  # of an emulated host, if it is emulated itself
    host_kernel: str | None = None  # a name, a path, ...; None: the newest of the catalog
    guest_kernel: str | None = None  # the same
    qemu: str = "image"  # "image" | "system" | a path | NAME+SERIES | "tree:PATH"
    virtiofsd: tuple[str, ...] = ()  # program and options of a back-end in place of ours
    vmm_policy: str = STOCK  # of VMM_POLICIES: what is done about a page that KVM cannot back
    accept: str = (
        "vm"  # "vm": an exit that stops the VM will do; "task": only an error for the task
    )
    require: tuple[str, ...] = ()  # capabilities whose absence is an error
    known_issues: bool = True  # whether kernels/known_issues.toml applies
    artifacts: Path | None = None  # None: a new directory in .hostfault/runs
    overwrite: bool = False  # whether `artifacts` may hold an earlier run
    seed: int = 0  # of what accesses leave to chance
    hide_passes: bool = False  # whether the table leaves out what is as it should be
    qemu_options: tuple[str, ...] = ()  # words added to the command line of the guest's QEMU
    guest_append: tuple[str, ...] = ()  # words added to the guest kernel's command line
    host_append: tuple[str, ...] = ()  # ... to that of an emulated host's kernel
    kvm_options: tuple[str, ...] = ()  # parameters of its KVM, as "npt=0" or "kvm.tdp_mmu=0"

    @property
    def builds_qemu(self) -> bool:
        """Whether the guest's QEMU is one that is built here."""
        return self.qemu.startswith(TREE) or ("+" in self.qemu and "/" not in self.qemu)

    def accepts(self, verdict: Verdict) -> bool:
        """Whether a test whose host cannot back the page passes with that verdict.

        ``ok`` passes too: then the host could back the page after all.
        """
        if verdict.kind is VerdictKind.VM_EXIT:
            return self.accept == "vm"
        return verdict.kind in (VerdictKind.TASK_ERROR, VerdictKind.OK)
