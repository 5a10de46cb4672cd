"""What Debian has beside a packaged kernel: its source and its headers, made into a base."""

from __future__ import annotations

import logging
import re
import shutil
import tarfile
from pathlib import Path

from hostfault.case.model import Kernel
from hostfault.kernel.buildroot import BuildRoot, build_root, suite_for
from hostfault.kernel.catalog import CatalogEntry
from hostfault.kernel.choose import packaged
from hostfault.kernel.fetch import mirror, unpack
from hostfault.kernel.kvm_only import LAYOUT, Base, keep_needed, prepare
from hostfault.kernel.source import (
    Manifest,
    digest_of,
    is_unused,
    link_digest,
    write_manifest,
)
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import CacheMissError, SetupError

log = logging.getLogger(__name__)

MANIFEST = "manifest"  # the file in a base's directory; see hostfault.kernel.source
# Code that neither the configuration nor `make modules_prepare` nor KVM reads.
_NOT_NEEDED = re.compile(
    r"(?:drivers|fs|net|sound)/.*\.(?:[chS]|rs|dtsi?)$"
    r"|(?:crypto|block|io_uring|ipc|lib|mm|rust|security)/.*\.(?:c|rs)$"
    r"|kernel/(?!bounds\.c)(?!time/)(?!.*offsets\.c).*\.c$"
)
_BANNER = re.compile(rb" Debian (\S+) \(\d{4}-\d\d-\d\d\)")


def package_version(image: Path) -> str:
    """The version of the Debian package that a bzImage is from, by its version string.

    Raises :class:`SetupError` if it does not say.
    """
    with image.open("rb") as stream:
        found = _BANNER.search(stream.read(0x10000))
    if found is None:
        raise SetupError(f"kernel {image} does not say which Debian package it is from")
    return found[1].decode()


def upstream_version(image: Path) -> str:
    """The kernel's own version in that: "7.3.4" of "7.3.4-1~bpo13+1"."""
    return package_version(image).split("-")[0]


def packaged_base(entry: CatalogEntry, cache: Cache) -> Base:
    """A packaged kernel, ready to have KVM's modules built for it.

    The first time for a kernel takes about a minute. Raises :class:`SetupError` if Debian does
    not have its source (any more).
    """
    kernel = packaged(entry, cache)
    version = package_version(kernel.image)
    root = build_root(cache, suite_for(entry.release))
    key = key_of(
        {
            "layout": LAYOUT,
            "mirror": mirror(),
            "version": version,
            "release": entry.release,
            "toolchain": root.toolchain,
        }
    )
    place = cache.obtain(
        "kvm-bases", key, lambda empty: _make_base(empty, entry, kernel, version, root)
    )
    return Base(
        key=key,
        release=entry.release,
        image=kernel.image,
        modules=kernel.modules,
        tree=place / "tree",
    )


def _make_base(
    place: Path, entry: CatalogEntry, kernel: Kernel, version: str, root: BuildRoot
) -> None:
    series = ".".join(version.split(".")[:2])  # as in the package's name: linux-source-7.3
    source, headers = f"linux-source-{series}", f"linux-headers-{entry.release}"
    packages, tree = place / "packages", place / "src"
    packages.mkdir()
    try:
        unpack(packages, entry.suite, [f"{source}={version}", f"{headers}={version}"])
    except CacheMissError:
        raise
    except SetupError as error:
        raise SetupError(
            f"KVM cannot be built for {entry.name}: {entry.suite} does not have both "
            f"{source} and {headers} in version {version}\n{error}"
        ) from error
    log.info("unpacking the source of %s", entry.release)
    write_manifest(unpack_source(packages / "usr/src" / f"{source}.tar.xz", tree), place / MANIFEST)
    header_files = packages / "usr/src" / headers
    shutil.copy(header_files / "Module.symvers", tree / "Module.symvers")
    prepare(tree, root, kernel.release, header_files / ".config")
    keep_needed(tree, place / "tree")
    shutil.rmtree(packages)


def unpack_source(archive: Path, tree: Path) -> Manifest:
    """Unpack of a source archive what KVM's modules need; the manifest is of all of it.

    The greater part of a kernel's source is drivers. Nothing reads them here, and to write and
    remove that many files takes longer than all the rest.
    """
    found: dict[str, str] = {}
    with tarfile.open(archive, "r|xz") as members:
        for member in members:
            name = member.name.partition("/")[2]
            stream = members.extractfile(member) if member.isfile() else None
            data = stream.read() if stream else b""
            if not (member.isfile() or member.issym()) or is_unused(name):
                continue
            found[name] = link_digest(member.linkname) if member.issym() else digest_of(data)
            if not _NOT_NEEDED.match(name):
                _write(tree / name, member, data)
    return found


def _write(path: Path, member: tarfile.TarInfo, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    else:
        path.write_bytes(data)
        path.chmod(member.mode & 0o755)
