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
from collections.abc import Callable, Sequence
from pathlib import Path

from hostfault.case.model import Kernel
from hostfault.kernel import configuration
from hostfault.kernel import series as patch_series
from hostfault.kernel.buildroot import build_root, suite_for
from hostfault.kernel.catalog import CatalogEntry, load
from hostfault.kernel.choose import packaged
from hostfault.kernel.kvm_only import Base, build_kvm, replace_kvm
from hostfault.kernel.packaged import MANIFEST, packaged_base, upstream_version
from hostfault.kernel.source import (
    Difference,
    difference,
    files_of,
    is_kvm,
    manifest,
    read_manifest,
    shared_structs,
    version_in,
    without_strangers,
)
from hostfault.kernel.whole import Tree, own_config, whole_kernel
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import SetupError, UsageError
from hostfault.plumbing.versions import version_of

log = logging.getLogger(__name__)

Say = Callable[[str], None]
TREE = "tree:"
# What the cache may keep of each kind, in bytes; a shared file counts for each that has it.
LIMITS = {"built": 4 << 30, "kvm-bases": 1 << 30, "whole-kernels": 3 << 30, "build-roots": 2 << 30}


def is_built(text: str) -> bool:
    """Whether a text names a kernel that is built here."""
    return text.startswith(TREE) or ("+" in text and "/" not in text and not Path(text).exists())


def resolve_built(text: str, cache: Cache, say: Say = log.info) -> Kernel:
    """The kernel that ``text`` names, built if it is not in the cache.

    ``say`` gets which way is taken and why. Raises :class:`UsageError` for what does not
    exist, :class:`SetupError` for what cannot be had, and :class:`LaunchError` with the
    compiler's lines for what does not build.
    """
    way = _from_tree if text.startswith(TREE) else _with_series
    kernel = way(text, cache, say)
    for kind, most in LIMITS.items():
        cache.prune(kind, most)
    return kernel


def _with_series(text: str, cache: Cache, say: Say) -> Kernel:
    name, _, series_name = text.partition("+")
    entry = _entry(name)
    series = patch_series.find(series_name)
    patches = series.patches_for(version_of(entry.release))
    if foreign := sorted(each for each in patch_series.touched(patches) if not is_kvm(each)):
        raise UsageError(
            f"series {series_name} changes {', '.join(foreign)}, and nothing but KVM's modules is "
            "built anew: apply it to a source tree, and give tree:PATH"
        )
    say(f"KVM only: {entry.release} with {series_name}: a series changes nothing else")
    base = packaged_base(entry, cache)
    content = key_of({str(number): patch for number, patch in enumerate(patches)})
    root = build_root(cache, suite_for(entry.release))
    built = build_kvm(
        base, root, cache, lambda tree: patch_series.apply(patches, tree), f"series {content}"
    )
    return _kernel(text, base, built.image, built.modules, built.build_id)


def _from_tree(text: str, cache: Cache, say: Say) -> Kernel:
    say(f"reading {text}")
    tree = read_tree(Path(text.removeprefix(TREE)).absolute())
    base = _packaged_base_of(tree, cache, say)
    if base is None:
        root = build_root(cache, suite_for(tree.version))
        say("making what is outside of KVM, if it was not made before: that takes minutes")
        whole = whole_kernel(tree, root, cache)
        if whole.kvm == tree.kvm:
            return _kernel(text, whole.base, whole.base.image, whole.base.modules, whole.build_id)
        base = whole.base
        say(f"KVM only, for the whole kernel {base.release} made before")
    root = build_root(cache, suite_for(tree.version))
    names = list(tree.files)
    built = build_kvm(
        base, root, cache, lambda copy: replace_kvm(copy, tree.path, names), f"tree {tree.kvm}"
    )
    return _kernel(text, base, built.image, built.modules, built.build_id)


def read_tree(path: Path) -> Tree:
    """What is in a source tree. Raises :class:`UsageError` if it is none, or is unreadable."""
    version = version_in(path)
    config = own_config(path)
    return Tree(path, version, manifest(path, files_of(path)), config, shared_structs(path))


def _packaged_base_of(tree: Tree, cache: Cache, say: Say) -> Base | None:
    """The packaged kernel that a tree differs from in KVM alone, or None, said aloud."""
    base = None
    for entry in _same_version(tree.version, cache):
        try:
            base = packaged_base(entry, cache)
        except SetupError as error:
            say(f"not compared with the packaged {entry.name}: {str(error).splitlines()[0]}")
            continue
        known = read_manifest(base.tree.parent / MANIFEST)
        git = (tree.path / ".git").exists()
        found = difference(known, tree.files if git else without_strangers(tree.files, known))
        reason = whole_reason(found, base, tree)
        if not reason:
            say(f"KVM only: differs from {entry.release} in {_listed(found.kvm)}")
            return base
        say(f"whole kernel: {reason}")
    if base is None:
        say(f"whole kernel: no packaged kernel with source is {tree.version}")
    return None


def whole_reason(found: Difference, base: Base, tree: Tree) -> str:
    """Why KVM's modules alone would not make a base into the kernel of a tree, or ""."""
    if found.other:
        return f"differs from {base.release} in {_listed(found.other)}"
    if shared_structs(base.tree) != tree.shared:
        return "a struct of KVM's headers that the kernel proper uses has changed"
    if tree.config:
        own = (base.tree / ".config").read_text(errors="replace")
        if names := configuration.differing(tree.config, own):
            return f"its .config differs from {base.release}'s in {_listed(names)}"
    return ""


def _same_version(version: str, cache: Cache) -> list[CatalogEntry]:
    """The packaged kernels of an upstream version."""
    wanted = version_of(version)
    found = []
    for entry in load().values():
        release = version_of(entry.release)
        # Debian 12 calls all of its 6.1.y "6.1.0-N": only the image tells which one it is.
        if release == wanted or (
            release == (*wanted[:2], 0)
            and upstream_version(packaged(entry, cache).image) == version
        ):
            found.append(entry)
    return found


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _entry(name: str) -> CatalogEntry:
    catalog = load()
    if name not in catalog:
        raise UsageError(f"there is no kernel {name!r} to patch; known are {', '.join(catalog)}")
    return catalog[name]


def _kernel(text: str, base: Base, image: Path, modules: Path, identity: str) -> Kernel:
    return Kernel(
        name=text,
        release=base.release,
        image=image,
        modules=modules,
        packaged=False,
        build_id=identity,
    )
