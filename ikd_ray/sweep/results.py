"""What a trial tells Tune, and what it is called."""

from __future__ import annotations

REPORT = "report"  # key of a result with an `Epoch`, opaque to Tune, which keeps statistics of every number
FAILED = "failed"  # key of a result that ends a trial without metrics: the reason


def trial_id(number: int) -> str:
    """A trial's name, the same in the study, in MLflow and on disk."""
    return f"t{number:03d}"
