"""Kernels that are built here: from a name with a patch series, or from a source tree.

``NAME+SERIES``
    a kernel of the catalogue with a series of kernels/patches/ in its KVM
``tree:PATH``
    a kernel source tree, in git or not

There are two ways, and what differs picks one. **KVM only**: where nothing but KVM differs from
a kernel that exists already, only KVM's modules are compiled. **Whole**: otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from hostfault.cache import Cache, key_of
from hostfault.errors import UsageError
from hostfault.kernel import series as patch_series
from hostfault.kernel.buildroot import build_root
from hostfault.kernel.catalog import CatalogEntry, load
from hostfault.kernel.choose import FORMS, Form
from hostfault.kernel.kvm_only import Base, Built, build_kvm
from hostfault.kernel.packaged import packaged_base
from hostfault.kernel.source import is_kvm
from hostfault.model import Kernel

log = logging.getLogger(__name__)

Say = Callable[[str], None]
TREE = "tree:"


def is_built(text: str) -> bool:
    """Whether a text names a kernel that is built here."""
    return text.startswith(TREE) or ("+" in text and "/" not in text and not Path(text).exists())


def resolve_built(text: str, cache: Cache, say: Say = log.info) -> Kernel:
    """The kernel that ``text`` names, built if it is not in the cache.

    ``say`` is told which way is taken and why. Raises :class:`UsageError` for what does not
    exist, :class:`SetupError` for what cannot be had, and :class:`LaunchError` with the
    compiler's lines for what does not build.
    """
    if text.startswith(TREE):
        raise UsageError(f"{text}: building from a source tree comes next")
    return _with_series(text, cache, say)


def _with_series(text: str, cache: Cache, say: Say) -> Kernel:
    name, _, series_name = text.partition("+")
    entry = _entry(name)
    series = patch_series.find(series_name)
    patches = series.patches_for(patch_series.version_of(entry.release))
    if foreign := sorted(each for each in patch_series.touched(patches) if not is_kvm(each)):
        raise UsageError(
            f"series {series_name} changes {', '.join(foreign)}, which is not part of KVM: "
            "apply it to a source tree, and give tree:PATH"
        )
    say(f"KVM only: {entry.release} with {series_name} ({len(patches)} patches)")
    base = packaged_base(entry, cache)
    content = key_of({str(number): patch for number, patch in enumerate(patches)})
    root = build_root(cache, _suite(entry))
    built = build_kvm(
        base, root, cache, lambda tree: patch_series.apply(patches, tree), f"series {content}"
    )
    return _kernel(text, base, built)


def _entry(name: str) -> CatalogEntry:
    catalog = load()
    if name not in catalog:
        raise UsageError(f"there is no kernel {name!r} to patch; known are {', '.join(catalog)}")
    return catalog[name]


def _suite(entry: CatalogEntry) -> str:
    return "bookworm" if entry.suite.startswith("bookworm") else "trixie"


def _kernel(text: str, base: Base, built: Built) -> Kernel:
    return Kernel(
        name=text,
        release=base.release,
        image=built.image,
        modules=built.modules,
        packaged=False,
        build_id=built.build_id,
    )


FORMS.append(Form(syntax="NAME+SERIES or tree:PATH", claims=is_built, resolve=resolve_built))
