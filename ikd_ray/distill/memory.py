"""Memory of a step: the numbers that its tensors hold, and the split of a batch that would exceed a bound.

The unit is a cell: one float32 value, 4 bytes. An attention map of L tokens has heads x L x L cells, a vector per token
L x hidden. Training holds them for every layer that the gradient passes through, evaluation for one layer at a time.
Their numbers are measured on a CPU (`tests/distill/test_memory.py`). A GPU holds less, since it computes in bfloat16,
and without attention maps where no loss needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ikd_ray.config import STEP_MEMORY_GB
from ikd_ray.data.batches import evaluation_batches
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.regimes import Stage

BATCH = 64
"""Examples of a batch that is not trained on, where the bound allows."""
CELL_BYTES = 4
LAYER_VECTORS = 35
"""Vectors per token that training a layer holds, each of the model's hidden size."""
LAYER_MAPS = 3
"""Attention maps that training a layer holds."""
LOSS_MAPS = 3
"""Attention maps that a layer's attention loss holds besides."""
EVALUATION_VECTORS, EVALUATION_MAPS = 20, 7
"""The same, of evaluation."""


class ModelShape(NamedTuple):
    """The sizes of a model that a layer's memory depends on."""

    heads: int
    hidden: int

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Return the shape of a model with a Hugging Face configuration."""
        return cls(config.num_attention_heads, config.hidden_size)

    def cells(self, vectors: int, maps: int, length: int) -> int:
        """Return the cells of an example of `length` tokens that has so many vectors per token and attention maps."""
        return vectors * self.hidden * length + maps * self.heads * length**2

    def training_cells(self, stage: Stage, layers: int, length: int) -> int:
        """Return the cells of training on an example of `length` tokens in a stage of a model of so many layers."""
        trained = max(1, stage.depth(layers) - stage.frozen(layers))
        matched = len(stage.layers) if stage.kl else 0
        return self.cells(LAYER_VECTORS * trained, LAYER_MAPS * trained + LOSS_MAPS * matched, length)

    def evaluation_cells(self, length: int) -> int:
        """Return the cells of evaluating an example of `length` tokens, whatever the model's depth."""
        return self.cells(EVALUATION_VECTORS, EVALUATION_MAPS, length)


@dataclass(frozen=True)
class StepMemory:
    """Bound of the tensors of one training step or evaluation batch, in each process.

    How a batch is split depends on the bound and the batch alone, so that one seed gives the same numbers on any
    machine. A single example is computed even where it exceeds the bound.
    """

    gigabytes: float = STEP_MEMORY_GB

    def max_examples(self, cells: int) -> int:
        """Return how many examples of so many cells fit, at least one."""
        return max(1, int(self.gigabytes * 1e9 / CELL_BYTES) // cells)

    def split(
        self, rows: np.ndarray, lengths: np.ndarray, cells: Callable[[int], int], processes: int = 1
    ) -> list[np.ndarray]:
        """Split a batch into as few equal parts as the bound allows, usually one: the batch itself.

        Args:
            rows: (B,) positions of the examples.
            lengths: (n,) tokens of the examples at all positions.
            cells: returns the cells of an example by its tokens.
            processes: number of processes that share each part; each has at least one example of it.

        Returns:
            The parts, in the order of `rows`. Their sizes differ by at most one.
        """
        most = processes * self.max_examples(cells(int(lengths[rows].max())))
        if len(rows) <= most:
            return [rows]
        return np.array_split(rows, min(-(-len(rows) // most), len(rows) // processes))

    def evaluation_batches(self, lengths: np.ndarray, config: Any) -> Iterator[np.ndarray]:
        """Yield the positions of the examples of each batch that is not trained on, shortest examples first.

        Args:
            lengths: (n,) tokens of the examples.
            config: the model's Hugging Face configuration.
        """
        cells = ModelShape.of(config).evaluation_cells
        for rows in evaluation_batches(lengths, BATCH):
            yield from self.split(rows, lengths, cells)

    def key(
        self,
        shape: ModelShape,
        layers: int,
        stages: Iterable[Stage],
        batch_size: int,
        data: TaskData,
        processes: int = 1,
    ) -> list[float]:
        """Return what a cache key needs to have of the bound: nothing where it splits no batch, else the bound.

        Sums over parts differ from those over the whole batch in their last digits.
        """
        longest = max(int(split.lengths.max(initial=1)) for split in data.splits.values())
        share = -(-min(batch_size, len(data.train)) // processes)
        whole = self.max_examples(shape.evaluation_cells(longest)) >= BATCH and all(
            share <= self.max_examples(shape.training_cells(stage, layers, longest)) for stage in stages
        )
        return [] if whole else [self.gigabytes]
