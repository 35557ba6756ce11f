"""The saved epochs' folder stays within its size, and nothing goes that a running trial stands on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ikd_ray.config import Trial
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch
from ikd_ray.distill.loop import Distillation, Epoch
from ikd_ray.storage import eviction, store
from ikd_ray.storage.eviction import (
    EVICTION_LOCK,
    LEASES,
    SCAN_EVERY,
    TRASH,
    CacheEviction,
    cache_entries,
    evict,
    leased_keys,
)

FAST = {"student_layers": 2, "batch_size": 16, "learning_rate": 3e-3, "epochs": 2, "epochs_per_layer": 1}
NONE, PLENTY = 1e-9, 1.0  # gigabytes
FORK = multiprocessing.get_context("fork")  # the libraries need not be read again
TENSORS = {"weight": torch.zeros(64)}
RANKS, ROUNDS, KEYS = 3, 15, [f"key{number}" for number in range(10)]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "stages"


@pytest.fixture
def start(folder, data, targets):
    """`start(disk_gb, regime="kd", ...)`: a distillation that saves its epochs, not yet begun."""

    def start(disk_gb: float = PLENTY, **fields) -> Iterator[Epoch]:
        checkpoints = EpochCache(folder, disk_gb, "sweep/trial")
        return iter(Distillation(Trial(**(FAST | fields)), data, targets, checkpoints=checkpoints))

    return start


def places(folder: Path) -> set[Path]:
    return {state.folder for state in cache_entries(folder)}


def save(folder: Path, key: str, epoch: int = 1, disk_gb: float = PLENTY) -> None:
    """One tiny epoch, by a trial that ends right after it."""
    checkpoints = EpochCache(folder, disk_gb)
    with checkpoints.lease(), checkpoints.stage_cache(key, {}) as trajectory:
        if not trajectory.find(epoch):
            trajectory.save(epoch, {}, TENSORS, {})


def leftovers(folder: Path) -> list[Path]:
    """What is neither a state nor a lock that stays."""
    hidden = [*folder.glob("[!.]*/.*"), *(folder / LEASES).iterdir(), *(folder / TRASH).iterdir()]
    return hidden + [stage for stage in folder.glob("[!.]*") if not any(stage.iterdir())]


def test_the_least_recently_used_goes_first_until_the_rest_fits(folder, start):
    list(start(regime="pid"))
    found = cache_entries(folder)
    assert len({state.key for state in found}) == 3
    for age, state in enumerate(found):
        os.utime(state.folder, (time.time() - age, time.time() - age))
    oldest = found[::-1]
    room = sum(state.bytes for state in found) - oldest[0].bytes - 1  # two must go
    assert [state.folder for state in evict(folder, room)] == [state.folder for state in oldest[:2]]
    assert places(folder) == {state.folder for state in oldest[2:]}
    assert evict(folder, room) == []
    assert not leftovers(folder)


def test_taking_an_epoch_is_using_it(folder, start):
    list(start(regime="kd"))
    first = cache_entries(folder)
    list(start(regime="hard"))
    second = [
        state for state in cache_entries(folder) if state.folder not in {state.folder for state in first}
    ]
    for age, found in ((200, first), (100, second)):
        for state in found:
            os.utime(state.folder, (time.time() - age, time.time() - age))
    list(start(regime="kd"))
    evict(folder, sum(state.bytes for state in first))
    assert places(folder) == {state.folder for state in first}


def test_a_size_counts_every_file_of_a_state_once(folder, start):
    list(start())
    for state in cache_entries(folder):
        assert state.bytes == sum(file.stat().st_size for file in state.folder.iterdir()) > 0


def test_a_trial_keeps_what_it_saved_and_what_it_took_however_small_the_room(folder, start):
    list(start(regime="pid"))
    mine = places(folder)
    course = start(NONE, regime="pid", epochs=2)
    for _ in range(4):  # layer 1, layer 2, and the top stage twice
        next(course)
    assert mine <= places(folder)
    list(start(NONE, regime="hard"))  # makes room for itself
    assert places(folder) >= mine
    assert evict(folder, 0) != []
    assert places(folder) == mine
    assert {path.parent.name for path in mine} == leased_keys(folder)
    course.close()
    assert leased_keys(folder) == set()
    assert {state.folder for state in evict(folder, 0)} == mine
    assert not leftovers(folder)


def test_room_is_made_while_saving(folder):
    for number in range(5):
        save(folder, f"key{number}")
        os.utime(folder / f"key{number}" / "1", (number, number))
    save(folder, "last", disk_gb=3.5 * cache_entries(folder)[0].bytes / 1e9)
    assert {state.key for state in cache_entries(folder)} == {"key3", "key4", "last"}


def test_not_every_save_looks_at_all_there_is(folder, monkeypatch):
    save(folder, "key")
    (state,) = cache_entries(folder)
    looks = []
    monkeypatch.setattr(eviction, "evict", lambda *arguments: looks.append(arguments))
    keeper = CacheEviction(folder, 3.5 * state.bytes / SCAN_EVERY / 1e9)
    for _ in range(9):
        keeper.entry_saved(state.folder)
    assert (
        looks == [(folder, 3.5 * state.bytes / SCAN_EVERY)] * 2
    )  # after each four: who saved the first one has looked


def test_a_state_that_cannot_go_is_not_counted_as_gone(folder, monkeypatch):
    for number in range(3):
        save(folder, f"key{number}")
        os.utime(folder / f"key{number}" / "1", (number, number))
    (stuck, first, _) = sorted(cache_entries(folder), key=lambda state: state.used)
    rename = os.rename

    def refuse(path, target):
        if path == stuck.folder:
            raise PermissionError(path)
        rename(path, target)

    monkeypatch.setattr(os, "rename", refuse)
    assert evict(folder, 2 * stuck.bytes) == [first]


def test_a_killed_trial_keeps_nothing(folder, start):
    list(start(regime="pid"))
    everything = places(folder)

    def hold(taken) -> None:
        course = start(regime="pid")
        taken.send([next(course).epoch, next(course).epoch])
        time.sleep(60)

    taken, theirs = FORK.Pipe(duplex=False)
    trial = FORK.Process(target=hold, args=(theirs,))
    trial.start()
    try:
        assert taken.poll(30)
        assert taken.recv() == [1, 2]
        used = leased_keys(folder)
        gone = {state.folder for state in evict(folder, 0)}
        assert places(folder) == {place for place in everything if place.parent.name in used}
        assert len(gone) == len(places(folder)) == 2  # the top stage's two are not stood on yet
    finally:
        trial.kill()
        trial.join()
    assert leased_keys(folder) == set()
    assert {state.folder for state in evict(folder, 0)} == everything - gone
    assert not leftovers(folder)


def test_nobody_begins_to_stand_on_anything_while_room_is_made(folder):
    save(folder, "key")
    keeper = CacheEviction(folder, PLENTY)
    with keeper.lease(), ThreadPoolExecutor() as pool:
        with FileLock(folder / EVICTION_LOCK):
            kept = pool.submit(keeper.pin, "key")
            assert not wait([kept], timeout=0.3).done
        kept.result(timeout=30)
        assert leased_keys(folder) == {"key"}


def compete(rank: int, folder: Path, evicted) -> None:
    """Many short trials that stand on stages that the others use too, with no room for anything."""
    random.seed(rank)
    known: set[str] = set()
    for _ in range(ROUNDS):
        checkpoints, mine = EpochCache(folder, NONE), []
        with checkpoints.lease():
            for key in random.sample(KEYS, 2):
                with checkpoints.stage_cache(key, {}) as trajectory:
                    while isinstance(saved := trajectory.find(1), PendingEpoch):
                        time.sleep(0.001)
                    if saved is None:
                        evicted[rank] += key in known
                        trajectory.save(1, {"epoch": 1.0}, TENSORS, TENSORS)
                        saved = trajectory.find(1)
                    assert not trajectory.damaged
                known.add(key)
                mine.append(saved)
                for state in mine:
                    assert torch.equal(state.weights()["weight"], TENSORS["weight"])


def test_processes_that_make_room_at_once_take_nothing_from_each_other(folder):
    evicted = FORK.Array("i", RANKS)
    trials = [FORK.Process(target=compete, args=(rank, folder, evicted)) for rank in range(RANKS)]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join(60)
    assert [trial.exitcode for trial in trials] == [0] * RANKS
    assert all(count > 1 for count in evicted), list(evicted)
    evict(folder, 0)
    assert not places(folder)
    assert not leftovers(folder)


def killed(work, line: int) -> bool:
    """Whether a process that does the work is killed when it comes to a line of the module."""
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


def test_killed_at_any_line_nothing_is_lost_or_left(folder, monkeypatch):
    monkeypatch.setattr(store, "fsync", lambda path: None)  # the machine stays up

    def work() -> None:
        save(folder, "new", disk_gb=NONE)

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
        # Whoever comes next finds whole states only, and can do all that it wants.
        for key in ("old", "new"):
            checkpoints = EpochCache(folder, PLENTY)
            with checkpoints.lease(), checkpoints.stage_cache(key, {}) as trajectory:
                trajectory.find(1)
                assert not trajectory.damaged, line
                assert leased_keys(folder) == {key}, line
        evict(folder, 0)
        assert not places(folder), line
        assert not leftovers(folder), line


def test_locks_go_with_their_stage(folder, start):
    list(start(regime="pid", top_trains="head"))
    beside = [state.folder for state in cache_entries(folder) if not state.folder.name.isdecimal()]
    assert len(beside) == 1  # the encoder's output, which has a lock of its own
    assert set(beside) < {state.folder for state in evict(folder, 0)}
    assert not leftovers(folder)


class Killing(dict):
    """Weights at which whoever saves them is killed."""

    def items(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_saver_left_counts_nowhere_and_goes_when_nobody_saves_there(folder):
    save(folder, "key")
    (whole,) = cache_entries(folder)
    child = os.fork()
    if not child:
        checkpoints = EpochCache(folder, PLENTY)
        with checkpoints.lease(), checkpoints.stage_cache("key", {}) as trajectory:
            trajectory.save(2, {}, Killing(), {})
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (left,) = folder.glob("key/.*")
    assert cache_entries(folder) == [whole]
    checkpoints = EpochCache(folder, PLENTY)
    with checkpoints.lease(), checkpoints.stage_cache("key", {}):
        evict(folder, 1e9)
        assert left.exists()  # it might be this trial's
    evict(folder, 1e9)
    assert not left.exists()
    assert cache_entries(folder) == [whole]
    assert not leftovers(folder)
