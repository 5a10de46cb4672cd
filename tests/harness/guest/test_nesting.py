"""A guest that is to run a guest, pretended: what becomes of it if it cannot."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hostfault.guest import nesting
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import MissingCapabilityError
from hostfault.remote.shell import Answer


class Guest:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked = ""

    def run(self, command: str, _deadline: Deadline) -> Answer:
        self.asked = command
        return self.answer


def load(guest: Guest) -> None:
    nesting.load_kvm(cast("Any", guest), Deadline(1.0, "nothing"))


def test_a_guest_loads_its_kvm_from_the_list_that_its_image_has() -> None:
    guest = Guest(Answer(0, ""))
    load(guest)
    assert f"<{nesting.LATER};" in guest.asked


def test_a_guest_without_kvm_is_a_missing_capability_with_its_kernels_word() -> None:
    guest = Guest(Answer(1, "[ 1.0] kvm_amd: SVM not supported by CPU 0\n"))
    with pytest.raises(MissingCapabilityError, match=r"nested-virtualization: .*SVM not supp"):
        load(guest)
