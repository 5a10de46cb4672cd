"""A shell in a booted test bed: a fork of the snapshot, gone without a trace when it ends."""

from __future__ import annotations

import argparse
import os
import select
import shlex
import shutil
import signal
import sys
import tempfile
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import paramiko

from hostfault.backing import BACKINGS
from hostfault.case.model import Scenario
from hostfault.case.settings import CPUS, Settings
from hostfault.case.words import last_line
from hostfault.host.testbed import Testbed
from hostfault.plumbing.errors import ConnectionLostError, UsageError
from hostfault.plumbing.program import end_with
from hostfault.plumbing.progress import heard_by
from hostfault.remote.ssh import SshShell
from hostfault.run.lab import Lab

LOOK = 1.0  # seconds of silence after which one looks whether the machines live
TROUBLE = 255  # exit code of ours, as ssh has it; others are the command's


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line, boot or fork, and hand over; returns the exit code."""
    options = _parser().parse_args(words)
    with tempfile.TemporaryDirectory(prefix="hostfault-shell-") as folder:
        return _in_testbed(options, Path(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ci/shell", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--guest", action="store_true", help="in the guest, L2 (the default)")
    where.add_argument("--host", action="store_true", help="in the emulated host, L1")
    add = parser.add_argument
    add("--run", metavar="COMMAND", help="run that instead of a shell; its exit code is ours")
    add("--host-kernel", metavar="KERNEL", help="as for ci/dax")
    add("--guest-kernel", metavar="KERNEL", help="as for ci/dax")
    names = [backing.name for backing in BACKINGS]
    add("--backing", choices=names, default=names[0], help="default: %(default)s")
    add("--no-async-pf", action="store_true", help="boot the guest with no-kvmapf")
    add("--vcpus", type=int, default=1, metavar="N", help="of the guest (default 1)")
    add("--local", action="store_true", help="the guest on this machine's own KVM")
    add("--cpu", choices=CPUS, default=CPUS[0], help="as for ci/dax (default %(default)s)")
    for name in ("--qemu-option", "--guest-append", "--host-append", "--kvm-option"):
        add(name, action="append", default=[], metavar="WORDS", help="as for ci/dax")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        host="local" if options.local else "emulated",
        cpu=options.cpu,
        host_kernel=options.host_kernel,
        guest_kernel=options.guest_kernel,
        qemu_options=_words(options.qemu_option),
        guest_append=_words(options.guest_append),
        host_append=_words(options.host_append),
        kvm_options=_words(options.kvm_option),
    )


def _in_testbed(options: argparse.Namespace, folder: Path) -> int:
    scenario = Scenario(options.backing, "none", "load", not options.no_async_pf, options.vcpus)
    with ExitStack() as stack:
        with heard_by(_say):
            lab = stack.enter_context(Lab(_settings(options)))
            lab.facts()
            testbed = stack.enter_context(lab.testbed(scenario, folder))
        return _hand_over(testbed, options)


def _hand_over(testbed: Testbed, options: argparse.Namespace) -> int:
    log_in = testbed.log_in_to_host if options.host else testbed.log_in_to_guest
    if log_in is None:
        raise UsageError("--host: a local host is this machine; you are there already")
    shell = log_in(testbed.deadline(30.0, "SSH"))
    try:
        if options.run is not None:
            return _run(shell, options.run, testbed)
        if not sys.stdin.isatty():
            raise UsageError("no terminal: use --run COMMAND")
        print(_greeting(options))
        return _interact(shell)
    finally:
        shell.close()


def _greeting(options: argparse.Namespace) -> str:
    guest = f"in the guest (L2): backing {options.backing}, the probe is /bin/probe"
    host = (
        "in the emulated host (L1): the agent's files are in /run/hostfault/run,\n"
        "KVM's tracepoints in /sys/kernel/tracing/events/kvm"
    )
    return f"\n{host if options.host else guest}\nCtrl-D ends it; nothing of it stays\n"


def _run(shell: SshShell, command: str, testbed: Testbed) -> int:
    """Run a command, with its output as it comes; returns its exit code.

    It may be silent for as long as the machines live; raises :class:`HostfaultError` if one ends.
    """
    with shell.open(command, testbed.deadline(30.0, "the command to start")) as channel:
        channel.settimeout(LOOK)
        while True:
            try:
                data = channel.recv(65536)
            except TimeoutError:
                _check_alive(testbed)
                continue
            if not data:
                return channel.recv_exit_status()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _check_alive(testbed: Testbed) -> None:
    if (ended := testbed.host.ended()) is not None:
        raise ConnectionLostError(f"the emulated host has ended: {last_line(ended.words)}")
    if any(event.name == "GUEST_PANICKED" for event in testbed.recorder.events()):
        raise ConnectionLostError("the guest has panicked")


def _interact(shell: SshShell) -> int:
    """Connect this terminal to a shell there until it ends; returns its exit code."""
    size = shutil.get_terminal_size()
    term = os.environ.get("TERM", "linux")
    with shell.open_terminal(term, size.columns, size.lines) as channel, _raw(sys.stdin.fileno()):
        signal.signal(signal.SIGWINCH, lambda *_: _resize(channel))
        while True:
            readable, _, _ = select.select([channel, sys.stdin], [], [])
            if channel in readable:
                data = channel.recv(65536)
                if not data:
                    return channel.recv_exit_status()
                os.write(sys.stdout.fileno(), data)
            if sys.stdin in readable:
                typed = os.read(sys.stdin.fileno(), 4096)
                if not typed:
                    return 0
                channel.sendall(typed)


def _resize(channel: paramiko.Channel) -> None:
    size = shutil.get_terminal_size()
    channel.resize_pty(size.columns, size.lines)


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Hand every key on as it is typed; the terminal is as before at the end (termios(3))."""
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _words(options: list[str]) -> tuple[str, ...]:
    return tuple(word for each in options for word in shlex.split(each))


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr)


if __name__ == "__main__":
    end_with(main, "ci/shell", trouble=TROUBLE)
