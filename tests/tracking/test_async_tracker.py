"""Calls of a tracker whose store is unavailable now and then."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ikd_ray.distill.teacher import TeacherRecord
from ikd_ray.records import TrialRecord, write_trial
from ikd_ray.tracking import async_tracker
from ikd_ray.tracking.async_tracker import AsyncTracker


class FakeTracker:
    """Records its calls; `unavailable` and `refused` make it fail."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.unavailable, self.refused, self.refreshes = threading.Event(), "", 0
        self.called = threading.Event()

    def _call(self, *call: object) -> None:
        self.called.set()
        if self.unavailable.is_set():
            raise OSError("connection refused")
        if call[1] == self.refused:
            raise ValueError("not that one")
        self.calls.append(call)

    def start_sweep(self, sweep: str) -> None:
        self._call("start", sweep)

    def log_teacher(self, teacher: TeacherRecord, kind: str = "teacher") -> None:
        self._call(kind, teacher.name)

    def log_epoch(self, trial: str, metrics: dict, epoch: int, at: float) -> None:
        self._call("epoch", trial, epoch)

    def log_trial(self, record: TrialRecord) -> None:
        self._call("trial", record.id)

    def refresh_runs(self) -> None:
        self.refreshes += 1
        if self.unavailable.is_set():
            raise OSError("connection refused")

    def redact_error(self, error: Exception) -> str:
        return str(error)


@pytest.fixture
def fake():
    return FakeTracker()


@pytest.fixture
def messages():
    return []


@pytest.fixture
def tracker(fake, messages, tmp_path, monkeypatch):
    monkeypatch.setattr(async_tracker, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(async_tracker, "LAST_RETRY_S", 0.05)
    return AsyncTracker(fake, tmp_path, messages.append)


def log_epochs(tracker, trial, *epochs):
    for epoch in epochs:
        tracker.log_epoch(trial, {}, epoch, 0.0)


def test_calls_are_made_in_order(tracker, fake, messages):
    log_epochs(tracker, "t0", *range(3000))
    tracker.close()
    assert fake.calls == [("epoch", "t0", number) for number in range(3000)]
    assert tracker.complete
    assert not messages
    assert not fake.refreshes, "nothing is read back where nothing failed"


def test_a_sweep_starts_while_the_store_is_unavailable(tracker, fake):
    fake.unavailable.set()
    assistant = TeacherRecord(Path("a"), "4L of MiniLM", "a", {}, {}, [])
    tracker.start_sweep(
        "the sweep", TeacherRecord(Path("k"), "MiniLM", "k", {}, {}, [], assistants={4: assistant})
    )
    log_epochs(tracker, "t0", 1)
    assert fake.called.wait(10)
    fake.unavailable.clear()
    tracker.close()
    assert fake.calls == [
        ("start", "the sweep"),
        ("teacher", "MiniLM"),
        ("assistant", "4L of MiniLM"),
        ("epoch", "t0", 1),
    ]


def test_missed_calls_are_made_when_the_store_is_back(tracker, fake, messages):
    log_epochs(tracker, "t0", 1)
    fake.unavailable.set()
    log_epochs(tracker, "t0", 2, 3)
    assert fake.called.wait(10)
    time.sleep(0.1)
    log_epochs(tracker, "t1", 1)
    fake.unavailable.clear()
    tracker.close()
    assert tracker.complete
    assert fake.calls == [("epoch", "t0", 1), ("epoch", "t0", 2), ("epoch", "t0", 3), ("epoch", "t1", 1)]
    assert fake.refreshes, "the outcome of the failed call is unknown"
    assert messages == [
        "MLflow cannot be written (connection refused); the sweep goes on, and delivers it later",
        "MLflow is back, and gets what it has missed",
    ]


def test_an_ended_trial_waits_as_its_record_alone(tracker, fake, tmp_path):
    """A store may be unavailable for a day."""
    fake.unavailable.set()
    log_epochs(tracker, "t0", *range(1000))
    log_epochs(tracker, "t1", 1)
    write_trial(tmp_path, TrialRecord("t0", 0, {}, [], "finished"))
    tracker.log_trial("t0")
    assert len(tracker._calls) == 2
    fake.unavailable.clear()
    tracker.close()
    assert fake.calls == [("epoch", "t1", 1), ("trial", "t0")]


class CountedName(str):
    """A trial's id that counts what it is compared with."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other):
        CountedName.compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


def test_the_end_of_a_trial_reads_no_call_about_another(tracker, fake, tmp_path):
    """A store that was away for a day has a hundred thousand calls to come."""
    fake.unavailable.set()
    for number in range(50):
        log_epochs(tracker, f"t{number}", 1, 2)
    write_trial(tmp_path, TrialRecord("t7", 7, {}, [], "finished"))
    tracker.log_trial(CountedName("t7"))
    assert CountedName.compared < 5
    fake.unavailable.clear()
    tracker.close()
    others = [("epoch", f"t{number}", epoch) for number in range(50) if number != 7 for epoch in (1, 2)]
    assert fake.calls == [*others, ("trial", "t7")]


@pytest.mark.parametrize("store", ["unavailable", "hangs"])
def test_closing_does_not_wait_for_a_store_that_is_away(tracker, fake, monkeypatch, store):
    released = threading.Event()
    if store == "hangs":
        monkeypatch.setattr(fake, "_call", lambda *call: released.wait(20))
    else:
        fake.unavailable.set()
    log_epochs(tracker, "t0", 1)
    start = time.monotonic()
    tracker.close(patience_s=0.3)
    assert time.monotonic() - start < 3
    assert not tracker.complete
    assert isinstance(tracker.error, OSError) == (store == "unavailable")
    released.set()


def test_closing_waits_for_a_slow_store(tracker, fake, monkeypatch):
    call = fake._call
    monkeypatch.setattr(fake, "_call", lambda *arguments: (time.sleep(0.05), call(*arguments)))
    log_epochs(tracker, "t0", *range(20))
    tracker.close(patience_s=0.3)
    assert len(fake.calls) == 20
    assert tracker.complete


def test_a_store_that_refuses_one_trial_gets_the_others(tracker, fake):
    fake.refused = "t1"
    for trial in ("t0", "t1", "t2", "t1"):
        log_epochs(tracker, trial, 1)
    tracker.close()
    assert fake.calls == [("epoch", "t0", 1), ("epoch", "t2", 1)]
    assert tracker.refused == {"t1"}
    assert tracker.complete
