"""Training that a sweep's trials reused from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ikd_ray.analysis.dataframes import epochs_frame
from ikd_ray.formatting import duration
from ikd_ray.records import TrialRecord

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Savings:
    """Training that finished trials did themselves, out of all the training that they went through.

    Internal stages count in layer-epochs, one layer trained for one epoch, since their epochs cost more with every
    layer that trains; the classification stage counts in epochs.
    """

    internal_trained: int = 0
    internal_total: int = 0
    classification_trained: int = 0
    classification_total: int = 0
    spent_s: float = 0.0  # wall time of the trials
    saved_s: float = 0.0  # time that the reused epochs took when they were trained

    @property
    def reused(self) -> bool:
        """True if any epoch was reused."""
        trained = self.internal_trained + self.classification_trained
        return trained < self.internal_total + self.classification_total

    @property
    def internal_ratio(self) -> float | None:
        """Layer-epochs in all for each one that was trained; None if none was."""
        return self.internal_total / self.internal_trained if self.internal_trained else None

    @property
    def classification_ratio(self) -> float | None:
        """Epochs in all for each one that was trained; None if none was."""
        return (
            self.classification_total / self.classification_trained if self.classification_trained else None
        )

    def metrics(self) -> dict[str, float]:
        """Return the metrics that the sweep's MLflow run shows."""
        return {
            "sharing/internal_layer_epochs": float(self.internal_total),
            "sharing/internal_layer_epochs_trained": float(self.internal_trained),
            "sharing/classification_epochs": float(self.classification_total),
            "sharing/classification_epochs_trained": float(self.classification_trained),
            "time/spent_s": self.spent_s,
            "time/saved_s": self.saved_s,
        }

    def __str__(self) -> str:
        def part(trained: int, total: int, unit: str, ratio: float | None) -> str:
            fewer = f" ({ratio:.1f}x fewer)" if ratio and ratio > 1 else ""
            return f"{trained} of {total} {unit} trained{fewer}"

        internal = part(self.internal_trained, self.internal_total, "layer-epochs", self.internal_ratio)
        classification = part(
            self.classification_trained, self.classification_total, "epochs", self.classification_ratio
        )
        parts = [f"internal stages: {internal}"] if self.internal_total else []
        times = f"{duration(self.saved_s)} of work saved, {duration(self.spent_s)} spent"
        return "; ".join([*parts, f"classification: {classification}", times])


def compute_savings(trials: Sequence[TrialRecord]) -> Savings:
    """Count what the finished ones among `trials` trained and reused.

    Records of versions without sharing count as fully trained.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    epochs = epochs_frame(finished)
    trained, internal = ~epochs["reused"], epochs["internal"]
    layers = epochs["layers_trained"]
    return Savings(
        internal_trained=int(layers[internal & trained].sum()),
        internal_total=int(layers[internal].sum()),
        classification_trained=int((~internal & trained).sum()),
        classification_total=int((~internal).sum()),
        spent_s=sum(trial.metrics.get("time/spent_s", trial.duration_s) for trial in finished),
        saved_s=sum(trial.metrics.get("time/saved_s", 0.0) for trial in finished),
    )


def trial_costs(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """Return the seconds of each trial, one row per trial, indexed by trial id.

    Columns: `training`, spent on its own epochs; `other`, spent on evaluation, starting, saving and waiting; `spent`,
    their sum; `reused`, what the epochs that it reused had cost other trials.
    """
    import pandas as pd

    seconds = epochs_frame(trials).groupby(level="id")[["time/epoch_s", "time/reused_s"]].sum()
    costs = seconds.rename(columns={"time/epoch_s": "training", "time/reused_s": "reused"})
    costs = costs.reindex([trial.id for trial in trials], fill_value=0.0)
    spent = pd.Series({trial.id: trial.metrics.get("time/spent_s", trial.duration_s) for trial in trials})
    other = (spent - costs["training"]).clip(lower=0)
    return costs.assign(other=other, spent=costs["training"] + other)
