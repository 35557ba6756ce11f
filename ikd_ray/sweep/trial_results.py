"""Results that a trial reports to Ray Tune, and the trial's id."""

from __future__ import annotations

from dataclasses import dataclass

from ikd_ray.distill.epoch_cache import PendingEpoch

# Keys of a result. Values are opaque to Tune, which keeps statistics of every number.
REPORT = "report"  # an `Epoch` of the trial
FAILED = "failed"  # what its configuration caused; the trial ends without metrics
ERROR = "error"  # an unexpected error; the trial ends, and a resumed sweep runs it again
PAUSED = "paused"  # a `Paused`; the trial gives up its slot until an epoch is available
STOPPED = "stopped"  # what the machine lacks (disk, a file, the network); the trial and the sweep end for now

SPEC_FIELDS = ("method", "retrained", "seeds")  # of a trial's configuration; its record has them too

MAX_FAILURES = 3  # failures of a trial's process in a row, without a new epoch in between


@dataclass(frozen=True)
class Paused:
    """State of a trial that waits for an epoch that another process is training."""

    pending: PendingEpoch
    warnings: list[str]


def trial_id(number: int) -> str:
    """Return the id of trial `number` (0-based): its name in MLflow and on disk."""
    return f"t{number:03d}"
