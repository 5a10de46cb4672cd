"""The preloaded VMM policy: how it is started, proven, and what is read of its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from hostfault.case.folder import VMM_POLICY_LOG
from hostfault.case.model import VmmDeed
from hostfault.guest.policy import AS_IT_IS, VmmPolicy, deeds
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError, SetupError

MCE = VmmPolicy("mce", "/run/policy.so")
LOADED = '{"did": "loaded", "n": 1, "at": 1.0, "thread": 7, "policy": "mce"}\n'


class PretendedAgent:
    """A host on which the policy's log says something, or cannot be had."""

    def __init__(self, said: str | HostfaultError) -> None:
        self.said = said

    def read(self, path: str) -> tuple[str, int]:
        assert path == VMM_POLICY_LOG
        if isinstance(self.said, HostfaultError):
            raise self.said
        return self.said, len(self.said)


def prove(policy: VmmPolicy, said: str | HostfaultError) -> None:
    policy.prove(cast("Any", PretendedAgent(said)))


def test_a_stock_qemu_gets_the_environment_as_it_is() -> None:
    assert AS_IT_IS.environment({"PATH": "/bin"}, "/run") == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "/run/policy.so"), ({"LD_PRELOAD": "/its.so"}, "/run/policy.so:/its.so")],
)
def test_the_library_is_preloaded_before_what_the_caller_preloads(
    before: Mapping[str, str], after: str
) -> None:
    assert MCE.environment(before, "/there") == {
        "LD_PRELOAD": after,
        "HOSTFAULT_VMM_POLICY": "mce",
        "HOSTFAULT_VMM_LOG": f"/there/{VMM_POLICY_LOG}",
    }


def test_a_library_that_has_said_its_policy_is_proven() -> None:
    prove(MCE, LOADED)


@pytest.mark.parametrize(
    "said", ["", LOADED.replace("mce", "stop"), "ld.so: no such file\n", HostfaultError("no file")]
)
def test_a_qemu_without_its_policy_is_a_setup_error(said: str | HostfaultError) -> None:
    with pytest.raises(SetupError, match="without the policy mce"):
        prove(MCE, said)


def test_a_stock_qemu_needs_no_proof() -> None:
    prove(AS_IT_IS, HostfaultError("no file"))


def test_a_lost_connection_is_not_mistaken_for_a_missing_library() -> None:
    with pytest.raises(ConnectionLostError):
        prove(MCE, ConnectionLostError("the agent hung up"))


def test_deeds_are_read_and_what_else_a_line_says_is_kept() -> None:
    text = (
        '{"did": "injected", "n": 3, "at": 1, "gpa": 4096, "flags": 2, "vendor": "amd"}\n'
        '{"did": "held", "n": 4, "at": 2, "gpa": 8192, "flags": 0, "tries": 8}\n'
    )
    assert deeds(text) == (
        VmmDeed("injected", 3, 4096, 2, words="vendor amd"),
        VmmDeed("held", 4, 8192, tries=8),
    )


@pytest.mark.parametrize(
    "line",
    [
        'd": "held", "n": 4}',  # the end of a cut line
        "[1]",
        '{"did": 7, "n": 1}',
        '{"did": "held"}',
        '{"did": "held", "n": true}',
        '{"did": "held", "n": 1, "gpa": "0x1000"}',
    ],
)
def test_a_line_that_the_library_cannot_have_written_is_left_out(line: str) -> None:
    assert deeds(line + "\n" + LOADED) == (VmmDeed("loaded", 1, words="policy mce"),)
