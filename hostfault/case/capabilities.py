"""Capabilities that a machine may lack: a skip, or under ``--require`` an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hostfault.plumbing.errors import UsageError

CAPABILITIES: Mapping[str, str] = {
    "shared-memory-device": "a QEMU of 11.1 or newer, built with vhost-user-test-device-pci",
    "memory-backend": "for --vmm-policy qemu-...: a backing that is a memory backend of QEMU's",
    "tracing": "on a local host: tracefs, mounted, and the right to count KVM's tracepoints",
    "tmpfs": "on a local host: root's right to mount a tmpfs, for guest memory or to be filled",
    "emulated-host": "that the kernel under test runs in an emulated host, which may be harmed",
    "uffd-poison": "a host's kernel with UFFDIO_POISON, which came with Linux 6.6",
    "cgroup": "a host's kernel with the memory and the hugetlb controller of cgroup2",
    "loop": "a host's kernel with CONFIG_BLK_DEV_LOOP",
    "vhost-net": "a host's kernel with CONFIG_TUN and CONFIG_VHOST_NET",
    "nested-virtualization": "guests in a guest: kvm-amd of its kernel, nested=1 of the host's",
    "ivshmem": "a QEMU that was built with ivshmem-plain",
    "qemu-trace": "a QEMU that was built with its trace events, for the condition dirty-log",
    "kvm": "that this machine's own kernel is tested, not one in an emulated host",
}
"""The names that ``--require`` takes, and what each of them stands for."""

ALL = "all"
"""Under ``--require all`` no test may be skipped for a missing capability.

For want of ``kvm`` none is skipped: the kernel under test runs in an emulated host instead. So
that one has to be named.
"""


def check_names(required: Collection[str]) -> None:
    """Raise :class:`UsageError` for a name that no test asks for.

    A name spelt wrong would let a runner go green by skipping.
    """
    for name in required:
        if name not in CAPABILITIES and name != ALL:
            known = "\n".join(f"  {key}: {text}" for key, text in CAPABILITIES.items())
            raise UsageError(f"--require {name}: no such capability; there are\n{known}\n  {ALL}")
