"""The cache: built once, never half, never taken away from someone who uses it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hostfault.plumbing.cache import Cache, default_cache, key_of
from hostfault.plumbing.errors import HostfaultError, LaunchError, SetupError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def write(text: str):
    def build(place: Path) -> None:
        (place / "file").write_text(text)

    return build


def leftovers(cache: Cache) -> list[str]:
    return [path.name for path in cache.root.rglob("*") if path.suffix == ".partial"]


def test_an_entry_is_built_once(cache: Cache) -> None:
    built = []
    for _ in range(2):
        entry = cache.obtain("kind", "key", lambda place: built.append(place))
    assert entry == cache.root / "kind" / "key"
    assert len(built) == 1
    assert leftovers(cache) == []


def test_another_process_finds_what_the_first_one_built(cache: Cache) -> None:
    cache.obtain("kind", "key", write("first"))
    entry = Cache(cache.root).obtain("kind", "key", write("second"))
    assert (entry / "file").read_text() == "first"


def test_runs_that_want_the_same_at_the_same_time_build_it_once(cache: Cache) -> None:
    built = []
    inside = threading.Event()
    go_on = threading.Event()

    def slowly(place: Path) -> None:
        inside.set()
        assert go_on.wait(20)
        built.append(place)

    def second() -> None:
        Cache(cache.root).obtain("kind", "key", slowly)

    threads = [threading.Thread(target=second) for _ in range(2)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(built) == 1


def test_a_builder_that_fails_leaves_nothing_and_can_be_tried_again(cache: Cache) -> None:
    def fail(place: Path) -> None:
        (place / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.obtain("kind", "key", fail)
    assert leftovers(cache) == []
    assert (cache.obtain("kind", "key", write("whole")) / "file").read_text() == "whole"


def test_a_full_disk_is_one_clear_error(cache: Cache) -> None:
    def fill(place: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SetupError, match="is full: free some space") as caught:
        cache.obtain("kind", "key", fill)
    assert str(cache.root) in str(caught.value)
    assert leftovers(cache) == []


def test_a_program_that_meets_a_full_disk_gives_the_same_error(cache: Cache) -> None:
    def fill(place: Path) -> None:
        raise LaunchError("dpkg-deb", ["dpkg-deb"], 2, "tar: x: No space left on device")

    with pytest.raises(SetupError, match="is full"):
        cache.obtain("kind", "key", fill)


def test_a_machine_that_cannot_be_saved_on_a_full_disk_gives_the_same_error(cache: Cache) -> None:
    def save(place: Path) -> None:
        error = HostfaultError("migration failed: Unable to write to file: No space left on device")
        raise SetupError(f"the emulated host did not come up in 3 attempts\n{error}") from error

    with pytest.raises(SetupError, match="is full"):
        cache.obtain("machines", "key", save)


def test_another_error_of_a_builder_passes_through(cache: Cache) -> None:
    def fail(place: Path) -> None:
        (place / "no" / "such").touch()

    with pytest.raises(FileNotFoundError):
        cache.obtain("kind", "key", fail)


UNUSABLE = r"cannot use the cache .*cache.*; set HOSTFAULT_CACHE to a directory that you may write"


def test_a_cache_below_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=UNUSABLE):
        Cache(tmp_path / "file" / "cache").obtain("kind", "key", write(""))


@pytest.mark.parametrize("call", ["open", "utime"])
def test_a_cache_that_another_user_made_is_one_clear_error(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    cache.obtain("kind", "key", write(""))
    cache.close()
    with monkeypatch.context() as patch:  # root, who may run this, is never refused
        patch.setattr(os, call, refuse)
        with pytest.raises(SetupError, match=UNUSABLE):
            cache.obtain("kind", "key", write(""))


def test_the_wreck_of_a_killed_builder_is_swept_away(cache: Cache) -> None:
    killed = f"""
import os, pathlib
from hostfault.plumbing.cache import Cache
Cache(pathlib.Path({str(cache.root)!r})).obtain("kind", "dead", lambda place: os._exit(9))
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    assert len(leftovers(cache)) == 1
    cache.obtain("kind", "other", write(""))
    assert leftovers(cache) == []


def test_the_work_of_a_live_builder_is_not_swept_away(cache: Cache) -> None:
    def build(place: Path) -> None:
        Cache(cache.root).obtain("kind", "other", write(""))
        (place / "file").write_text("still here")

    assert (cache.obtain("kind", "key", build) / "file").read_text() == "still here"


def test_pruning_removes_the_least_recently_used_first(cache: Cache) -> None:
    for age, key in enumerate(["new", "middle", "old"]):
        entry = cache.obtain("kind", key, write("x" * 40960))
        os.utime(entry, (1000 - age, 1000 - age))
    cache.close()
    cache.obtain("kind", "old", write(""))  # use makes it the newest
    cache.close()
    cache.prune("kind", 50_000)
    assert [path.name for path in (cache.root / "kind").iterdir() if path.is_dir()] == ["old"]


def test_pruning_keeps_what_is_in_use(cache: Cache) -> None:
    entry = cache.obtain("kind", "key", write("x" * 40960))
    Cache(cache.root).prune("kind", 0)
    cache.prune("kind", 0)
    assert entry.is_dir()
    cache.release(entry)
    cache.prune("kind", 0)
    assert not entry.exists()


def test_pruning_skips_what_another_run_removes_at_the_same_time(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "ab":
        cache.obtain("kind", key, write("x" * 40960))
    cache.close()
    entries = Cache._entries

    def listed_and_then_removed(self: Cache, kind: str) -> Iterator[Path]:
        found = list(entries(self, kind))
        monkeypatch.setattr(Cache, "_entries", entries)
        Cache(cache.root).prune(kind, 0)
        return iter(found)

    monkeypatch.setattr(Cache, "_entries", listed_and_then_removed)
    cache.prune("kind", 0)
    assert list(entries(cache, "kind")) == []
    assert leftovers(cache) == []


def test_pruning_a_kind_that_was_never_built_does_nothing(cache: Cache) -> None:
    cache.prune("kind", 0)
    assert not (cache.root / "kind").exists()


def test_a_discarded_entry_is_built_anew_even_if_another_run_holds_it(cache: Cache) -> None:
    other = Cache(cache.root)
    other.obtain("kind", "key", write("bad"))
    entry = cache.obtain("kind", "key", write("never"))
    cache.discard(entry)
    assert leftovers(cache) == []
    assert (cache.obtain("kind", "key", write("good")) / "file").read_text() == "good"
    assert (other.obtain("kind", "key", write("never")) / "file").read_text() == "good"
    cache.close()
    Cache(cache.root).prune("kind", 0)
    assert entry.is_dir(), "the other run holds the new one"


def test_an_entry_that_two_runs_find_bad_is_discarded_once(cache: Cache) -> None:
    other = Cache(cache.root)
    for each in (cache, other):
        entry = each.obtain("kind", "key", write("bad"))
    cache.discard(entry)
    cache.obtain("kind", "key", write("good"))
    other.discard(entry)
    assert (other.obtain("kind", "key", write("never")) / "file").read_text() == "good"


def test_whoever_waits_for_a_discarded_entry_does_not_wait_on(cache: Cache) -> None:
    """Its lock is held by somebody who uses the old one for as long as he likes."""
    user = Cache(cache.root)
    entry = user.obtain("kind", "key", write("bad"))
    shutil.rmtree(entry)  # now the next one wants to build it, and waits for the user
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(cache.obtain, "kind", "key", write("good"))
        with pytest.raises(TimeoutError):
            waiting.result(0.5)
        user.discard(entry)
        assert (waiting.result(10.0) / "file").read_text() == "good"


def test_the_lock_is_shared_while_an_entry_is_in_use(cache: Cache) -> None:
    cache.obtain("kind", "key", write(""))
    with (cache.root / "kind" / "key.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_key_cannot_leave_its_directory(cache: Cache) -> None:
    with pytest.raises(ValueError, match="not a cache key"):
        cache.obtain("kind", "../key", write(""))


def test_a_key_changes_with_content_names_modes_and_link_targets(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("one")
    keys = {key_of({"tree": tree})}
    (tree / "sub" / "file").write_text("two")
    keys.add(key_of({"tree": tree}))
    (tree / "sub" / "file").chmod(0o755)
    keys.add(key_of({"tree": tree}))
    (tree / "link").symlink_to("sub")
    keys.add(key_of({"tree": tree}))
    (tree / "sub" / "file").rename(tree / "sub" / "name")
    keys.add(key_of({"tree": tree}))
    keys.add(key_of({"other": tree}))
    assert len(keys) == 6


def test_a_key_does_not_depend_on_times_or_order(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("same")
    first = key_of({"a": file, "b": "text"})
    os.utime(file, (1, 1))
    assert key_of({"b": "text", "a": file}) == first


def test_values_that_run_into_one_another_have_different_keys() -> None:
    assert key_of({"a": "bc"}) != key_of({"ab": "c"})
    assert key_of({"a": "b"}) != key_of({"a": b"b"})


def test_the_environment_chooses_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("HOSTFAULT_CACHE", raising=False)
    assert default_cache().root == Path("/xdg/hostfault")
    monkeypatch.setenv("HOSTFAULT_CACHE", "/own")
    assert default_cache().root == Path("/own")


def test_a_user_without_a_home_directory_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HOME", "HOSTFAULT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 3_000_000_001)  # nobody's, as containers have it
    with pytest.raises(SetupError, match="set HOSTFAULT_CACHE"):
        default_cache()
