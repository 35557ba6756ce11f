"""The cache of saved epochs keeps its size and loses nothing that a running trial uses."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ikd_ray.config import Trial
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch, StageCache
from ikd_ray.distill.loop import Distillation
from ikd_ray.storage import eviction, store
from ikd_ray.storage.eviction import (
    EVICTION_LOCK,
    LEASES,
    SCAN_EVERY,
    TRASH,
    CacheEntry,
    CacheEviction,
    cache_entries,
    evict,
    leased_keys,
)

FAST = {"student_layers": 2, "batch_size": 16, "learning_rate": 3e-3, "epochs": 2, "epochs_per_layer": 1}
TINY, LARGE = 1e-9, 1.0  # gigabytes
FORK = multiprocessing.get_context("fork")  # imports nothing again
TENSORS = {"weight": torch.zeros(64)}
RANKS, ROUNDS, KEYS = 3, 15, [f"key{number}" for number in range(10)]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "stages"


@pytest.fixture
def start(folder, data, targets):
    """Return a function that makes a distillation which saves its epochs; it has not begun."""

    def start(disk_gb: float = LARGE, **fields) -> Iterator[Epoch]:
        cache = EpochCache(folder, disk_gb, "sweep/trial")
        return iter(Distillation(Trial(**(FAST | fields)), data, targets, checkpoints=cache))

    return start


def entry_folders(folder: Path) -> set[Path]:
    return {entry.folder for entry in cache_entries(folder)}


@contextmanager
def open_stage(folder: Path, key: str = "key", disk_gb: float = LARGE) -> Iterator[StageCache]:
    """Open the saved epochs of a stage as a running trial does."""
    cache = EpochCache(folder, disk_gb)
    with cache.lease(), cache.stage_cache(key, {}) as stage:
        yield stage


def save(folder: Path, key: str, disk_gb: float = LARGE) -> None:
    """Save one tiny epoch, as a trial that ends right after it."""
    with open_stage(folder, key, disk_gb) as stage:
        if not stage.find(1):
            stage.save(1, {}, TENSORS, {})


def leftovers(folder: Path) -> list[Path]:
    """Return what is neither an entry nor the lock of a stage."""
    hidden = [*folder.glob("[!.]*/.*"), *(folder / LEASES).iterdir(), *(folder / TRASH).iterdir()]
    return hidden + [stage for stage in folder.glob("[!.]*") if not any(stage.iterdir())]


@pytest.fixture
def five(folder) -> list[CacheEntry]:
    """Save one epoch of each of five stages, `key0` to `key4`, and return them, the least recently used first."""
    for number in range(5):
        save(folder, f"key{number}")
        os.utime(folder / f"key{number}" / "1", (number, number))
    return sorted(cache_entries(folder), key=lambda entry: entry.used)


def test_least_recently_used_entries_are_evicted_until_the_rest_fits(folder, five):
    capacity = sum(entry.bytes for entry in five[1:]) - 1  # two are too many
    assert evict(folder, capacity) == five[:2]
    assert entry_folders(folder) == {entry.folder for entry in five[2:]}
    assert evict(folder, capacity) == []
    assert not leftovers(folder)


def test_reusing_an_epoch_counts_as_use(folder, five):
    save(folder, "key0")  # finds it
    evict(folder, five[0].bytes)
    assert entry_folders(folder) == {five[0].folder}


def test_entries_of_a_running_trial_stay_however_small_the_capacity(folder, start):
    list(start(regime="pid"))
    for entry in cache_entries(folder):
        assert entry.bytes == sum(file.stat().st_size for file in entry.folder.iterdir()) > 0
    mine = entry_folders(folder)
    distillation = start(TINY, regime="pid", epochs=2)
    for _ in range(4):  # layer 1, layer 2, and the top stage twice
        next(distillation)
    assert mine <= entry_folders(folder)
    list(start(TINY, regime="hard"))  # evicts for itself
    assert entry_folders(folder) >= mine
    assert evict(folder, 0) != []
    assert entry_folders(folder) == mine
    assert {path.parent.name for path in mine} == leased_keys(folder)
    distillation.close()
    assert leased_keys(folder) == set()
    assert {entry.folder for entry in evict(folder, 0)} == mine
    assert not leftovers(folder)


def test_saving_evicts(folder, five):
    save(folder, "last", disk_gb=3.5 * five[0].bytes / 1e9)
    assert {entry.key for entry in cache_entries(folder)} == {"key3", "key4", "last"}


def test_folder_is_scanned_only_now_and_then(folder, monkeypatch):
    save(folder, "key")
    (entry,) = cache_entries(folder)
    scans = []
    monkeypatch.setattr(eviction, "evict", lambda *arguments: scans.append(arguments))
    cache_eviction = CacheEviction(folder, 3.5 * entry.bytes / SCAN_EVERY / 1e9)
    for _ in range(9):
        cache_eviction.entry_saved(entry.folder)
    # After each four: who saved the first one has looked.
    assert scans == [(folder, 3.5 * entry.bytes / SCAN_EVERY)] * 2


def test_entry_that_cannot_be_removed_is_not_counted_as_removed(folder, five, monkeypatch):
    rename = os.rename

    def refuse(path, target):
        if path == five[0].folder:
            raise PermissionError(path)
        rename(path, target)

    monkeypatch.setattr(os, "rename", refuse)
    assert evict(folder, 4 * five[0].bytes) == five[1:2]


def test_killed_trial_loses_its_lease(folder, start):
    list(start(regime="pid"))
    everything = entry_folders(folder)

    def hold(sender) -> None:
        distillation = start(regime="pid")
        sender.send([next(distillation).epoch, next(distillation).epoch])
        time.sleep(60)

    receiver, sender = FORK.Pipe(duplex=False)
    trial = FORK.Process(target=hold, args=(sender,))
    trial.start()
    try:
        assert receiver.poll(30)
        assert receiver.recv() == [1, 2]
        used = leased_keys(folder)
        gone = {entry.folder for entry in evict(folder, 0)}
        assert entry_folders(folder) == {place for place in everything if place.parent.name in used}
        assert len(gone) == len(entry_folders(folder)) == 2  # the top stage's two are not pinned yet
    finally:
        trial.kill()
        trial.join()
    assert leased_keys(folder) == set()
    assert {entry.folder for entry in evict(folder, 0)} == everything - gone
    assert not leftovers(folder)


def test_pin_waits_for_a_running_eviction(folder):
    save(folder, "key")
    cache_eviction = CacheEviction(folder, LARGE)
    with cache_eviction.lease(), ThreadPoolExecutor() as pool:
        with FileLock(folder / EVICTION_LOCK):
            pinned = pool.submit(cache_eviction.pin, "key")
            assert not wait([pinned], timeout=0.3).done
        pinned.result(timeout=30)
        assert leased_keys(folder) == {"key"}


def compete(rank: int, folder: Path, evicted) -> None:
    """Run many short trials on stages that other processes use too, with no capacity for anything."""
    random.seed(rank)
    known: set[str] = set()
    for _ in range(ROUNDS):
        cache, mine = EpochCache(folder, TINY), []
        with cache.lease():
            for key in random.sample(KEYS, 2):
                with cache.stage_cache(key, {}) as stage:
                    while isinstance(saved := stage.find(1), PendingEpoch):
                        time.sleep(0.001)
                    if saved is None:
                        evicted[rank] += key in known
                        stage.save(1, {"epoch": 1.0}, TENSORS, TENSORS)
                        saved = stage.find(1)
                    assert not stage.damaged
                known.add(key)
                mine.append(saved)
                for entry in mine:
                    assert torch.equal(entry.weights()["weight"], TENSORS["weight"])


def test_concurrent_evictions_respect_each_others_leases(folder):
    evicted = FORK.Array("i", RANKS)
    trials = [FORK.Process(target=compete, args=(rank, folder, evicted)) for rank in range(RANKS)]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join(60)
    assert [trial.exitcode for trial in trials] == [0] * RANKS
    assert all(count > 1 for count in evicted), list(evicted)
    evict(folder, 0)
    assert not entry_folders(folder)
    assert not leftovers(folder)


def killed(work, line: int) -> bool:
    """Run the work in a process that is killed at a line of the module; return whether it was."""
    child = os.fork()
    if not child:
        try:
            trace_lines(lambda number: number == line and os.kill(os.getpid(), signal.SIGKILL))
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def trace_lines(seen) -> None:
    def local(frame, event, _):
        if event == "line":
            seen(frame.f_lineno)
        return local

    sys.settrace(lambda frame, *_: local if frame.f_code.co_filename == eviction.__file__ else None)


def test_kill_at_any_line_loses_nothing_and_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr(store, "fsync", lambda path: None)  # no power loss is simulated

    def work() -> None:
        save(folder, "new", disk_gb=TINY)

    save(folder, "old")
    lines, before = set(), sys.gettrace()
    trace_lines(lines.add)
    work()
    sys.settrace(before)
    evict(folder, 0)
    assert len(lines) > 40
    for line in sorted(lines):
        save(folder, "old")
        assert killed(work, line), line
        # The next trials find whole entries only, and can use them.
        for key in ("old", "new"):
            with open_stage(folder, key) as stage:
                stage.find(1)
                assert not stage.damaged, line
                assert leased_keys(folder) == {key}, line
        evict(folder, 0)
        assert not entry_folders(folder), line
        assert not leftovers(folder), line


def test_locks_are_removed_with_their_stage(folder, start):
    list(start(regime="pid", top_trains="head"))
    beside = [entry.folder for entry in cache_entries(folder) if not entry.folder.name.isdecimal()]
    assert len(beside) == 1  # the encoder's output, which has a lock of its own
    assert set(beside) < {entry.folder for entry in evict(folder, 0)}
    assert not leftovers(folder)


class Killing(dict):
    """Weights whose saving kills the process."""

    def items(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_leftovers_of_a_killed_save_are_removed_once_nobody_holds_a_lease(folder):
    save(folder, "key")
    (whole,) = cache_entries(folder)
    child = os.fork()
    if not child:
        with open_stage(folder) as stage:
            stage.save(2, {}, Killing(), {})
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (left,) = folder.glob("key/.*")
    assert cache_entries(folder) == [whole]
    with open_stage(folder):
        evict(folder, 1e9)
        assert left.exists()  # it may belong to this trial
    evict(folder, 1e9)
    assert not left.exists()
    assert cache_entries(folder) == [whole]
    assert not leftovers(folder)
