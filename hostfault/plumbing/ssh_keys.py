"""The SSH keys with which the harness and its own machines know each other.

Made once for each cache, on this machine: a guest under emulation would take seconds for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hostfault.plumbing.cache import Cache, key_of

_ALGORITHM = b"ssh-ed25519"


@dataclass(frozen=True)
class Identity:
    """Two key pairs: the client's, and one that all hosts and guests share."""

    client_key: Path  # private, in OpenSSH's format: for paramiko.Ed25519Key and for ssh -i
    client_public: str  # the line for authorized_keys
    host_key: Path  # private, in dropbear's format
    host_public: str  # "ssh-ed25519 AAAA...": what a server must prove to be
    client_key_dropbear: Path  # the client's private key again, in dropbear's format: for dbclient
    known_hosts: Path  # for dbclient on a host, to whom the guest is 127.0.0.1


def identity(cache: Cache) -> Identity:
    """The keys of this cache, made on first use."""
    place = cache.obtain("identity", key_of({"format": "2"}), _make)
    return Identity(
        client_key=place / "client_key",
        client_public=(place / "client_key.pub").read_text().strip(),
        host_key=place / "host_key",
        host_public=(place / "host_key.pub").read_text().strip(),
        client_key_dropbear=place / "client_key.dropbear",
        known_hosts=place / "known_hosts",
    )


def _make(place: Path) -> None:
    client, host = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    _secret(
        place / "client_key",
        client.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
    )
    _secret(place / "host_key", dropbear_key(host))
    _secret(place / "client_key.dropbear", dropbear_key(client))
    (place / "client_key.pub").write_text(f"{_public_line(client)} hostfault\n")
    (place / "host_key.pub").write_text(f"{_public_line(host)}\n")
    (place / "known_hosts").write_text(f"127.0.0.1 {_public_line(host)}\n")


def dropbear_key(key: Ed25519PrivateKey) -> bytes:
    """A key in dropbear's own file format: two SSH strings (RFC 4251, section 5).

    They are the algorithm's name, and the private followed by the public half.
    """
    private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    halves = private + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return b"".join(struct.pack(">I", len(each)) + each for each in (_ALGORITHM, halves))


def _public_line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
