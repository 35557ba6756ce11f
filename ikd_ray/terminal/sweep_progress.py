"""Progress of a sweep's trials, and estimates of the time left. Times are seconds of the sweep's clock."""

from __future__ import annotations

import heapq
import math
import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ikd_ray.formatting import MAX_REASON_CHARS, MISSING, clean, decimal

if TYPE_CHECKING:
    from ikd_ray.distill.epoch import Epoch

ENDED_KEPT = 5


@dataclass
class TrialProgress:
    """Reports of one trial so far."""

    id: str
    number: int | None  # None: it failed before its start was announced
    params: dict[str, Any]
    started: float
    last: Epoch | None = None
    reported: float = 0.0  # time of the last report
    metrics: dict[str, float] = field(default_factory=dict)
    trained_seconds: list[float] = field(default_factory=list)  # of each epoch that was not reused
    paused_since: float | None = None  # while it waits for an epoch that another trial trains
    paused_seconds: float = 0.0  # of the pauses that are over
    ended: float | None = None
    failure: str = ""

    @property
    def title(self) -> str:
        """The trial's number and id."""
        return f"#{MISSING if self.number is None else self.number} {clean(self.id)}"

    @property
    def epoch(self) -> int:
        """The number of the last epoch; 0 before the first."""
        return self.last.epoch if self.last else 0

    @property
    def reused(self) -> str:
        """The number of epochs that other trials had trained, as text; empty if there are none."""
        count = self.metrics.get("reused_epochs", 0.0)
        return f"{count:.0f} of {count + self.metrics['trained_epochs']:.0f} epochs" if count else ""

    def param(self, name: str) -> str:
        """Return a parameter as text."""
        return clean(self.params.get(name, MISSING))

    def resume(self, now: float) -> None:
        """End the pause, if there is one."""
        pause = now - self._active_until(now)
        self.paused_seconds += pause
        self.reported += pause
        self.paused_since = None

    def active_seconds(self, now: float) -> float:
        """Return how long the trial has occupied a slot."""
        return self._active_until(now) - self.started - self.paused_seconds

    def time_left(self, now: float) -> float | None:
        """Return the seconds left, from the mean duration of the epochs trained so far; None before the first.

        Reused epochs take no time and predict nothing. While the trial is paused its time left stays constant.
        """
        if self.last is None or not self.trained_seconds:
            return None
        remaining = self.last.remaining * statistics.fmean(self.trained_seconds)
        return max(0.0, remaining - (self._active_until(now) - self.reported))

    def _active_until(self, now: float) -> float:
        return now if self.paused_since is None else self.paused_since


class SweepProgress:
    """The trials of a sweep: running ones, the last few that ended, and totals.

    Args:
        total: Trials that will run.
        concurrent: Trials at once, at most.
        metric: Metric by which trials are compared, e.g. `dev/mcc`; greater is better.
        now: Returns the time in seconds from any origin.
        limit_s: Seconds after which the sweep ends, whatever the number of trials.
    """

    def __init__(
        self,
        total: int,
        concurrent: int,
        metric: str,
        now: Callable[[], float],
        limit_s: float | None = None,
    ) -> None:
        self._limit_s = limit_s
        self.total, self.concurrent, self.metric, self.now = total, max(1, concurrent), metric, now
        self.started = now()
        self.finished = self.failed = 0
        self.best: TrialProgress | None = None
        self.last_failure: TrialProgress | None = None
        self.running: dict[str, TrialProgress] = {}
        self.ended: deque[TrialProgress] = deque(maxlen=ENDED_KEPT)  # newest first
        self.lock = threading.RLock()  # a refreshing thread draws what another one changes
        self._finished_seconds = 0.0

    def start(self, id: str, number: int | None, params: dict[str, Any]) -> TrialProgress:
        """Add a trial that starts."""
        trial = TrialProgress(id, number, dict(params), self.now())
        with self.lock:
            self.running[id] = trial
        return trial

    def pause(self, id: str) -> TrialProgress:
        """Pause a trial: it gives up its slot until it is resumed."""
        trial = self._get(id)
        with self.lock:
            if trial.paused_since is None:
                trial.paused_since = self.now()
        return trial

    def resume(self, id: str) -> TrialProgress | None:
        """Resume a trial; None if it has not started."""
        trial = self.running.get(id)
        if trial:
            with self.lock:
                trial.resume(self.now())
        return trial

    def report(self, id: str, epoch: Epoch) -> TrialProgress:
        """Add a trial's epoch."""
        trial = self._get(id)
        with self.lock:
            trial.resume(self.now())
            trial.last, trial.metrics, trial.reported = epoch, dict(epoch.metrics), self.now()
            if not epoch.reused_from:
                seconds = epoch.metrics["time/epoch_s"] + epoch.metrics["time/evaluation_s"]
                trial.trained_seconds.append(seconds)
        return trial

    def finish(self, id: str, metrics: dict[str, float]) -> TrialProgress:
        """End a trial that finished."""
        trial = self._get(id)
        with self.lock:
            now = self._end(trial)
            trial.metrics |= metrics
            self.finished += 1
            self._finished_seconds += trial.active_seconds(now)
            value = trial.metrics.get(self.metric, math.nan)
            if math.isfinite(value) and (self.best is None or value > self.best.metrics[self.metric]):
                self.best = trial
        return trial

    def fail(self, id: str, reason: str) -> TrialProgress:
        """End a trial that failed."""
        trial = self._get(id)
        with self.lock:
            self._end(trial)
            trial.failure = clean(reason, MAX_REASON_CHARS) or "no reason given"
            self.failed += 1
            self.last_failure = trial
        return trial

    def _end(self, trial: TrialProgress) -> float:
        trial.ended = self.now()
        trial.resume(trial.ended)
        del self.running[trial.id]
        self.ended.appendleft(trial)
        return trial.ended

    def _get(self, id: str) -> TrialProgress:
        # A trial may fail, or be started again, without having been announced.
        return self.running.get(id) or self.start(id, None, {})

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep started."""
        return self.now() - self.started

    @property
    def ended_text(self) -> str:
        """The number of trials that have ended, and of how many."""
        ended = self.finished + self.failed
        return f"{ended} of {self.total} ended" if self._limit_s is None else f"{ended} ended"

    @property
    def share(self) -> float:
        """The part of the sweep that is done, between 0 and 1."""
        if self._limit_s is not None:
            return min(self.elapsed / self._limit_s, 1.0)
        return (self.finished + self.failed) / max(self.total, 1)

    def best_text(self) -> str:
        """Describe the best finished trial by its metric, number, regime and depth."""
        assert self.best is not None
        number, layers = self.best.title.split()[0], self.best.param("student_layers")
        depth = f"{layers} layer{'' if layers == '1' else 's'}"
        return f"{decimal(self.best.metrics[self.metric])} ({number} {self.best.param('regime')}, {depth})"

    def time_left(self) -> float | None:
        """Return the seconds until the last trial ends, or None while they are unknown.

        Trials that have not started are expected to take as long as the mean finished one, each in the slot that
        is free first. A running one has its own estimate, or before its first epoch the rest of the mean. A paused
        one has no slot; it gets the next free one before the trials that have not started.
        """
        if self._limit_s is not None:
            return max(self._limit_s - self.elapsed, 0.0)
        with self.lock:
            now = self.now()
            mean = self._finished_seconds / self.finished if self.finished else None
            to_start = max(0, self.total - self.finished - self.failed - len(self.running))
            if mean is None and to_start:
                return None
            slots: list[float] = []  # seconds until each slot is free
            waiting: list[float] = []  # seconds that trials without a slot will take
            for trial in self.running.values():
                left = trial.time_left(now)
                if left is None:
                    if mean is None:
                        return None
                    left = max(0.0, mean - trial.active_seconds(now))
                (slots if trial.paused_since is None else waiting).append(left)
        slots += [0.0] * (self.concurrent - len(slots))
        heapq.heapify(slots)
        for seconds in waiting:
            heapq.heapreplace(slots, slots[0] + seconds)
        return _last_end(slots, to_start, mean or 0.0)


def _last_end(slots: list[float], trials: int, seconds: float) -> float:
    """Return when the last of some trials ends that take equally long, each in the slot that is free first.

    The time that this takes does not depend on the number of trials.

    Args:
        slots: when each slot is free, in seconds from now.
        trials: number of trials to come.
        seconds: that each of them takes.
    """
    if not trials or not seconds:
        return max(slots)
    slots, last = sorted(slots), max(slots)
    while True:
        # So many trials start in each slot before the last slot is free.
        before = [math.ceil((slots[-1] - free) / seconds) for free in slots]
        if sum(before) <= trials:
            break
        slots.pop()  # it is free too late for any trial
    ends = sorted(free + count * seconds for free, count in zip(slots, before, strict=True))
    # From now on every slot gets one trial in each round.
    rounds, rest = divmod(trials - sum(before), len(slots))
    end = ends[rest - 1] + (rounds + 1) * seconds if rest else ends[-1] + rounds * seconds
    return max(last, end)
