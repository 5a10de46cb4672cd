"""What another machine needs to run the image's QEMU, as one compressed archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from hostfault.case.model import HostImage
from hostfault.image.programs import BUNDLE, LOADER, libraries_of
from hostfault.plumbing.cache import Cache, key_of

PROGRAM = "usr/bin/qemu-system-x86_64"
# Firmware of a PC that boots a kernel without a disk or a boot ROM of a card.
FIRMWARE = ("usr/share/seabios/*", "usr/share/qemu/*.bin", "usr/share/qemu/*.rom")
OTHERS = ("u-boot", "slof", "efi-", "pxe-", "opensbi", "petalogix", "s390", "npcm", "ast")
_LAYOUT = "1"  # change it when the same image is to make another archive


def qemu_bundle(cache: Cache, image: HostImage) -> Path:
    """The archive (tar, gzip) of the image's QEMU, its loader, libraries and firmware."""

    def build(place: Path) -> None:
        with tarfile.open(place / "qemu.tar.gz", "w:gz", compresslevel=1) as tar:
            for path in sorted(set(_files(image.root))):
                tar.add(image.root / path, str(path), recursive=False)

    key = key_of({"layout": _LAYOUT, "image": image.key})
    return cache.obtain("qemu-bundles", key, build) / "qemu.tar.gz"


def _files(root: Path) -> Iterator[Path]:
    """Paths below the root, symbolic links that lead to others of them included."""
    loader = (root / LOADER).resolve().relative_to(root.resolve())
    yield from (loader, loader.parent / BUNDLE, Path(PROGRAM))
    for library in (Path(LOADER), *libraries_of(root, PROGRAM)):
        yield from _through_links(root, library)
    for pattern in FIRMWARE:
        for path in root.glob(pattern):
            if not path.name.startswith(OTHERS):
                yield from _through_links(root, path.relative_to(root))


def _through_links(root: Path, path: Path) -> Iterator[Path]:
    """A path, each link on the way to it, and what these lead to, all inside the root."""
    for parent in reversed(path.parents):
        if (root / parent).is_symlink():
            yield parent
    real = (root / path).resolve().relative_to(root.resolve())
    yield real
    unlinked = (root / path.parent).resolve().relative_to(root.resolve()) / path.name
    if (root / unlinked).is_symlink():
        yield unlinked
