"""Parts of a set on several machines, and one night of them."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from hostfault.nightly import results
from hostfault.nightly.results import Key, Result
from hostfault.nightly.store import Night, NightStore
from hostfault.plumbing.errors import UsageError


def shard_options(shard: str) -> list[str]:
    """pytest-shard's options for ``2/3``. Raises :class:`UsageError`."""
    if not shard:
        return []
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {shard}: give I/N, with I from 1 to N")
    return ["--shard-id", str(int(found[1]) - 1), "--num-shards", found[2]]


def merge(store: NightStore, places: Sequence[Path], moment: float) -> tuple[Night, list[Result]]:
    """One night of the last ones of several stores, or of folders of nights.

    Raises :class:`UsageError` for a place without a finished night.
    """
    parts = [_part(place) for place in places]
    first = parts[0][1]
    name = store.new_name(moment)
    found: list[Result] = []
    seen: dict[Key, int] = {}
    for number, (other, night) in enumerate(parts, start=1):
        prefix = f"s{number}-"
        _copy_runs(other.folder(night.name), store.folder(name), prefix)
        for each in other.results(night.name):
            attempt = seen[each.key] = seen.get(each.key, 0) + 1
            folder = each.folder.replace("runs/", f"runs/{prefix}", 1)
            found.append(dataclasses.replace(each, attempt=attempt, folder=folder))
    nights = [night for _, night in parts]
    kernels = {label: kernel for night in nights for label, kernel in night.kernels.items()}
    done = set(seen)
    merged = dataclasses.replace(
        first,
        name=name,
        kernels=kernels,
        minutes=max(night.minutes for night in nights),
        spent=sum(night.spent for night in nights),
        began=min(night.began for night in nights),
        finished=0.0,
        accepted=False,
        shard="",
        cases={
            label: results.in_order(
                [case for night in nights for case in night.cases.get(label, ())]
            )
            for label in kernels
        },
        left=[key for night in nights for key in night.left if key not in done],
        notes=results.in_order(
            [note for night in nights for note in night.notes]
            + [f"made of {len(parts)} shards: {', '.join(night.runner for night in nights)}"]
        ),
    )
    return merged, found


def _part(place: Path) -> tuple[NightStore, Night]:
    place = place.absolute()
    if (place / "night.json").is_file():
        store, names = NightStore(place.parent), [place.name]
    else:
        store = NightStore(place)
        names = [night.name for night in store.nights() if night.finished][-1:]
    try:
        return store, store.night(names[0])
    except (IndexError, ValueError) as error:
        raise UsageError(f"--merge {place}: there is no night that has ended") from error


def _copy_runs(source: Path, target: Path, prefix: str) -> None:
    """Copy what runs left, packed or not; a pack's folder keeps its name inside."""
    (target / "runs").mkdir(parents=True, exist_ok=True)
    for run in sorted((source / "runs").glob("*")):
        place = target / "runs" / f"{prefix}{run.name}"
        if run.is_dir():
            shutil.copytree(run, place)
        else:
            shutil.copy2(run, place)
