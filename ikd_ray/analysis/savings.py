"""How much of their training a sweep's trials took from others instead of doing it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ikd_ray.config import make_trial
from ikd_ray.distill.regimes import REGIMES, Stage
from ikd_ray.formatting import duration
from ikd_ray.records import TrialRecord


@dataclass(frozen=True)
class Savings:
    """What finished trials trained of all they went through; they reused the rest.

    Internal stages count in layer-epochs, a layer trained through one epoch, as their epochs differ in cost by
    the layers that train; classification stages in epochs.
    """

    internal_trained: int = 0
    internal_total: int = 0
    classification_trained: int = 0
    classification_total: int = 0
    spent_s: float = 0.0  # what the trials took
    saved_s: float = 0.0  # what the reused epochs took when they were trained

    @property
    def reused(self) -> bool:
        trained = self.internal_trained + self.classification_trained
        return trained < self.internal_total + self.classification_total

    @property
    def internal_ratio(self) -> float | None:
        """Layer-epochs for each one that was trained; none where none was."""
        return self.internal_total / self.internal_trained if self.internal_trained else None

    @property
    def classification_ratio(self) -> float | None:
        """Epochs for each one that was trained; none where none was."""
        return (
            self.classification_total / self.classification_trained if self.classification_trained else None
        )

    def metrics(self) -> dict[str, float]:
        """For the sweep's run in MLflow."""
        return {
            "sharing/internal_layer_epochs": float(self.internal_total),
            "sharing/internal_layer_epochs_trained": float(self.internal_trained),
            "sharing/classification_epochs": float(self.classification_total),
            "sharing/classification_epochs_trained": float(self.classification_trained),
            "time/spent_s": self.spent_s,
            "time/saved_s": self.saved_s,
        }

    def __str__(self) -> str:
        internal = self.internal_trained, self.internal_total, "layer-epochs", self.internal_ratio
        classification = (
            self.classification_trained,
            self.classification_total,
            "epochs",
            self.classification_ratio,
        )
        parts = [f"internal stages: {_part(*internal)}"] if self.internal_total else []
        parts += [f"classification: {_part(*classification)}"]
        times = f"{duration(self.saved_s)} of work saved, {duration(self.spent_s)} spent"
        return "; ".join([*parts, times])


def _part(trained: int, total: int, unit: str, ratio: float | None) -> str:
    fewer = f" ({ratio:.1f}x fewer)" if ratio and ratio > 1 else ""
    return f"{trained} of {total} {unit} trained{fewer}"


def compute_savings(trials: Sequence[TrialRecord]) -> Savings:
    """What the finished ones among `trials` shared; those of versions that shared nothing trained all."""
    finished = [trial for trial in trials if trial.status == "finished"]
    epochs = [epoch for trial in finished for epoch in _epochs(trial)]
    internal = [(len(stage.trains), reused) for stage, reused in epochs if not stage.decays]
    classification = [reused for stage, reused in epochs if stage.decays]
    return Savings(
        internal_trained=sum(layers for layers, reused in internal if not reused),
        internal_total=sum(layers for layers, _ in internal),
        classification_trained=classification.count(False),
        classification_total=len(classification),
        spent_s=sum(trial.metrics.get("time/spent_s", trial.duration_s) for trial in finished),
        saved_s=sum(trial.metrics.get("time/saved_s", 0.0) for trial in finished),
    )


def _epochs(trial: TrialRecord) -> Iterator[tuple[Stage, bool]]:
    """Each epoch's stage, and whether the epoch was reused."""
    stages = REGIMES[trial.params["regime"]](make_trial(trial.params))
    for epoch in trial.history:
        yield stages[int(epoch["stage"]) - 1], is_reused(epoch)


def is_reused(epoch: Mapping[str, float]) -> bool:
    """Whether an epoch with these metrics was trained by another trial."""
    return epoch.get("time/reused_s", 0.0) > 0
