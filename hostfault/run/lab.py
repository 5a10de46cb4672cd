"""The lab: everything of a run that cases share, and the way of one case from beginning to end."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hostfault.backing import BACKINGS, Backing
from hostfault.case import folder as files
from hostfault.case import known_issues
from hostfault.case.model import (
    GuestImage,
    HostImage,
    Kernel,
    Observation,
    Qemu,
    Scenario,
    to_json,
)
from hostfault.case.record import LabFacts, Record
from hostfault.case.settings import PRELOADED, Settings
from hostfault.case.verdict import final_verdict
from hostfault.condition import CONDITIONS
from hostfault.guest.policy import VmmPolicy
from hostfault.host.bochs import CPU as BOCHS_CPU
from hostfault.host.choice import Choice, MachineFacts, choose, forced
from hostfault.host.emulated import (
    PAYLOAD,
    QEMU,
    VIRTIOFSD,
    EmulatedHost,
    GuestQemu,
    payload,
)
from hostfault.host.local import LocalHost
from hostfault.host.outer import OuterSpec
from hostfault.host.outer_qemu import MachineSpec, module_parameters
from hostfault.host.preflight import (
    NESTED_INTEL,
    cpu_facts,
    nesting_allowed,
    why_no_tracing,
    why_not,
)
from hostfault.host.qemu import built_qemu, environment_of, find_qemu
from hostfault.host.testbed import ATTEMPTS, Added, Host, Testbed, keep_logs
from hostfault.host.virtiofsd import find_virtiofsd, in_words
from hostfault.image import guest_image, host_image, host_initramfs
from hostfault.image.bundle import qemu_bundle
from hostfault.image.qemu import BuiltQemu, build_qemu
from hostfault.image.vmm_policy import build_policy
from hostfault.kernel import resolve
from hostfault.kernel.catalog import newest
from hostfault.plumbing.cache import Cache, default_cache
from hostfault.plumbing.errors import GuestLostError, MissingCapabilityError
from hostfault.plumbing.short_directory import sweep_short_directories
from hostfault.plumbing.ssh_keys import Identity, identity
from hostfault.run.arm import arm
from hostfault.run.intel import intel_machine
from hostfault.run.observe import observe

if TYPE_CHECKING:
    from hostfault.host.remote import RemoteHost

log = logging.getLogger(__name__)

# Bytes of each kind that the cache keeps, oldest out; a snapshot takes some 320 MB. What
# is built from source has its limits in kernel/build.py, and there is one identity for ever.
CACHE_LIMITS = {
    "machines": 8 << 30,
    "host-initramfs": 1 << 30,
    "guest-images": 1 << 30,
    "host-images": 2 << 30,
    "qemu-bundles": 128 << 20,
    "bochs": 512 << 20,
    "bochs-boot": 256 << 20,
    "kernels": 3 << 30,
    "packages": 512 << 20,
    "site-packages": 128 << 20,
    "probe": 16 << 20,
    "crowd": 16 << 20,
    "vmm-policy.so": 16 << 20,
    "bochs-preload.so": 16 << 20,
    "bochs-start.bin": 16 << 20,
    "say": 16 << 20,
    "kvm-probe": 16 << 20,
}


class Lab:
    """Prepares kernels, images and the host once, then runs cases. A context manager."""

    def __init__(self, settings: Settings, cache: Cache | None = None) -> None:
        self._settings = settings
        self._cache = cache or default_cache()
        self._stack = ExitStack()
        self._outer_machines: dict[str, OuterSpec] = {}  # by backing
        self._guest_images: dict[tuple[tuple[str, ...], ...], GuestImage] = {}  # by modules

    def __enter__(self) -> Lab:
        sweep_short_directories()
        self._stack.callback(self._cache.close)
        self._stack.callback(self._trim)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def run(self, test: str, scenario: Scenario, folder: Path) -> Record:
        """One case; ``folder`` gets everything that was recorded.

        An emulated CPU loses a guest now and then: that is tried again, in a fresh fork. Raises a
        :class:`~hostfault.plumbing.errors.HostfaultError` for harness trouble.
        """
        for attempt in range(1, ATTEMPTS):
            try:
                return self._run_once(test, scenario, folder)
            except GuestLostError as error:
                log.info("attempt %d: %s; trying again", attempt, error)
                _put_aside(folder, f"lost-{attempt}")
        return self._run_once(test, scenario, folder)

    def _run_once(self, test: str, scenario: Scenario, folder: Path) -> Record:
        """One case, from beginning to end."""
        facts = self.facts()  # the host was chosen, see host/choice.py
        with self.testbed(scenario, folder) as testbed:
            log.info("arming the probe")
            armed = arm(testbed, scenario, self._settings.seed)
            testbed.watch.lap("arm")
            log.info("watching the access")
            observation = observe(testbed, armed)  # injects the fault, gives the word, samples
            testbed.watch.lap("touch to verdict")
            _keep(observation, folder)
            CONDITIONS[scenario.condition].prove_held(testbed, observation)
            log.info("ending the guest")
        testbed.watch.lap("tear-down")
        return Record(
            test=test,
            facts=facts,
            settings=self._settings,
            observation=observation,
            verdict=final_verdict(observation),
            phases=testbed.watch.phases,
            cached=testbed.cached,
            issue=known_issues.match(
                self._issues,
                facts.host_kernel,
                scenario,
                guest=facts.guest_kernel,
                vmm_policy=facts.vmm_policy,
            ),
            folder=folder,
        )

    @contextmanager
    def testbed(self, scenario: Scenario, folder: Path) -> Iterator[Testbed]:
        """A fresh guest for one case; its logs are in ``folder`` afterwards, however it went."""
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            testbed = stack.enter_context(self.host.testbed(scenario, folder))
            stack.callback(keep_logs, testbed.agent, testbed.backing, testbed.policy, folder)
            yield testbed

    def facts(self) -> LabFacts:
        """What the run stands on; the first call may take minutes."""
        # First what may be mistyped, then what takes minutes.
        back_end = "" if self._virtiofsd is None else in_words(self._virtiofsd)
        if self._settings.host_kernel:
            log.info("the host kernel is %s", self._host_kernel.release)
        emulated = self.choice.kind == "emulated"
        if emulated:  # its kernels and images are had now, outside of any test's time
            self._outer_machine(self._plainest)
        release, cpu, microcode = self._machine_facts()
        return LabFacts(
            host_kind=self.choice.kind,
            host_reason=self.choice.reason,
            host_kernel=self._host_kernel if emulated else None,
            host_release=release,
            host_cpu=cpu,
            host_microcode=microcode,
            guest_kernel=self._guest_kernel,
            qemu=self._qemu,
            vmm_policy=self._settings.vmm_policy,
            back_end=back_end,
        )

    def _machine_facts(self) -> tuple[str, str, str]:
        """The host's release, and its CPU's model and microcode; leases a machine over SSH."""
        if self.choice.kind == "emulated":
            cpu = BOCHS_CPU if self._settings.cpu == "intel" else ""
            return self._host_kernel.release, cpu, ""
        if self.choice.kind == "ssh":
            found = self._remote_host.machine.facts
            return found.release, found.cpu, found.microcode
        return platform.release(), *cpu_facts()

    @cached_property
    def choice(self) -> Choice:
        """Which host, and why. May boot a guest on this machine's KVM to find out."""
        if choice := forced(self._settings):
            return choice
        why_not_kvm = self._why_not_kvm
        return choose(
            self._settings, MachineFacts(why_not_kvm, "" if why_not_kvm else why_no_tracing())
        )

    @cached_property
    def host(self) -> Host:
        """The host that cases run on."""
        if self.choice.kind == "ssh":
            return self._remote_host
        if self.choice.kind == "local":
            return LocalHost(
                self._qemu, self._guest_kernel, self._guest_image, self._identity, self._added
            )
        return EmulatedHost(
            self._outer_machine,
            self._identity,
            self._cache,
            self._added,
            self._qemu_in_the_host,
        )

    @cached_property
    def _added(self) -> Added:
        settings, library = self._settings, self._policy_library
        emulated = self.choice.kind == "emulated"
        where = "" if library is None else f"{PAYLOAD}/{library.name}" if emulated else str(library)
        policy = VmmPolicy(settings.vmm_policy, where)
        place = f"{PAYLOAD}/{VIRTIOFSD}" if emulated else ""
        virtiofsd = self._virtiofsd_line(place)
        return Added(settings.qemu_options, settings.guest_append, policy, virtiofsd)

    def _virtiofsd_line(self, place: str = "") -> tuple[str, ...]:
        """The command line of a back-end in place of ours, which is on the host at ``place``.

        "" for the same place as here. Empty if ours serves.
        """
        if self._virtiofsd is None:
            return ()
        return (place or str(self._virtiofsd), *self._settings.virtiofsd[1:])

    @cached_property
    def _virtiofsd(self) -> Path | None:
        """The back-end that was named in place of ours, on this machine; None: ours serves."""
        words = self._settings.virtiofsd
        return find_virtiofsd(words[0]) if words else None

    @cached_property
    def _remote_host(self) -> RemoteHost:
        # Only here: paramiko takes a tenth of a second to import.
        from hostfault.host.remote import Console, RemoteFiles, RemoteHost
        from hostfault.remote.openssh import Target

        target = Target.parse(self._settings.host)
        files = RemoteFiles(
            qemu=qemu_bundle(self._cache, self._host_image),
            kernel=self._guest_kernel,
            image_for=self._guest_image,
        )
        console = Console(self._settings.host_console)
        host = RemoteHost(target, self._qemu, files, self._identity, self._added, console)
        return self._stack.enter_context(host)

    def _outer_machine(self, backing: Backing) -> OuterSpec:
        """The machine that an emulated host is; it carries the guest of a backing."""
        if backing.name not in self._outer_machines:
            self._outer_machines[backing.name] = self._make_outer_machine(backing)
        return self._outer_machines[backing.name]

    def _make_outer_machine(self, backing: Backing) -> OuterSpec:
        if self._qemu.source != "image":  # the image's is known to have what a backing needs
            backing.require(self._qemu, environment_of(self._qemu))
        guest = self._guest_image(backing)
        built = self._built_qemu
        programs = (self._policy_library, built.program if built else None)
        more = [each for each in programs if each is not None]
        load = payload(
            self._guest_kernel.image, guest.initramfs, self._identity, more, self._virtiofsd
        )
        if self._settings.cpu == "intel":
            return self._in_bochs(load)
        return self._in_qemu(load)

    def _in_qemu(self, load: Mapping[str, Path]) -> MachineSpec:
        initramfs = host_initramfs(
            self._cache, self._host_kernel, self._host_image, self._identity, load
        )
        accelerated = nesting_allowed() and not self._why_not_kvm
        intel = accelerated and NESTED_INTEL.exists()  # TCG emulates an AMD machine
        return MachineSpec(
            qemu=self._outer_qemu,
            image=self._host_image,
            kernel=self._host_kernel,
            initramfs=initramfs,
            accelerator="kvm" if accelerated else "tcg",
            append=self._host_append("kvm_intel" if intel else "kvm_amd"),
        )

    def _in_bochs(self, load: Mapping[str, Path]) -> OuterSpec:
        return intel_machine(
            self._cache,
            self._host_kernel,
            self._host_image,
            self._identity,
            load,
            self._host_append("kvm_intel"),
        )

    def _host_append(self, vendor: str) -> tuple[str, ...]:
        """What a person added to the command line of an emulated host's kernel."""
        settings = self._settings
        return (*settings.host_append, *module_parameters(settings.kvm_options, vendor))

    @cached_property
    def _policy_library(self) -> Path | None:
        """What is preloaded into the guest's QEMU, on this machine; None for a stock one."""
        if self._settings.vmm_policy not in PRELOADED:
            return None
        return build_policy(self._cache)

    def _trim(self) -> None:
        """Keep what grows with every change of the project or of a kernel within bounds."""
        for kind, limit in CACHE_LIMITS.items():
            if self._cache.has_grown(kind):
                self._cache.prune(kind, limit)

    @cached_property
    def _issues(self) -> tuple[known_issues.KnownIssue, ...]:
        return known_issues.load() if self._settings.known_issues else ()

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
        log.info("looking for kernel %s", name or newest())
        return resolve(name or newest(), self._cache)

    @cached_property
    def _host_image(self) -> HostImage:
        log.info("looking for the host image")
        return host_image(self._cache)

    def _guest_image(self, backing: Backing) -> GuestImage:
        needs = (backing.guest_modules, backing.guest_programs)
        if needs not in self._guest_images:
            log.info("looking for the guest image")
            self._guest_images[needs] = guest_image(
                self._cache, self._guest_kernel, self._host_image, self._identity, *needs
            )
        return self._guest_images[needs]

    @cached_property
    def _qemu(self) -> Qemu:
        """The one that runs the guest."""
        choice = self._settings.qemu
        if self._built_qemu is not None:
            return built_qemu(choice, self._built_qemu, self._host_image)
        return find_qemu(choice, self._host_image if choice == "image" else None)

    @cached_property
    def _outer_qemu(self) -> Qemu:
        """The one that emulates a host: the image's, whatever is tested."""
        if self._qemu.source == "image":
            return self._qemu
        return find_qemu("image", self._host_image)

    @property
    def _qemu_in_the_host(self) -> GuestQemu:
        """The guest's QEMU as an emulated host has it."""
        built = self._built_qemu
        if built is None:
            return GuestQemu(QEMU)
        return GuestQemu(f"{PAYLOAD}/{built.program.name}", built.build_id)

    @cached_property
    def _built_qemu(self) -> BuiltQemu | None:
        """The guest's QEMU, if it is one that is built here."""
        if not self._settings.builds_qemu:
            return None
        log.info("looking for QEMU %s", self._settings.qemu)
        return build_qemu(self._settings.qemu, self._cache)

    @property
    def _plainest(self) -> Backing:
        """The first backing that the guest's QEMU can do."""
        for backing in BACKINGS:
            with suppress(MissingCapabilityError):
                if self._qemu.source != "image":
                    backing.require(self._qemu, environment_of(self._qemu))
                return backing
        raise AssertionError("every QEMU can do one")

    @cached_property
    def _why_not_kvm(self) -> str:
        log.info("trying to boot a guest on /dev/kvm")
        plainest = self._guest_image(next(iter(BACKINGS)))
        return why_not(self._qemu, self._guest_kernel, plainest, self._cache)


def _keep(observation: Observation, folder: Path) -> None:
    """Write what was seen into the test's folder; also if it proves nothing."""
    samples = [json.dumps(to_json(sample)) for sample in observation.samples]
    texts = {
        files.SAMPLES: "\n".join(samples),
        files.REGISTERS: observation.registers,
        files.HOST_KERNEL_LOG: observation.host_log,
        files.PROBE: "\n".join(observation.probe.steps),
        files.OBSERVATION: json.dumps(to_json(observation), indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def _put_aside(folder: Path, name: str) -> None:
    """Move what an attempt has left into a folder of its own."""
    left = [path for path in folder.iterdir() if not path.name.startswith("lost-")]
    (folder / name).mkdir()
    for path in left:
        path.rename(folder / name / path.name)
