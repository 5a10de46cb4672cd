"""Sends ``kcidb.json`` over the HTTP API of KernelCI's database."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from hostfault.plumbing.errors import ConnectionLostError, UsageError

TOKEN = "KCIDB_TOKEN"  # noqa: S105 (the name of a variable)
PATIENCE = 60.0  # seconds
_HERE = ("localhost", "127.0.0.1", "::1")


def submit(url: str, data: str, environment: Mapping[str, str]) -> str:
    """Send it; returns what was answered, in a line.

    The token comes from the environment, and never goes over an open line or into a message.
    Raises :class:`UsageError` without one, :class:`ConnectionLostError` if it is not taken.
    """
    token = environment.get(TOKEN, "").strip()
    parts = urlsplit(url)
    if not token:
        raise UsageError(f"--submit: ${TOKEN} is not set; KernelCI gives out the tokens")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _HERE):
        raise UsageError(f"--submit {url}: needs https, the token is a secret")
    request = urllib.request.Request(  # noqa: S310 (looked at just above)
        url,
        data=data.encode(),
        method="POST",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        # Without redirections: the token is for this server alone.
        with urllib.request.build_opener(_Stay).open(request, timeout=PATIENCE) as answer:
            words = answer.read(500).decode(errors="replace").strip()
            return f"submitted to {parts.hostname}: {answer.status} {words}"
    except urllib.error.HTTPError as error:
        words = error.read(500).decode(errors="replace").strip()
        raise ConnectionLostError(f"--submit {url}: {error.code} {words}") from error
    except OSError as error:
        raise ConnectionLostError(f"--submit {url}: {error}") from error


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """None: the answer is an error."""
