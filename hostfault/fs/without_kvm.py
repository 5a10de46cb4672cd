"""A host without its KVM: on this machine TCG runs the guest itself.

It gives no verdict about any KVM. But the mount, the back-end and the guest are the same, and a
guest is many times faster than in an emulated host.
"""

from __future__ import annotations

from functools import cached_property

from hostfault.host.local import LocalHost
from hostfault.host.testbed import Added, Host
from hostfault.run.lab import Lab

SHARE_SIZE = 2 << 30  # bytes; without room for a page that a guest maps, TCG ends by SIGBUS

# After those that name KVM and less memory, too little for fstests.
_QEMU_OPTIONS = (
    *("-object", "memory-backend-memfd,id=room,size=1536M,share=on", "-m", "1536"),
    *("-machine", "accel=tcg,memory-backend=room", "-cpu", "max"),
)


class LabWithoutKvm(Lab):
    """A lab that has that host alone."""

    @cached_property
    def host(self) -> Host:
        """The host; what runs there keeps its user, as suites have the guest's root give files."""
        added = Added(
            qemu_options=_QEMU_OPTIONS,
            guest_append=("loglevel=7",),  # a lost guest's kernel has told its console why
            virtiofsd=self._virtiofsd_line(),
            share_size=SHARE_SIZE,
            keep_user=True,
        )
        return LocalHost(self._qemu, self._guest_kernel, self._guest_image, self._identity, added)
