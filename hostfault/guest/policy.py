"""What the guest's VMM does about a page that KVM cannot back: the preloaded library's other half.

The library is images/vmm-policy/policy.c; what it logs is read here. QEMU holds the log open, and
a guest that owned QEMU could write to it: lines that are none of ours are left out, and no verdict
rests on the log alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hostfault.case.folder import VMM_POLICY_LOG
from hostfault.case.model import STOCK, VmmDeed
from hostfault.case.settings import ON_UNBACKED, PRELOADED
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError, SetupError
from hostfault.remote.agent import Agent


@dataclass(frozen=True)
class VmmPolicy:
    """Which policy, and where on the host its library is."""

    name: str = STOCK  # one of hostfault.case.settings.VMM_POLICIES
    library: str = ""  # a path on the host; "": QEMU runs without one

    @property
    def preloaded(self) -> bool:
        """Whether it is the library's, and not QEMU's own."""
        return self.name in PRELOADED

    @property
    def on_unbacked(self) -> str:
        """What QEMU's own memory backend is to do; "" for a QEMU as it is."""
        return ON_UNBACKED.get(self.name, "")

    def environment(self, base: Mapping[str, str], directory: str) -> dict[str, str]:
        """The environment of a QEMU with this policy; its log is in the agent's directory."""
        if not self.preloaded:
            return dict(base)
        return {
            **base,
            "LD_PRELOAD": ":".join(filter(None, (self.library, base.get("LD_PRELOAD")))),
            "HOSTFAULT_VMM_POLICY": self.name,
            "HOSTFAULT_VMM_LOG": f"{directory}/{VMM_POLICY_LOG}",
        }

    @property
    def logs(self) -> tuple[str, ...]:
        """The files that it leaves in the agent's directory."""
        return (VMM_POLICY_LOG,) if self.preloaded else ()

    def prove(self, agent: Agent) -> None:
        """Check that the library is at work: a loader that cannot load one only warns.

        Raises :class:`SetupError` otherwise, for a verdict would be about another VMM.
        """
        if not self.preloaded:
            return
        try:
            said = _objects(agent.read(VMM_POLICY_LOG)[0])
        except ConnectionLostError:
            raise
        except HostfaultError as error:
            raise SetupError(f"QEMU runs without the policy {self.name}: {error}") from error
        if not any(each.get("policy") == self.name for each in said):
            raise SetupError(f"QEMU runs without the policy {self.name}: its log does not name it")


AS_IT_IS = VmmPolicy()


def deeds(text: str) -> tuple[VmmDeed, ...]:
    """What the library did, from (the end of) its log."""
    return tuple(_deed(each) for each in _objects(text) if _is_deed(each))


def _objects(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except ValueError:  # the first line of an end is cut
            continue
        if isinstance(said, dict):
            yield said


def _is_deed(said: Mapping[str, Any]) -> bool:
    numbers = [said.get("n"), said.get("gpa", 0), said.get("flags", 0), said.get("tries", 0)]
    return isinstance(said.get("did"), str) and all(type(each) is int for each in numbers)


def _deed(said: Mapping[str, Any]) -> VmmDeed:
    return VmmDeed(
        did=said["did"],
        number=said["n"],
        gpa=said.get("gpa"),
        flags=said.get("flags", 0),
        tries=said.get("tries", 0),
        words=_words(said),
    )


def _words(said: Mapping[str, Any]) -> str:
    """What a line says besides: why something was handed on, the vendor, ..."""
    known = {"did", "n", "at", "thread", "gpa", "flags", "tries"}
    rest = {name: value for name, value in said.items() if name not in known}
    return ", ".join(f"{name} {value}" for name, value in rest.items())
