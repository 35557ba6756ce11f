"""What a trial tells Tune, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ikd_ray.distill.checkpoint import Busy

REPORT = "report"  # key of a result with an `Epoch`, opaque to Tune, which keeps statistics of every number
FAILED = "failed"  # key of a result that ends a trial without metrics: the reason
WAITS = "waits"  # key of a result that ends a trial for Tune alone: a `Waits`


@dataclass(frozen=True)
class Waits:
    """A trial that has left its place to others until an epoch is there that somebody else is training."""

    busy: Busy
    reported: int  # epochs
    spent_s: float
    warnings: list[str]

    def resumption(self) -> dict[str, Any]:
        """What the trial is given when it comes again."""
        return {"reported": self.reported, "spent_s": self.spent_s, "warnings": self.warnings}


def trial_id(number: int) -> str:
    """A trial's name, the same in the study, in MLflow and on disk."""
    return f"t{number:03d}"
