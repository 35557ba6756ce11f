"""What happens in a sweep, on its way to MLflow: in order, in a thread of its own, and late rather than never."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ikd_ray.distill.teacher import TeacherRecord
from ikd_ray.records import SweepRecord, read_trial
from ikd_ray.tracking.tracker import Tracker

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0  # between two attempts; each is twice as late as the one before
PATIENCE_S = 20.0  # at the end of a sweep, for a store that is away
ATTEMPTS = 2  # for a call while the store answers other ones

# A trial, the tracker's method, arguments. What is of the sweep as a whole has no trial.
Call = tuple[str, str, tuple[Any, ...]]


class AsyncTracker:
    """Training waits for no store, and no store is told anything twice or in another order.

    While the store is away what happens is kept: of running trials in memory, of ended ones on disk, where their
    records have it all.
    """

    def __init__(self, tracker: Tracker, sweep: Path, tell: Callable[[str], None]) -> None:
        """
        Args:
            sweep: its folder, for the records of ended trials.
            tell: called, maybe in another thread, with a line for the user.
        """
        self._tracker, self._sweep, self._tell = tracker, sweep, tell
        self._calls: deque[Call] = deque()
        self._there = threading.Condition()
        self._deadline: float | None = None  # once it is closed
        self.error: Exception | None = None  # why the store was away when last tried; none: it is there
        self.left_out: set[str] = (
            set()
        )  # trials of which the store refuses something, until `Tracker.conclude`
        self._failures = self._refusals = 0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, name: str, trial: str, *arguments: Any) -> None:
        """Have the tracker's method `name` called with the trial and the arguments, soon."""
        self._put((trial, name, (trial, *arguments)))

    def start(self, sweep: SweepRecord, teacher: TeacherRecord) -> None:
        """The sweep begins, or goes on, with that teacher and its assistants."""
        self._put(("", "start", (sweep,)))
        told = teacher.name, teacher.key, teacher.settings, teacher.history, teacher.metrics
        self._put(("", "teacher", told))
        for assistant in teacher.assistants.values():
            # It is its last epoch, which a teacher, its best one, may not be.
            *before, last = assistant.history
            told = assistant.name, assistant.key, assistant.settings, before, last
            self._put(("", "teacher", (*told, "assistant")))

    def _put(self, call: Call) -> None:
        with self._there:
            self._calls.append(call)
            self._there.notify()

    def settle(self, trial: str) -> None:
        """The trial has ended, and its record is on disk: what is still to be told of it comes from there."""
        with self._there:
            self._calls = deque(call for call in self._calls if call[0] != trial)
            self._calls.append((trial, "settle", ()))
            self._there.notify()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until all is delivered; no longer than `patience_s` for a store that is away, or does not answer."""
        with self._there:
            self._deadline = time.monotonic() + patience_s
            self._there.notify()
        while self._thread.is_alive():
            before = len(self._calls)
            self._thread.join(patience_s)
            if len(self._calls) == before:
                break

    @property
    def complete(self) -> bool:
        """Whether the store has all that it was to be told."""
        return not self._thread.is_alive() and not self._calls

    def _work(self) -> None:
        while call := self._next():
            answers = not self._failures
            try:
                if self._failures:
                    self._tracker.take_stock()
                    answers = True
                self._deliver(call)
            except Exception as error:  # every store raises its own
                if not self._tries_again(call, error, answers):
                    return
            else:
                if self._failures:
                    self._tell("MLflow is back, and gets what it has missed")
                self._done(call)

    def _next(self) -> Call | None:
        """The oldest call; it stays in its place until it is done. None: it is closed, and there is none."""
        with self._there:
            while not self._calls and self._deadline is None:
                self._there.wait()
            return self._calls[0] if self._calls else None

    def _deliver(self, call: Call) -> None:
        trial, name, arguments = call
        if trial in self.left_out:
            return
        if name == "settle":
            self._tracker.settle(read_trial(self._sweep, trial))
        else:
            getattr(self._tracker, name)(*arguments)

    def _done(self, call: Call) -> None:
        self.error, self._failures, self._refusals = None, 0, 0
        with self._there:
            if self._calls and self._calls[0] is call:  # else the trial has ended meanwhile
                self._calls.popleft()

    def _tries_again(self, call: Call, error: Exception, answers: bool) -> bool:
        """After a failure: wait, if there is time left; `answers`: the store is there, and refuses just this."""
        self._refusals += answers
        if self._refusals > ATTEMPTS:
            self.left_out.add(call[0])
            self._done(call)
            return True
        if not self._failures:
            self._tell(
                f"MLflow cannot be written ({self._tracker.redact_error(error)}); the sweep goes on, and delivers it "
                "later"
            )
        self.error, self._failures = error, self._failures + 1
        pause = min(FIRST_RETRY_S * 2**self._failures, LAST_RETRY_S)
        with self._there:
            self._there.wait_for(lambda: self._deadline is not None, pause)
        if self._deadline is None:
            return True
        time.sleep(FIRST_RETRY_S)
        return time.monotonic() < self._deadline
