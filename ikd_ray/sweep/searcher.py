"""Ray Tune search algorithm that takes a sweep's trials from their queue."""

from __future__ import annotations

from typing import Any

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
