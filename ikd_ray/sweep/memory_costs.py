"""Estimate the memory of a sweep's workers from the lengths of its examples, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

from ikd_ray.config import Trial
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.memory import BATCH, CELL_BYTES, ModelShape, StepMemory
from ikd_ray.distill.regimes import REGIMES, Stage
from ikd_ray.distill.teacher import fine_tuning_stage

PROCESS_GB = 0.4
"""Memory of a process that has loaded PyTorch, transformers and Ray."""
OPTIMIZER_COPIES = 3
"""Values that training keeps for each parameter: the gradient and AdamW's two moments."""
SAVED_COPIES = 3
"""Values of each parameter in an epoch that is being saved: the parameter and AdamW's two moments."""


@dataclass(frozen=True)
class StepCost:
    """The step or evaluation batch of a worker that takes the most memory."""

    gigabytes: float
    examples: int  # of the whole step, over all workers
    parts: int  # micro-batches


@dataclass(frozen=True)
class MemoryCosts:
    """Estimates for a teacher and a task.

    Attributes:
        teacher: the model that is fine-tuned, or cut into students.
        data: a sample of the tokenized examples.
        fraction: share of all examples that the sample has.
        bound: bound of a step.
        saves_in_background: whether epochs are saved while the next ones train.
    """

    teacher: Encoder
    data: TaskData
    fraction: float
    bound: StepMemory
    saves_in_background: bool = False

    @property
    def longest(self) -> int:
        """The most tokens of an example of the sample."""
        return max(int(split.lengths.max()) for split in self.data.splits.values())

    def fixed_gb(self, layers: int) -> float:
        """Return the gigabytes of a worker that trains a student of so many layers, without its steps.

        The teacher's weights are not among them: they are mapped from their file, which all workers share.
        """
        layer = _count(self.teacher.layers[0])
        student = _count(self.teacher) - (len(self.teacher.layers) - layers) * layer
        copies = OPTIMIZER_COPIES + SAVED_COPIES * self.saves_in_background
        return PROCESS_GB + (student + copies * layers * layer) * CELL_BYTES / 1e9

    def frozen_gb(self, limit: float) -> float:
        """Return the gigabytes of stored outputs of frozen layers, of at most `limit` gigabytes."""
        tokens = sum(int(split.lengths.sum()) for split in self.data.splits.values()) / self.fraction
        size = tokens * self.teacher.config.hidden_size * CELL_BYTES / 1e9
        return size if size <= limit else 0.0  # larger ones go to the disk

    def largest_step(self, trials: Iterable[Trial], workers: int) -> StepCost:
        """Return the cost of the largest step of some trials, or of their evaluation where that is larger."""
        evaluation = self._step(BATCH, ModelShape.of(self.teacher.config).evaluation_cells, 1)
        stages = {
            (stage, trial.student_layers, trial.batch_size)
            for trial in trials
            for stage in REGIMES[trial.regime](trial)
        }
        steps = (self._training_step(*stage, workers) for stage in stages)
        return max([evaluation, *steps], key=lambda step: step.gigabytes)

    def fine_tuning_gb(self, batch_size: int) -> float:
        """Return the gigabytes of a process that fine-tunes the teacher."""
        layers = len(self.teacher.layers)
        step = self._training_step(fine_tuning_stage(layers, 1), layers, batch_size, 1)
        values = (1 + OPTIMIZER_COPIES) * _count(self.teacher)
        return PROCESS_GB + values * CELL_BYTES / 1e9 + step.gigabytes

    def _training_step(self, stage: Stage, layers: int, batch_size: int, workers: int) -> StepCost:
        cells = partial(ModelShape.of(self.teacher.config).training_cells, stage, layers)
        examples = min(batch_size, round(len(self.data.train) / self.fraction))
        return self._step(examples, cells, workers)

    def _step(self, examples: int, cells: Callable[[int], int], workers: int) -> StepCost:
        parts = self.bound.split(np.arange(examples), np.full(examples, self.longest), cells, workers)
        share = -(-len(parts[0]) // workers)
        return StepCost(share * cells(self.longest) * CELL_BYTES / 1e9, examples, len(parts))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
