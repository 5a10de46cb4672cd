"""From what a person wrote to a kernel that boots.

Understood are:

``6.12``
    a name of kernels/catalog.toml; fetched on first use
``PATH``
    a bzImage; its modules are looked for beside it, see :func:`modules_beside`
``PATH:DIRECTORY``
    a bzImage, and the directory ``lib/modules/RELEASE`` that belongs to it, or one that
    contains it, as ``make modules_install INSTALL_MOD_PATH=DIRECTORY`` leaves it

Further forms are listed in :data:`hostfault.kernel.FORMS`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import Kernel
from hostfault.kernel.bzimage import release_of
from hostfault.kernel.catalog import CatalogEntry, load
from hostfault.kernel.fetch import mirror, unpack
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.packages import run_tool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """One more way of naming a kernel."""

    syntax: str  # for messages, e.g. "tree:PATH"
    claims: Callable[[str], bool]  # whether a text has this form
    resolve: Callable[[str, Cache], Kernel]


def resolve_as(text: str, cache: Cache, forms: Sequence[Form]) -> Kernel:
    """The kernel that ``text`` names.

    Raises :class:`UsageError` for a name that is unknown, a path that is no kernel, or one
    without modules; :class:`SetupError` if a packaged kernel cannot be had.
    """
    for form in forms:
        if form.claims(text):
            return form.resolve(text, cache)
    catalog = load()
    if text in catalog:
        return packaged(catalog[text], cache)
    if "/" in text or Path(text).exists():
        return _from_path(text)
    raise UsageError(
        f"there is no kernel {text!r}; known are {', '.join(catalog)}; "
        f"or give {', '.join(['a path to a bzImage', *(form.syntax for form in forms)])}"
    )


def packaged(entry: CatalogEntry, cache: Cache) -> Kernel:
    """A kernel of the catalogue, fetched if it is not in the cache."""
    key = key_of(
        {
            "layout": "1",
            "mirror": mirror(),
            "suite": entry.suite,
            "packages": " ".join(entry.packages),
        }
    )
    place = cache.obtain("kernels", key, lambda empty: _build(empty, entry))
    return Kernel(
        name=entry.name,
        release=entry.release,
        image=place / "bzImage",
        modules=place / "lib" / "modules" / entry.release,
        packaged=True,
    )


def _build(place: Path, entry: CatalogEntry) -> None:
    """Unpack an entry's packages, and bring old and new layouts to the same one."""
    unpacked = place / "unpacked"
    unpacked.mkdir()
    unpack(unpacked, entry.suite, entry.packages)
    found = [unpacked / "usr/lib/modules" / entry.release, unpacked / "lib/modules" / entry.release]
    modules = place / "lib" / "modules" / entry.release
    modules.parent.mkdir(parents=True)
    next(path for path in found if path.is_dir()).rename(modules)
    images = [modules / "vmlinuz", unpacked / "boot" / f"vmlinuz-{entry.release}"]
    next(path for path in images if path.exists()).rename(place / "bzImage")
    run_tool(
        ["depmod", "--basedir", str(place), entry.release],
        what=f"listing the modules of {entry.release}",
    )
    shutil.rmtree(unpacked)


def _from_path(text: str) -> Kernel:
    image, modules = Path(text), None
    if not image.exists() and ":" in text:
        before, after = text.rsplit(":", 1)
        image, modules = Path(before), Path(after)
    release = release_of(image)
    candidates = [modules, modules / "lib/modules" / release] if modules else None
    found = _first_with_modules(candidates or list(modules_beside(image, release)))
    if found is None:
        where = f"in {modules}" if modules else "beside it"
        raise UsageError(
            f"kernel {image} ({release}) has no modules {where}: run `make modules_install "
            f"INSTALL_MOD_PATH=DIRECTORY` and give {image}:DIRECTORY, "
            f"or put the directory lib/modules/{release} beside the image"
        )
    return Kernel(
        name=text,
        release=release,
        image=image.absolute(),
        modules=found.absolute(),
        packaged=False,
    )


def modules_beside(image: Path, release: str) -> Iterator[Path]:
    """Where the modules of a bzImage may be, the likeliest first.

    They are: ``modules/`` and ``lib/modules/RELEASE/`` in its directory, that directory itself
    (Debian: /usr/lib/modules/RELEASE/vmlinuz), and ``../lib/modules/RELEASE/`` (/boot/vmlinuz-*).
    """
    folder = image.absolute().parent
    yield folder / "modules"
    yield folder / "modules" / "lib" / "modules" / release
    yield folder / "lib" / "modules" / release
    yield folder
    yield folder.parent / "lib" / "modules" / release


def _first_with_modules(candidates: list[Path]) -> Path | None:
    """The first that depmod has been through: without its lists nothing can be loaded."""
    return next((path for path in candidates if (path / "modules.dep").is_file()), None)
