"""A guest that is to run a guest of its own: it loads its KVM only then, for that takes seconds."""

from __future__ import annotations

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import MissingCapabilityError
from hostfault.remote.shell import Shell

LATER = "/modules/later"  # the guest's list of modules that are not loaded at boot
PATIENCE = 60.0  # seconds that loading may take; on a busy machine it has taken six
_LOAD = (
    f"while read -r file _; do insmod /modules/$file || break; done <{LATER}; "
    "[ -c /dev/kvm ] || { dmesg | grep -i kvm | tail -n 1; false; }"
)


def load_kvm(guest: Shell, deadline: Deadline) -> None:
    """Have the guest load its KVM; its /dev/kvm is there afterwards.

    Raises :class:`MissingCapabilityError` with its kernel's last word if that does not come to be.
    """
    answer = guest.run(_LOAD, deadline)
    if answer.code:
        words = " ".join(answer.text.split())
        raise MissingCapabilityError(
            "nested-virtualization",
            f"the guest has no KVM ({words}): its kernel needs kvm-amd, and the host's kvm_amd "
            "the parameter nested=1",
        )
