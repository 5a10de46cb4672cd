"""QEMU: which one, and how to start it."""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from hostfault.case.model import HostImage, Qemu
from hostfault.image.programs import loader_argv
from hostfault.image.qemu import PROGRAM, BuiltQemu
from hostfault.plumbing.errors import LaunchError, UsageError
from hostfault.plumbing.process import run

log = logging.getLogger(__name__)

_START_PATIENCE = 30.0  # seconds for a QEMU that only prints something
_SANDBOX = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
_VERSION = re.compile(r"QEMU emulator version (\d+(?:\.\d+)*)")


def built_qemu(choice: str, built: BuiltQemu, host_image: HostImage) -> Qemu:
    """A QEMU that was built here; its libraries and firmware are the host image's.

    Raises :class:`LaunchError` if it does not start.
    """
    loader = loader_argv(host_image.root, f"usr/bin/{PROGRAM}")[:-1]
    qemu = Qemu(choice, "not known yet", (*loader, str(built.program)), built.build_id)
    return replace(qemu, version=_version(qemu))


def find_qemu(choice: str, host_image: HostImage | None) -> Qemu:
    """The QEMU that ``choice`` names: ``image``, ``system`` or a path to a binary.

    ``image`` is the host image's QEMU, run by the image's own loader. Raises
    :class:`UsageError` if there is no such QEMU or what was named is none, :class:`LaunchError`
    if the image's does not start.
    """
    if choice == "image":
        if host_image is None:
            raise UsageError("--qemu image needs the host image, and there is none")
        argv = loader_argv(host_image.root, f"usr/bin/{PROGRAM}")
    elif choice == "system":
        argv = (_from_path(PROGRAM, "--qemu system"),)
    elif "/" in choice:
        argv = (_from_path(choice, f"--qemu {choice}"),)
    else:
        raise UsageError(f"--qemu {choice}: give image, system, or a path with a slash in it")
    qemu = Qemu(choice, "not known yet", argv)
    try:
        return replace(qemu, version=_version(qemu))
    except LaunchError as error:
        if choice == "image":
            raise
        raise UsageError(f"--qemu {choice}: not a QEMU that runs here\n{error}") from error


def _from_path(program: str, asked: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise UsageError(
            f"{asked}: no such program; install it (Debian: apt-get install qemu-system-x86), "
            "or use --qemu image, which needs no installation"
        )
    return str(Path(found).absolute())


def environment_of(qemu: Qemu) -> dict[str, str]:
    """The whole environment to start a QEMU with.

    The image's, and one that was built here, gets none of the caller's: QEMU_MODULE_DIR, LD_PRELOAD
    and their like would let files of the machine in. A QEMU that the caller names may need them.
    """
    if qemu.source == "image" or qemu.build_id:
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
    return dict(os.environ)


def confinement(qemu: Qemu, user: int | None) -> tuple[str, ...]:
    """Options that take from a QEMU what it does not need, before its guest runs.

    A filter for system calls (``-sandbox``, seccomp), and with ``user`` that it becomes that
    user, and the group of the same number, once it has opened what it needs. Then the filter has
    to let it change its user, which it can no longer do once it is nobody and has no capability.
    Raises :class:`UsageError` for a QEMU that cannot change its user.
    """
    known = run(
        [*qemu.argv, "--help"], what="QEMU", timeout=_START_PATIENCE, env=environment_of(qemu)
    )
    words: tuple[str, ...] = ()
    if "\n-sandbox " in known:
        words += ("-sandbox", _SANDBOX + (",elevateprivileges=deny" if user is None else ""))
    else:
        log.info("this QEMU was built without seccomp: it runs without -sandbox")
    if user is None:
        return words
    if "user=" not in known.partition("\n-run-with ")[2].partition("\n-")[0]:
        raise UsageError(
            f"--qemu {qemu.source}: this QEMU {qemu.version} cannot give up root's rights "
            "(-run-with user=): run as an ordinary user in the group kvm, or use --qemu image"
        )
    return (*words, "-run-with", f"user={user}:{user}")


def _version(qemu: Qemu) -> str:
    line = [*qemu.argv, "--version"]
    said = run(line, what="QEMU", timeout=_START_PATIENCE, env=environment_of(qemu))
    match = _VERSION.search(said)
    if match is None:
        raise LaunchError("QEMU names no version: is this QEMU? It", line, 0, said)
    return match[1]
