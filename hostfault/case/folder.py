"""The files of a test's folder: every name, and what is in it.

What a backing leaves besides is in its own ``logs``.
"""

from __future__ import annotations

from collections.abc import Mapping

VERDICT = "verdict.json"
OBSERVATION = "observation.json"
ERROR = "error.txt"
PROBE = "probe.jsonl"
SAMPLES = "samples.jsonl"
REGISTERS = "registers.txt"
HOST_KERNEL_LOG = "host-kernel.log"
GUEST_CONSOLE = "guest-console.log"
GUEST_QEMU_LOG = "guest-qemu.log"
VMM_POLICY_LOG = "vmm-policy.jsonl"
GUEST_QMP = "guest-qmp.jsonl"
HOST_SERIAL = "host-serial.log"
HOST_QEMU_LOG = "host-qemu.log"
HOST_QMP = "host-qmp.jsonl"
HOST_BOCHS_LOG = "host-bochs.log"
AGENT_LOG = "agent.log"

FILES: Mapping[str, str] = {
    VERDICT: "the verdict, its evidence, and everything that it stands on",
    ERROR: "in place of a verdict: trouble of the harness",
    PROBE: "what the guest task reported, step by step; `touching` at the end: not returned",
    SAMPLES: "one line each 20 ms or more: faults by gfn and RIP, statistics, CPU time, run state",
    REGISTERS: "the vCPUs at the end; `RIP` is where the task stands, `CPL=3` means in user space",
    HOST_KERNEL_LOG: "what the host's kernel logged from the fault on; empty if nothing",
    GUEST_CONSOLE: "the guest's console",
    GUEST_QEMU_LOG: "what the guest's QEMU printed",
    VMM_POLICY_LOG: "with `--vmm-policy`: what was done about exits of KVM_RUN, one line each",
    GUEST_QMP: "every message to and from the guest's QEMU, with times",
    HOST_SERIAL: "emulated host: its console, from its boot on",
    HOST_QEMU_LOG: "emulated host: the outer QEMU's command line and what it printed",
    HOST_QMP: "emulated host: messages to and from the outer QEMU",
    HOST_BOCHS_LOG: "emulated host, `--cpu intel`: Bochs's command line and what it logged",
    AGENT_LOG: "local host, and over SSH: what the agent printed",
    OBSERVATION: "everything that the verdict was made of",
}
"""In the order of docs/debugging.md, which has the same table."""
