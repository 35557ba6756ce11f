"""Ray Tune search algorithm that takes a sweep's trials from their queue."""

from __future__ import annotations

from typing import Any

from ray.tune.search import Searcher

from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.sweep.trial_results import FAILED, PAUSED, REPORT


class QueueSearcher(Searcher):
    """Adapter between Tune, which names trials itself, and a queue that numbers them."""

    def __init__(self, queue: TrialQueue) -> None:
        """Search by a queue."""
        super().__init__()
        self._queue = queue
        self._numbers: dict[str, int] = {}  # by Tune's id of a running trial

    # Ray's annotation omits `Searcher.FINISHED`.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the configuration of the next trial; None while it must wait for others."""
        configuration = self._queue.next()
        if configuration is None:
            return Searcher.FINISHED if self._queue.is_finished else None
        self._numbers[trial_id] = configuration["number"]
        return configuration

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the queue how a trial ended, except for failures: `SweepCallback` decides what follows from them."""
        number, result = self._numbers.pop(trial_id, None), result or {}
        if number is None or error or FAILED in result:
            return
        if PAUSED in result:
            self._queue.retry(number, result[PAUSED].warnings, result[PAUSED].pending)
        elif REPORT in result and result[REPORT].remaining == 0:
            self._queue.finish(number, result[REPORT].metrics)
        else:
            self._queue.release(number)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore the result: the sampler uses final metrics only."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a sweep is resumed from its study and its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""
