"""An emulated host as the machine of a lab, which is reached by nothing but SSH.

Its Python, its /dev/kvm and its SSH server (dropbear) are its own; nothing of ours is on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.folder import HOST_SERIAL
from hostfault.host import outer_qemu as host_machine
from hostfault.host.outer_qemu import MachineSpec, Sockets
from hostfault.host.qemu import find_qemu
from hostfault.image import host_image, host_initramfs
from hostfault.kernel import resolve
from hostfault.kernel.catalog import newest
from hostfault.plumbing.cache import default_cache
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.short_directory import short_directory
from hostfault.plumbing.ssh_keys import identity
from hostfault.remote.agent import Agent
from hostfault.remote.ssh import SshShell, connect

PROJECT = Path(__file__).parents[2]
NAME = "lab-machine"  # in our ssh_config(5)
PAYLOAD_OF_ITS_OWN = "python"  # its init wants an agent; the suite's is brought along anyway
LEFT = (
    "ls -d /tmp/hostfault-* /var/tmp/hostfault-* 2>/dev/null; "
    "busybox ps -o pid,args | "
    "busybox grep -E '[h]ostfault-guest|[h]ostfault.daxfs|[h]ostfault.agent.relay|[k]eeper'"
)


@dataclass(frozen=True)
class LabMachine:
    """One that runs."""

    shell: SshShell  # of root's, to look at it
    folder: Path  # its console is in there
    ssh: Path  # the socket behind which its SSH server is
    environment: Mapping[str, str]  # for programs that are to find it by ssh_config(5)

    @property
    def console(self) -> Path:
        return self.folder / HOST_SERIAL

    def left(self) -> str:
        """What of a run is on it; the words of the agent that its init starts are not."""
        return self.shell.run(LEFT, Deadline(20.0, "ls")).text.strip()

    def pytest(self, *options: str) -> subprocess.CompletedProcess[str]:
        return pytest_from(self.environment, "--host", f"ssh://{NAME}", *options)


def pytest_from(environment: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """The project's pytest on this machine, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done


@contextmanager
def lab_machine(folder: Path) -> Iterator[LabMachine]:
    """One, for the length of the block; ``folder`` is its own."""
    folder.mkdir(exist_ok=True)
    cache = default_cache()
    keys = identity(cache)
    kernel = resolve(newest(), cache)
    image = host_image(cache)
    package = PROJECT / "hostfault"
    ours = [package / "__init__.py", *(package / "agent").glob("*.py")]
    load = {f"{PAYLOAD_OF_ITS_OWN}/hostfault/{each.relative_to(package)}": each for each in ours}
    initramfs = host_initramfs(cache, kernel, image, keys, load)
    spec = MachineSpec(find_qemu("image", image), image, kernel, initramfs, "tcg")
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        machine = stack.enter_context(host_machine.start(spec, directory, folder, incoming=False))
        machine.boot(Deadline(120.0, "the lab machine to boot"))
        Agent(machine.agent, timeout=60.0).hello()
        ssh = Sockets.below(directory).host_ssh
        shell = connect(NAME, ssh, keys, Deadline(60.0, "SSH of the lab machine"))
        stack.callback(shell.close)
        yield LabMachine(shell, folder, ssh, configured(folder / "home", {NAME: ssh}))


def configured(home: Path, machines: Mapping[str, Path]) -> dict[str, str]:
    """An environment with an ssh_config(5) for machines behind Unix sockets."""
    keys = identity(default_cache())
    (home / ".ssh").mkdir(parents=True)
    relay = f"env PYTHONPATH={PROJECT} {sys.executable} -P -m hostfault.agent.relay"
    sections = [
        f"Host {name}\n  User root\n  IdentityFile {keys.client_key}\n  IdentitiesOnly yes\n"
        f"  HostKeyAlias {name}\n  ProxyCommand {relay} {path}\n"
        for name, path in machines.items()
    ]
    (home / ".ssh/config").write_text("".join(sections))
    known = [f"{name} {keys.host_public}\n" for name in machines]
    (home / ".ssh/known_hosts").write_text("".join(known))
    return {**os.environ, "HOME": str(home), "HOSTFAULT_CACHE": str(default_cache().root)}
