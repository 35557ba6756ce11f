"""Write to MLflow in a background thread that survives an unavailable server."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ikd_ray.errors import StoreError
from ikd_ray.records import SweepRecord, read_trial
from ikd_ray.tracking.store_client import FIRST_RETRY_S, LAST_RETRY_S
from ikd_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from ikd_ray.distill.teacher import TeacherRecord

PATIENCE_S = 20.0  # for an unavailable store at the end of a sweep
MAX_REFUSALS = 2  # attempts of a call that the store answers with an error


class _Call(NamedTuple):
    number: int  # in the order of the calls
    trial: str  # empty for calls about the whole sweep
    method: str  # of the tracker
    arguments: tuple[Any, ...]


class _CallQueue:
    """Calls in order, from whose middle those about a trial are removed without reading the others."""

    def __init__(self) -> None:
        self._calls: OrderedDict[int, _Call] = OrderedDict()  # by number
        self._numbers: dict[
            str, list[int]
        ] = {}  # of the calls about a trial that runs, also those made already
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def first(self) -> _Call | None:
        """The oldest call; None if there is none."""
        return next(iter(self._calls.values()), None)

    def append(self, trial: str, method: str, arguments: tuple[Any, ...]) -> None:
        """Add the newest call."""
        call = _Call(next(self._count), trial, method, arguments)
        self._calls[call.number] = call
        self._numbers.setdefault(trial, []).append(call.number)

    def replace(self, trial: str, method: str) -> None:
        """Put one call in the place of all that wait about a trial; it is the newest."""
        for number in self._numbers.pop(trial, ()):
            self._calls.pop(number, None)
        call = _Call(next(self._count), trial, method, ())
        self._calls[call.number] = call

    def remove(self, call: _Call) -> None:
        """Remove a call, unless it has been replaced."""
        self._calls.pop(call.number, None)


class _Closing:
    """Time that a closed tracker still has: `patience_s` after the store's last answer, until `limit` at most."""

    def __init__(self, patience_s: float, limit: float) -> None:
        self.patience_s, self.limit = patience_s, limit
        self.extend()

    def extend(self) -> None:
        """Count the patience from now."""
        self.deadline = min(time.monotonic() + self.patience_s, self.limit)


class AsyncTracker:
    """Queue of a tracker's calls, made in order by a thread of its own.

    Training never waits for the store. While the store is unavailable, calls about running trials are kept in
    memory; those about an ended trial are replaced by its record on disk.

    Attributes:
        error: Exception of the last attempt; None if it succeeded.
        refused: Trials that have a call which the store refuses. `Tracker.finish_sweep` tries them again.
    """

    def __init__(self, tracker: Tracker, sweep: Path, notify: Callable[[str], None]) -> None:
        """Start the thread.

        `sweep` is the folder with the records of ended trials. `notify` is called with a line for the user, possibly
        from another thread.
        """
        self._tracker, self._sweep, self._notify = tracker, sweep, notify
        self._calls = _CallQueue()
        self._changed = threading.Condition()
        self._closing: _Closing | None = None
        self._failures = self._refusals = 0  # consecutive
        self.error: Exception | None = None
        self.refused: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def start_sweep(self, sweep: SweepRecord, teacher: TeacherRecord) -> None:
        """Log the start of a sweep, its teacher and its assistants."""
        self._put("", "start_sweep", sweep)
        self._put("", "log_teacher", teacher)
        for assistant in teacher.assistants.values():
            self._put("", "log_teacher", assistant, "assistant")

    def start_trial(self, trial: str, params: Mapping[str, Any], at: float) -> None:
        """Queue `Tracker.start_trial`."""
        self._put(trial, "start_trial", trial, params, at)

    def log_epoch(self, trial: str, metrics: Mapping[str, float], epoch: int, at: float) -> None:
        """Queue `Tracker.log_epoch`."""
        self._put(trial, "log_epoch", trial, metrics, epoch, at)

    def tag_trial(self, trial: str, reused_from: Sequence[str] = (), warnings: Sequence[str] = ()) -> None:
        """Queue `Tracker.tag_trial`."""
        self._put(trial, "tag_trial", trial, reused_from, warnings)

    def log_trial(self, trial: str) -> None:
        """Log an ended trial from its record on disk, in place of its calls that still wait."""
        with self._changed:
            self._calls.replace(trial, "log_trial")
            self._changed.notify()

    def close(self, patience_s: float = PATIENCE_S, limit_s: float = math.inf) -> None:
        """Wait until the queue is empty.

        Args:
            patience_s: Seconds to wait for a store that is unavailable or hangs, counted from its last answer.
            limit_s: Seconds to wait in all.
        """
        with self._changed:
            self._closing = closing = _Closing(patience_s, time.monotonic() + limit_s)
            self._changed.notify()
        while self._thread.is_alive():
            waiting = len(self._calls)
            self._thread.join(min(patience_s, limit_s))
            if len(self._calls) == waiting or time.monotonic() > closing.limit:
                break

    @property
    def complete(self) -> bool:
        """True if the tracker is closed and every call was made."""
        return not self._thread.is_alive() and not self._calls

    def _put(self, trial: str, method: str, *arguments: Any) -> None:
        with self._changed:
            self._calls.append(trial, method, arguments)
            self._changed.notify()

    def _work(self) -> None:
        while call := self._next_call():
            available = not self._failures
            try:
                if self._failures:
                    self._tracker.refresh_runs()
                    available = True
                self._make(call)
            except Exception as error:  # every store raises its own
                if not self._retry(call, error, available):
                    return
            else:
                if self._failures:
                    self._notify("MLflow is back, and gets what it has missed")
                self._remove(call)

    def _next_call(self) -> _Call | None:
        """Wait for a call and return it without removing it; None if the tracker is closed and the queue empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closing)
            return self._calls.first

    def _make(self, call: _Call) -> None:
        if call.trial in self.refused:
            return
        if call.method == "log_trial":
            self._tracker.log_trial(read_trial(self._sweep, call.trial))
        else:
            getattr(self._tracker, call.method)(*call.arguments)

    def _remove(self, call: _Call) -> None:
        self.error, self._failures, self._refusals = None, 0, 0
        with self._changed:
            if self._closing:
                self._closing.extend()
            self._calls.remove(call)

    def _retry(self, call: _Call, error: Exception, available: bool) -> bool:
        """Wait before the next attempt; return False if there is no time left for one.

        `available` says that the store answered another call just before: it refuses this one.
        """
        is_transient = isinstance(error, StoreError) and error.is_transient
        self._refusals += available and not is_transient
        if self._refusals > MAX_REFUSALS:
            self.refused.add(call.trial)
            self._remove(call)
            return True
        if not self._failures:
            self._notify(
                f"MLflow cannot be written ({self._tracker.redact_error(error)}); the sweep goes on, and delivers it "
                "later"
            )
        self.error, self._failures = error, self._failures + 1
        pause = min(FIRST_RETRY_S * 2**self._failures, LAST_RETRY_S)
        with self._changed:
            self._changed.wait_for(lambda: self._closing, pause)
        if self._closing is None:
            return True
        time.sleep(FIRST_RETRY_S)
        return time.monotonic() < self._closing.deadline
