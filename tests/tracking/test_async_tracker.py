"""Calls on their way to a tracker that is away now and then."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ikd_ray.distill.teacher import TeacherRecord
from ikd_ray.records import TrialRecord, write_trial
from ikd_ray.tracking import async_tracker
from ikd_ray.tracking.async_tracker import AsyncTracker


class Store:
    """Writes down what it is told; `away` and `refused` make it fail."""

    def __init__(self) -> None:
        self.heard: list[tuple] = []
        self.away, self.refused, self.stocks = threading.Event(), "", 0
        self.tried = threading.Event()

    def _hear(self, *call: object) -> None:
        self.tried.set()
        if self.away.is_set():
            raise OSError("connection refused")
        if call[1] == self.refused:
            raise ValueError("not that one")
        self.heard.append(call)

    def start(self, sweep: str) -> None:
        self._hear("start", sweep)

    def teacher(
        self, name: str, key: str, settings: dict, history: list, metrics: dict, kind: str = "teacher"
    ) -> None:
        self._hear(kind, name, [*history, metrics])

    def trial_epoch(self, trial: str, epoch: int) -> None:
        self._hear("epoch", trial, epoch)

    def settle(self, record: TrialRecord) -> None:
        self._hear("settle", record.id)

    def take_stock(self) -> None:
        self.stocks += 1
        if self.away.is_set():
            raise OSError("connection refused")

    def redact_error(self, error: Exception) -> str:
        return str(error)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def way(store, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(async_tracker, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(async_tracker, "LAST_RETRY_S", 0.05)
    return AsyncTracker(store, tmp_path, lines.append)


def leave(sweep, number):
    write_trial(sweep, TrialRecord(f"t{number}", number, {}, [], "finished"))


def test_calls_come_in_their_order(way, store, lines):
    for number in range(3000):
        way.put("trial_epoch", "t0", number)
    way.close()
    assert store.heard == [("epoch", "t0", number) for number in range(3000)]
    assert way.complete
    assert not lines
    assert not store.stocks, "nothing is read back where nothing went wrong"


def test_a_sweep_begins_in_a_store_that_is_away(way, store):
    store.away.set()
    epochs = [{"train/loss": 0.7, "dev/mcc": 0.1}, {"train/loss": 0.6, "dev/mcc": 0.2}]
    assistant = TeacherRecord(Path("a"), "4L of MiniLM", "a", {"dev/mcc": 0.2}, {}, epochs)
    teacher = TeacherRecord(Path("k"), "MiniLM", "k", {"dev/mcc": 0.5}, {}, [], {4: assistant})
    way.start("the sweep", teacher)
    way.put("trial_epoch", "t0", 1)
    assert store.tried.wait(10)
    store.away.clear()
    way.close()
    assert store.heard == [
        ("start", "the sweep"),
        ("teacher", "MiniLM", [{"dev/mcc": 0.5}]),
        ("assistant", "4L of MiniLM", epochs),
        ("epoch", "t0", 1),
    ]


def test_what_a_store_missed_comes_when_it_is_back(way, store, lines, tmp_path):
    way.put("trial_epoch", "t0", 1)
    store.away.set()
    for number in (2, 3):
        way.put("trial_epoch", "t0", number)
    assert store.tried.wait(10)
    time.sleep(0.1)
    way.put("trial_epoch", "t1", 1)
    store.away.clear()
    way.close()
    assert way.complete
    assert store.heard == [("epoch", "t0", 1), ("epoch", "t0", 2), ("epoch", "t0", 3), ("epoch", "t1", 1)]
    assert store.stocks, "which call came through nobody knows"
    assert lines == [
        "MLflow cannot be written (connection refused); the sweep goes on, and delivers it later",
        "MLflow is back, and gets what it has missed",
    ]


def test_of_an_ended_trial_only_its_record_waits(way, store, tmp_path):
    """A store may be away for a day."""
    store.away.set()
    for number in range(1000):
        way.put("trial_epoch", "t0", number)
    way.put("trial_epoch", "t1", 1)
    leave(tmp_path, 0)
    way.settle("t0")
    assert len(way._calls) == 2
    store.away.clear()
    way.close()
    assert store.heard == [("epoch", "t1", 1), ("settle", "t0")]


def test_who_closes_does_not_wait_for_a_store_that_is_away(way, store):
    store.away.set()
    way.put("trial_epoch", "t0", 1)
    start = time.monotonic()
    way.close(patience_s=0.3)
    assert time.monotonic() - start < 3
    assert not way.complete
    assert isinstance(way.error, OSError)


def test_nor_for_one_that_does_not_answer(way, store, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(store, "_hear", lambda *call: held.wait(20))
    way.put("trial_epoch", "t0", 1)
    start = time.monotonic()
    way.close(patience_s=0.3)
    assert time.monotonic() - start < 3
    assert not way.complete
    held.set()


def test_who_closes_waits_for_a_store_that_is_slow(way, store, monkeypatch):
    hear = store._hear
    monkeypatch.setattr(store, "_hear", lambda *call: (time.sleep(0.05), hear(*call)))
    for number in range(20):
        way.put("trial_epoch", "t0", number)
    way.close(patience_s=0.3)
    assert len(store.heard) == 20
    assert way.complete


def test_a_store_that_refuses_one_trial_gets_the_others(way, store):
    store.refused = "t1"
    for trial in ("t0", "t1", "t2", "t1"):
        way.put("trial_epoch", trial, 1)
    way.close()
    assert store.heard == [("epoch", "t0", 1), ("epoch", "t2", 1)]
    assert way.left_out == {"t1"}
    assert way.complete
