"""Trees that become an initramfs.

The format is that of Documentation/driver-api/early-userspace/buffer-format.rst: a cpio archive
of type "newc". It is left uncompressed: unpacking costs an emulated CPU more than reading.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from hostfault.image.programs import applets_of
from hostfault.kernel.modules import Module, decompress
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.ssh_keys import Identity


def lay_out(
    tree: Path,
    *,
    root: Path,
    folders: Iterable[str],
    modules: Sequence[Module],
    flags: Mapping[str, str],
    identity: Identity,
) -> None:
    """Fill ``tree`` with what every initramfs has.

    That is: busybox from the image at ``root`` under all its names, empty ``folders``, the keys,
    and the modules with ``modules/order``, whose lines say ``FILE FLAG``: ``flags`` has the CPU
    flag without which a module (named as :attr:`Module.needed_for`) is useless, ``-`` is none.
    """
    for folder in ("bin", "modules", "identity", *folders):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "usr/bin/busybox", tree / "bin/busybox")
    for applet in applets_of(root):
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    add_modules(tree, modules, "order", flags)
    shutil.copy(identity.host_key, tree / "identity" / "host_key")
    (tree / "identity" / "authorized_keys").write_text(identity.client_public + "\n")
    (tree / "identity").chmod(0o700)


def add_modules(
    tree: Path,
    modules: Sequence[Module],
    order: str,
    flags: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Add modules to ``tree``, and in ``modules/`` a file that lists them: see :func:`lay_out`."""
    lines = []
    for module in modules:
        decompress(module.file, tree / "modules" / module.name)
        lines.append(f"{module.name} {flags.get(module.needed_for, '-')}\n")
    (tree / "modules" / order).write_text("".join(lines))


def pack(tree: Path, archive: Path) -> None:
    """Write a tree as a cpio archive in which all belongs to root.

    Raises :class:`LaunchError` with cpio's last words.
    """
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    line = ["cpio", "--create", "--null", "--quiet", "--reproducible", "--format=newc"]
    run_tool(
        [*line, "--owner=0:0", f"--file={archive}"],
        what="packing an initramfs",
        cwd=tree,
        input_text="".join(f"{name}\0" for name in names),
    )
