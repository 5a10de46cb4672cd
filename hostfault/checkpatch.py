"""``ci/checkpatch``: every patch series passes the kernel's own checkpatch, and applies.

The source is that of the packaged kernels, as for a build with a series; its scripts/checkpatch.pl
is the judge. No build is started for it that a series would not need.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hostfault.kernel import series as patch_series
from hostfault.kernel.catalog import CatalogEntry, load, newest
from hostfault.kernel.packaged import packaged_base
from hostfault.kernel.series import Series
from hostfault.plumbing.cache import default_cache
from hostfault.plumbing.errors import HostfaultError, UsageError
from hostfault.plumbing.versions import version_of

PATIENCE = 120.0  # seconds for one patch
# A new file in arch/x86/kvm is covered by what MAINTAINERS says of that directory.
IGNORED = ("FILE_PATH_CHANGES",)


def main(words: Sequence[str] | None = None) -> int:
    """Check, and print one line for each patch; returns the exit code: 0, 1, or 2 for trouble."""
    parser = argparse.ArgumentParser(prog="ci/checkpatch", description=main.__doc__)
    parser.add_argument("--kernel", default=newest(), metavar="NAME", help="default: the newest")
    asked = parser.parse_args(words)
    if asked.kernel not in load():
        raise UsageError(f"no kernel {asked.kernel!r}; known are {', '.join(load())}")
    entry = load()[asked.kernel]
    tree = packaged_base(entry, default_cache()).tree
    found = list(complaints(tree, entry, patch_series.load()))
    for line in found:
        print(line, flush=True)
    print(f"checkpatch: {'not as it must be' if found else 'all series are fine'}", flush=True)
    return 1 if found else 0


def complaints(tree: Path, entry: CatalogEntry, series: Mapping[str, Series]) -> Iterator[str]:
    """What is wrong with the series for a source, one text each."""
    patches: dict[Path, None] = {}
    for each in series.values():
        try:
            fit = each.fit_for(version_of(entry.release))
            fitting = fit.patches
            patches.update(dict.fromkeys((*fitting, *fit.posted)))
            apply_to_copy(fitting, tree)
        except UsageError as error:  # a series may be too new for an old kernel
            if entry.name == newest():
                yield str(error)
        except HostfaultError as error:
            yield f"{each.name}: {error}"
        else:
            print(f"{each.name}: {len(fitting)} patches apply to {entry.name}", flush=True)
    for patch in patches:
        yield from check(patch, tree)


def apply_to_copy(patches: Sequence[Path], tree: Path) -> None:
    """Apply patches, with no fuzz, to a copy of the files that they change; raises as ``apply``."""
    with tempfile.TemporaryDirectory(prefix="hostfault-checkpatch-") as place:
        for name in patch_series.touched(patches):
            if (tree / name).is_file():
                (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tree / name, Path(place) / name)
        patch_series.apply(patches, Path(place))


def check(patch: Path, tree: Path) -> Iterator[str]:
    """What checkpatch.pl --strict has to say against a patch; nothing if it is fine."""
    line = [
        *("perl", "scripts/checkpatch.pl", "--strict", "--no-tree", "--terse", "--no-summary"),
        *("--ignore", ",".join(IGNORED), str(patch.absolute())),
    ]
    done = subprocess.run(
        line, cwd=tree, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    if done.returncode != 0 or done.stdout.strip():
        said = (done.stdout + done.stderr).strip()
        yield said or f"{patch}: checkpatch.pl ended with code {done.returncode}"
    else:
        print(f"{'/'.join(patch.parts[-3:])}: checkpatch --strict is content", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HostfaultError as error:
        print(f"ci/checkpatch: {error}", file=sys.stderr)
        sys.exit(2)
