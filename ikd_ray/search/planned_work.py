"""The training that a configuration plans: its epochs, the cost of each, and which ones earlier trials plan too.

All of it is known before a trial runs and depends on the configuration alone, so that neither a clock nor the content
of a cache changes what a search chooses.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ikd_ray.config import Trial, make_trial
from ikd_ray.distill.cache_keys import stage_settings
from ikd_ray.distill.regimes import REGIMES, Stage
from ikd_ray.records import TrialRecord


@dataclass(frozen=True)
class EpochCosts:
    """Cost per example of the parts of an epoch, in any one unit.

    Of the highest layer most families compute the [CLS] position only, which makes it cheaper than those below. So an
    epoch over n examples costs `n * (top_layer + lower_layer * (trained - 1) + internal_losses * matched)`, with
    `trained` layers in the forward and backward pass and `matched` layers with internal losses.
    """

    top_layer: float
    lower_layer: float
    internal_losses: float
    """Cost of the internal losses of one layer."""
    evaluated_top_layer: float
    evaluated_lower_layer: float

    def of_stage(self, stage: Stage, student_layers: int, size: DataSize) -> tuple[float, float]:
        """Return the cost of a stage's start, which evaluates newly frozen layers, and of each of its epochs."""
        depth = stage.depth(student_layers)
        frozen = min(stage.frozen(student_layers), depth)
        train = size.train + (size.unlabelled if stage.uses_teacher else 0)
        start = (size.train + size.unlabelled + size.evaluation) * self.evaluated_lower_layer * min(frozen, 1)
        step = self.training(depth - frozen) + self.internal_losses * len(stage.layers)
        return start, train * step + size.evaluation * self.evaluation(student_layers - frozen)

    def training(self, layers: int) -> float:
        """Return the cost of an example in the forward and backward pass of so many layers."""
        return self.top_layer + self.lower_layer * max(layers - 1, 0)

    def evaluation(self, layers: int) -> float:
        """Return the cost of an example in the evaluation of so many layers."""
        return self.evaluated_top_layer + self.evaluated_lower_layer * max(layers - 1, 0)


RELATIVE_COSTS = EpochCosts(0.4, 1.0, 0.15, 0.15, 0.35)
"""Costs relative to the training of a lower layer, as measured with MiniLM on CoLA."""
WHOLE_TOP_LAYER_COSTS = replace(RELATIVE_COSTS, top_layer=1.1, evaluated_top_layer=0.45)
"""The same of families whose highest layer is computed for all tokens."""
EARLY_END = 0.4
"""Weight of the epochs after the first of a stage that a threshold may end: about so many of them are trained."""
TRIAL_COST = 0.02
"""Cost of a trial besides its epochs, as a share of training a lower layer on all examples."""


@dataclass(frozen=True)
class DataSize:
    """Numbers of examples that trials train on, and are evaluated on after every epoch."""

    train: int
    evaluation: int
    unlabelled: int = 0
    """Texts without a label that trials train on besides."""

    @classmethod
    def of(cls, lengths: Mapping[str, int], unlabelled: int = 0) -> DataSize:
        """Return the size of a data set, given the number of examples of each split, and of those without a label."""
        return cls(lengths["train"] - unlabelled, sum(lengths.values()) - lengths["train"], unlabelled)


class PlannedEpoch(NamedTuple):
    """An epoch that a configuration trains at most, and its expected cost; epochs with equal keys are the same."""

    key: tuple[Hashable, int]
    """Key of the stage with all before it, and the epoch's number in the stage."""
    cost: float


def plan_epochs(
    trial: Trial, size: DataSize, costs: EpochCosts = RELATIVE_COSTS, early_end: float = EARLY_END
) -> list[PlannedEpoch]:
    """Return the epochs that a configuration trains where no stage ends early.

    The cost of those that a threshold may save is multiplied by `early_end`.

    Two configurations share the epochs of their equal first stages, and of the first stage in which they differ if
    they differ only in when it ends.
    """
    size = DataSize(
        round(size.train * trial.train_fraction),
        size.evaluation,
        round(size.unlabelled * trial.unlabelled_fraction),
    )
    stages = REGIMES[trial.regime](trial)
    model = (trial.student_layers, trial.student_init, trial.assistant_layers, trial.seed)
    unlabelled = trial.unlabelled_fraction if any(stage.uses_teacher for stage in stages) else None
    fractions = (trial.train_fraction, unlabelled)
    begun: Hashable = (*model, trial.embeddings, trial.learning_rate, trial.batch_size, *fractions)
    epochs: list[PlannedEpoch] = []
    for stage in stages:
        # A hash in place of all that it stands for: sets hash the keys of long trials many times.
        key = hash((begun, *stage_settings(stage).items()))
        start, epoch = costs.of_stage(stage, trial.student_layers, size)
        for number in range(1, stage.epochs + 1):
            cost = start + epoch if number == 1 else epoch * (early_end if stage.cosine_threshold else 1.0)
            epochs.append(PlannedEpoch((key, number), cost))
        begun = (key, stage.epochs, stage.cosine_threshold)
    return epochs


def total_cost(trial: Trial, size: DataSize, costs: EpochCosts = RELATIVE_COSTS) -> float:
    """Return the cost of all epochs of a trial none of whose stages ends early."""
    return sum(epoch.cost for epoch in plan_epochs(trial, size, costs, early_end=1.0))


class Need(NamedTuple):
    """Training that a configuration needs beside that of the trials before it."""

    cost: float
    is_new: bool
    """False if an earlier trial trains exactly the same."""


class PlannedWork:
    """The epochs that a sweep's trials have planned so far."""

    def __init__(self, size: DataSize, shares: bool = True, costs: EpochCosts = RELATIVE_COSTS) -> None:
        """Start without trials; `shares` says whether a trial reuses epochs of earlier ones."""
        self._size, self._shares, self._costs = size, shares, costs
        self._planned = set[Hashable]()
        self._last = set[Hashable]()  # keys of the trials' last epochs, which stand for all before them

    def assess(self, trial: Trial) -> Need:
        """Return what a trial would train that no earlier one has planned."""
        epochs = plan_epochs(trial, self._size, self._costs)
        return Need(self._cost(epochs), epochs[-1].key not in self._last)

    def add(self, trial: Trial) -> float:
        """Note a trial, and return the cost of what no earlier one had planned."""
        epochs = plan_epochs(trial, self._size, self._costs)
        cost = self._cost(epochs)
        self._last.add(epochs[-1].key)
        if self._shares:
            self._planned |= {key for key, _ in epochs}
        return cost

    def _cost(self, epochs: Sequence[PlannedEpoch]) -> float:
        overhead = TRIAL_COST * self._size.train
        return overhead + sum(cost for key, cost in epochs if key not in self._planned)


def predict_costs(trials: Sequence[TrialRecord], work: PlannedWork) -> dict[str, float]:
    """Return what each trial was planned to train, besides what `work` and trials of lower numbers plan, by its id."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    return {trial.id: work.add(make_trial(trial.params)) for trial in ordered}
