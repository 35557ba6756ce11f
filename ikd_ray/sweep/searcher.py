"""Ray Tune's search algorithm, which takes a sweep's trials from their queue, and its scheduler."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ikd_ray.search.trial_queue import TrialQueue


class QueueSearcher(Searcher):
    """Gives Tune the trials of a queue; `SweepCallback` tells the queue how they ended."""

    def __init__(self, queue: TrialQueue) -> None:
        super().__init__()
        self._queue = queue

    # Ray's annotation omits `Searcher.FINISHED`.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the configuration of the next trial; None while it must wait for others."""
        return self._queue.next() or (Searcher.FINISHED if self._queue.is_finished else None)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ignore the result, which the callback gets too."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a sweep is resumed from its study and its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""


class LiveTrialScheduler(FIFOScheduler):
    """Starts trials in their order, as Tune's default scheduler does, and forgets those that have ended.

    The default one reads all trials of the sweep at every event.
    """

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[Trial, None] = {}  # in their order
        self._controller: Any = None

    def stop_trials(self) -> None:
        """End the processes of all trials, and free what they hold, after an interrupt that Tune does not handle."""
        if self._controller is not None:
            self._controller.cleanup()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_controller": None}  # Tune pickles its scheduler

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Note a trial that is new, or is to run again after the others."""
        self._controller = tune_controller
        self._live.pop(trial, None)
        self._live[trial] = None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forget a trial that ended."""
        self._live.pop(trial, None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial whose process died."""
        self._live.pop(trial, None)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that was stopped."""
        self._live.pop(trial, None)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the first trial that is pending, or else the first that is paused; None without one."""
        for status in (Trial.PENDING, Trial.PAUSED):
            waiting = (trial for trial in self._live if trial.status == status)
            if (first := next(waiting, None)) is not None:
                return first
        return None
