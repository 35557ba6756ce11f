"""What a trial tells Tune, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass

from ikd_ray.distill.epoch_cache import PendingEpoch

REPORT = "report"  # key of a result with an `Epoch`, opaque to Tune, which keeps statistics of every number
FAILED = "failed"  # key of a result that ends a trial without metrics: the reason
WAITS = "waits"  # key of a result that ends a trial for Tune alone: a `Paused`
HALTS = "halts"  # key of a result that ends a trial for now, and the sweep with it: what the machine lacks

PLACE = ("method", "again", "seeds")  # what a trial is told of its place in the sweep; its record has it, too

MOST_DEATHS = 3  # of a trial's process in a row, with no new epoch in between


@dataclass(frozen=True)
class Paused:
    """A trial that has left its place to others until an epoch is there that somebody else is training."""

    busy: PendingEpoch
    warnings: list[str]


def trial_id(number: int) -> str:
    """A trial's name, the same in the study, in MLflow and on disk."""
    return f"t{number:03d}"
