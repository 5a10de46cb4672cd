"""The lab: everything of a run that tests share, and the one call that runs a case."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType

from hostfault.case.model import (
    GuestImage,
    HostImage,
    Kernel,
    Observation,
    Qemu,
    Scenario,
    to_json,
)
from hostfault.case.verdict import final_verdict
from hostfault.host.emulated import EmulatedHost, payload, sweep_short_directories
from hostfault.host.local import LocalHost
from hostfault.host.outer_qemu import MachineSpec
from hostfault.host.preflight import why_no_tracing, why_not
from hostfault.host.qemu import find_qemu, require_shared_memory_device
from hostfault.host.testbed import Host, Place, Stopwatch, keep_logs
from hostfault.image import guest_image, host_image, host_initramfs
from hostfault.kernel import resolve
from hostfault.kernel.catalog import newest
from hostfault.plugin.options import Settings
from hostfault.plumbing.cache import Cache, default_cache
from hostfault.plumbing.deadline import now
from hostfault.plumbing.errors import MissingCapabilityError, UsageError
from hostfault.plumbing.ssh_keys import Identity, identity
from hostfault.run.interface import LabFacts, Run
from hostfault.run.observe import arm, observe

Say = Callable[[str], None]
NESTED = ("/sys/module/kvm_intel/parameters/nested", "/sys/module/kvm_amd/parameters/nested")

# Bytes of each kind that the cache keeps, oldest out; a saved machine takes some 320 MB. What
# is built from source has its limits in kernel/build.py, and there is one identity for ever.
CACHE_LIMITS = {
    "machines": 8 << 30,
    "host-initramfs": 1 << 30,
    "guest-images": 1 << 30,
    "host-images": 2 << 30,
    "kernels": 3 << 30,
    "packages": 512 << 20,
    "site-packages": 128 << 20,
    "probe": 16 << 20,
    "crowd": 16 << 20,
    "kvm-probe": 16 << 20,
}


class Lab:
    """Prepares kernels, images and the host once, then runs cases. A context manager."""

    def __init__(self, settings: Settings, say: Say, cache: Cache | None = None) -> None:
        self._settings = settings
        self._say = say
        self._cache = cache or default_cache()
        self._stack = ExitStack()

    def __enter__(self) -> Lab:
        sweep_short_directories()
        self._stack.callback(self._cache.close)
        self._stack.callback(self._trim)
        self._stack.enter_context(_builders_heard(self._say))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def facts(self) -> LabFacts:
        """What the run stands on; the first call may take minutes."""
        if self._settings.host_kernel:  # first what may be mistyped, then what takes minutes
            resolved = self._host_kernel
            self._say(f"the host kernel is {resolved.release}")
        host, _ = self._host_and_reason
        emulated = host.kind == "emulated"
        return LabFacts(
            host_kind=host.kind,
            host_reason=self._host_and_reason[1],
            host_kernel=self._host_kernel if emulated else None,
            host_release=self._host_kernel.release if emulated else platform.release(),
            guest_kernel=self._guest_kernel,
            qemu=self._qemu,
        )

    def host(self) -> Host:
        """The host that cases run on; the first call may take minutes."""
        return self._host_and_reason[0]

    def run(self, scenario: Scenario, folder: Path) -> Run:
        """Run one case; ``folder`` gets everything that was recorded.

        Raises a :class:`~hostfault.plumbing.errors.HostfaultError` for harness trouble.
        """
        with ExitStack() as stack:
            place = stack.enter_context(self.place(scenario, folder))
            watch = Stopwatch(place.phases)
            self._say("arming the probe")
            armed = arm(place, scenario)
            watch.lap("arm")
            self._say("watching the touch")
            observation = observe(place, scenario, armed)
            watch.lap("touch to verdict")
            _keep_observation(observation, folder)
            verdict = final_verdict(observation)
            self._say("ending the guest")
            ending = now()
        phases = {**place.phases, "tear-down": now() - ending}
        return Run(observation, verdict, phases, place.cached)

    @contextmanager
    def place(self, scenario: Scenario, folder: Path) -> Iterator[Place]:
        """A fresh guest for one case; its logs are in ``folder`` afterwards, however it went."""
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            place = stack.enter_context(self._host_and_reason[0].place(scenario, folder))
            stack.callback(keep_logs, place.agent, folder)
            yield place

    def _trim(self) -> None:
        """Keep what grows with every change of the project or of a kernel within bounds."""
        for kind, limit in CACHE_LIMITS.items():
            self._cache.prune(kind, limit)

    @cached_property
    def _identity(self) -> Identity:
        return identity(self._cache)

    @cached_property
    def _host_kernel(self) -> Kernel:
        return self._resolve(self._settings.host_kernel)

    @cached_property
    def _guest_kernel(self) -> Kernel:
        return self._resolve(self._settings.guest_kernel)

    def _resolve(self, name: str | None) -> Kernel:
        self._say(f"looking for kernel {name or newest()}")
        return resolve(name or newest(), self._cache)

    @cached_property
    def _host_image(self) -> HostImage:
        self._say("looking for the host image")
        return host_image(self._cache)

    @cached_property
    def _guest_image(self) -> GuestImage:
        self._say("looking for the guest image")
        return guest_image(self._cache, self._guest_kernel, self._host_image, self._identity)

    @cached_property
    def _qemu(self) -> Qemu:
        choice = self._settings.qemu
        image = self._host_image if choice == "image" else None
        qemu = find_qemu(choice, image)
        require_shared_memory_device(qemu)
        return qemu

    @cached_property
    def _host_and_reason(self) -> tuple[Host, str]:
        wanted = self._settings.host
        if wanted == "local" and self._settings.host_kernel:
            raise UsageError(
                "--host-kernel needs an emulated host: a local one runs the kernel that it runs. "
                "Leave out --host local, or --host-kernel"
            )
        if "kvm" in self._settings.require and (wanted == "emulated" or self._settings.host_kernel):
            raise UsageError(
                "--require kvm wants this machine's own kernel to be tested: "
                "leave out --host emulated and --host-kernel, or --require kvm"
            )
        if wanted == "emulated":
            return self._emulated(), "asked for with --host emulated"
        if self._settings.host_kernel:
            return self._emulated(), "--host-kernel boots in one"
        missing = self._missing_for_local()
        if missing is None:
            return self._local(), "a guest boots on /dev/kvm"
        if wanted == "local" and missing.capability == "kvm":
            raise UsageError(f"--host local: {missing.reason}; --host emulated needs no KVM")
        if wanted == "local":
            raise missing
        if "kvm" in self._settings.require:
            raise MissingCapabilityError("kvm", missing.reason)
        return self._emulated(), missing.reason

    def _missing_for_local(self) -> MissingCapabilityError | None:
        """What this machine lacks to be a local host; None if it will do."""
        if self._why_not_kvm:
            return MissingCapabilityError("kvm", f"no usable /dev/kvm: {self._why_not_kvm}")
        untraceable = why_no_tracing()
        return MissingCapabilityError("tracing", untraceable) if untraceable else None

    @cached_property
    def _why_not_kvm(self) -> str:
        self._say("trying to boot a guest on /dev/kvm")
        return why_not(self._qemu, self._guest_kernel, self._guest_image, self._cache)

    def _local(self) -> Host:
        return LocalHost(
            self._qemu, self._guest_kernel, self._guest_image, self._identity, self._say
        )

    def _emulated(self) -> Host:
        if self._settings.qemu != "image":
            raise UsageError(
                "--qemu needs a local host: in an emulated host the QEMU of its image runs the "
                "guests. Leave --qemu out, or use --host local"
            )
        load = payload(self._guest_kernel.image, self._guest_image.initramfs)
        initramfs = host_initramfs(
            self._cache, self._host_kernel, self._host_image, self._identity, load
        )
        spec = MachineSpec(
            qemu=self._qemu,
            image=self._host_image,
            kernel=self._host_kernel,
            initramfs=initramfs,
            accelerator="kvm" if _nesting() and not self._why_not_kvm else "tcg",
        )
        return EmulatedHost(spec, self._identity, self._cache, self._say)


class _Heard(logging.Handler):
    """Shows what the builders of kernels and images log."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Show one message."""
        self._say(record.getMessage())


@contextmanager
def _builders_heard(say: Say) -> Iterator[None]:
    """Show what is logged below "hostfault" while the block lasts."""
    logger, handler = logging.getLogger("hostfault"), _Heard(say)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _nesting() -> bool:
    """Whether this machine's KVM lets a guest be a KVM host."""
    paths = [Path(name) for name in NESTED]
    return any(path.exists() and path.read_text().strip() in ("1", "Y") for path in paths)


def _keep_observation(observation: Observation, folder: Path) -> None:
    """Write what was seen into the test's folder."""
    samples = [json.dumps(to_json(sample)) for sample in observation.samples]
    texts = {
        "samples.jsonl": "\n".join(samples),
        "registers.txt": observation.registers,
        "host-kernel.log": observation.host_log,
        "probe.jsonl": "\n".join(observation.probe.steps),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
