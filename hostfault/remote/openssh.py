"""SSH to a machine of a lab, as OpenSSH's own configuration says.

Host name, port, user, keys, known hosts and proxies come from ssh_config(5), read by paramiko. A
host key that is not known is an error whatever that file says: nobody is asked here.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import paramiko

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, SetupError, UsageError

SCHEME = "ssh"
SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
PORT = 22
KEEPALIVE = 15  # seconds between two signs of life


@dataclass(frozen=True)
class Target:
    """A machine as a person names it: ``ssh://[user@]machine[:port]``."""

    machine: str  # perhaps a Host of ssh_config(5)
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises :class:`UsageError`."""
        try:
            parts = urlsplit(text)
            machine, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"--host {text}: {error}") from error
        more = parts.path.strip("/") or parts.query or parts.fragment or parts.password
        if parts.scheme != SCHEME or not machine or more:
            raise UsageError(f"--host {text}: give ssh://[user@]machine[:port]")
        return cls(machine, parts.username, port)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        machine = f"[{self.machine}]" if ":" in self.machine else self.machine
        return f"{SCHEME}://{user}{machine}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class Way:
    """What ssh_config(5) makes of a target."""

    address: str
    port: int
    user: str
    keys: tuple[str, ...]  # files; empty: the usual ones, and the agent's
    known_hosts: tuple[Path, ...]
    alias: str  # under which the host's key is known
    proxy_command: str
    proxy_jump: str
    agent: bool  # whether keys of ssh-agent(1) may be offered, too

    @property
    def known_as(self) -> str:
        """The name of a host in known_hosts(5), as sshd(8) describes it."""
        return self.alias or _known_name(self.address, self.port)


def way_to(target: Target, home: Path | None = None, system: Path = SYSTEM_CONFIG) -> Way:
    """Read the configuration. Raises :class:`UsageError` if it cannot be understood."""
    ssh = (home or Path.home()) / ".ssh"
    found = _lookup(target, ssh / "config", system)
    names = str(found.get("userknownhostsfile", "")).split()
    user_files = [Path(name).expanduser() for name in names] or [
        ssh / "known_hosts",
        ssh / "known_hosts2",
    ]
    return Way(
        address=str(found.get("hostname", target.machine)),
        port=target.port or int(found.get("port", PORT)),
        user=target.user or str(found.get("user", "") or getpass.getuser()),
        keys=tuple(str(Path(name).expanduser()) for name in found.get("identityfile", ())),
        known_hosts=(*user_files, SYSTEM_KNOWN_HOSTS),
        alias=str(found.get("hostkeyalias", "")),
        proxy_command=_unless_none(found.get("proxycommand")),
        proxy_jump=_unless_none(found.get("proxyjump")),
        agent=str(found.get("identitiesonly", "no")).lower() != "yes",
    )


def _lookup(target: Target, *files: Path) -> Mapping[str, Any]:
    """The first file's word counts, as ssh(1) has it; the second begins a section of its own."""
    texts = []
    for file in files:
        with suppress(FileNotFoundError):
            texts.append(file.read_text())
    try:
        found: Mapping[str, Any] = paramiko.SSHConfig.from_text("\nHost *\n".join(texts)).lookup(
            target.machine
        )
    except paramiko.ConfigParseError as error:
        raise UsageError(f"{' and '.join(map(str, files))}: {error}") from error
    return found


def _unless_none(value: object) -> str:
    return "" if value is None or str(value).lower() == "none" else str(value)


def open_connection(target: Target, deadline: Deadline) -> paramiko.SSHClient:
    """Connect and log in.

    Raises :class:`SetupError` that says what to do, for what only a person can mend, and
    :class:`ConnectionLostError` for a machine that cannot be reached.
    """
    way = way_to(target)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    for file in way.known_hosts:
        with suppress(FileNotFoundError):
            client.load_host_keys(str(file))
    _know_by_alias(client, way)
    try:
        _connect(client, way, deadline)
    except BaseException as error:
        client.close()
        if explained := _explained(target, way, error):
            raise explained from error
        raise
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(KEEPALIVE)
    return client


def _connect(client: paramiko.SSHClient, way: Way, deadline: Deadline) -> None:
    patience = max(1.0, deadline.left())
    client.connect(
        way.address,
        way.port,
        way.user,
        key_filename=cast("Any", list(way.keys) or None),  # a list will do
        look_for_keys=not way.keys,
        allow_agent=way.agent,
        timeout=patience,
        banner_timeout=patience,
        auth_timeout=patience,
        sock=_proxy(way, deadline),
    )


def _know_by_alias(client: paramiko.SSHClient, way: Way) -> None:
    """Paramiko asks for the address; ssh_config(5) may know the key by another name."""
    keys = client.get_host_keys()
    known = keys.lookup(way.known_as)
    if way.alias and known is not None:
        for kind, key in known.items():
            keys.add(_known_name(way.address, way.port), kind, key)


def _known_name(address: str, port: int) -> str:
    return address if port == PORT else f"[{address}]:{port}"


def _proxy(way: Way, deadline: Deadline) -> Any:
    """What carries the connection in place of TCP: a command, or another machine."""
    if way.proxy_jump:
        *before, last = way.proxy_jump.split(",")
        if before:
            raise UsageError(f"ProxyJump {way.proxy_jump}: one jump is possible, use ProxyCommand")
        jump = Target.parse(last if "://" in last else f"{SCHEME}://{last}")
        transport = open_connection(jump, deadline).get_transport()
        assert transport is not None
        return transport.open_channel("direct-tcpip", (way.address, way.port), ("", 0))
    return paramiko.ProxyCommand(way.proxy_command) if way.proxy_command else None


def _explained(target: Target, way: Way, error: BaseException) -> Exception | None:
    """The error that says what a person can do; None for one that is not SSH's."""
    where = f"{target} ({way.user}@{way.address}, port {way.port})"
    match error:
        case paramiko.BadHostKeyException():
            return SetupError(f"{where}: its host key is another than the known one: {error}")
        case paramiko.AuthenticationException():
            keys = ", ".join(way.keys) or "the usual ones in ~/.ssh"
            return SetupError(f"{where}: refuses our keys ({keys}): {error}")
        case paramiko.SSHException() if "not found in known_hosts" in str(error):
            files = ", ".join(map(str, _existing(way.known_hosts))) or "no known_hosts at all"
            return SetupError(
                f"{where}: its host key is not known ({files}); log in once with ssh and compare it"
            )
        case paramiko.SSHException() | EOFError() | OSError():
            return ConnectionLostError(
                f"{where}: cannot be reached: {error or type(error).__name__}"
            )
    return None


def _existing(files: tuple[Path, ...]) -> Iterator[Path]:
    return (file for file in files if file.exists())
