"""What the steps of a stage read: batches, the teacher's targets, what frozen layers give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ikd_ray.data.batches import Batch, collate, prefetch
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.frozen_activations import FrozenActivations
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.targets import TargetBatch, Targets


class StageDataLoader:
    """What each step of a stage reads, of a process's share of the batches.

    A thread reads the next batches from memory and memory maps while the last one trains.
    """

    def __init__(
        self,
        stage: Stage,
        data: TaskData,
        targets: Targets | None,
        matched: tuple[int, ...],
        world: DistributedContext,
        prefix: FrozenActivations | None,
    ) -> None:
        self._data, self._targets, self._prefix, self._world = data, targets, prefix, world
        self._layers = [matched[layer - 1] for layer in stage.layers]
        self._attention = self._layers if stage.kl else ()
        self._logits = stage.soft > 0

    def __call__(self, plan: list[np.ndarray]) -> Iterator[tuple[Batch, TargetBatch | None, Tensor | None]]:
        """Batch, targets and the frozen layers' output, on the process's device."""
        world = self._world
        for batch, target, start in prefetch(self._read, [rows[world.rank :: world.size] for rows in plan]):
            batch = batch.to(world.device)
            if target:
                assert self._targets is not None
                target = self._targets.complete(target, batch, self._attention)
            yield batch, target, start if start is None else start.to(world.device, non_blocking=True)

    def _read(self, rows: np.ndarray) -> tuple[Batch, TargetBatch | None, Tensor | None]:
        batch, target = collate(self._data.train, rows, self._data.pad_id), None
        if self._layers or self._logits:
            assert self._targets is not None
            target = self._targets.read(
                "train", rows, logits=self._logits, cls=self._layers, attention=self._attention
            )
        start = self._prefix.read("train", rows) if self._prefix else None
        if self._world.device.type != "cuda":
            return batch, target, start
        # Only pinned memory is copied while the GPU computes.
        return batch.map(_pin), target and target.map(_pin), start if start is None else _pin(start)


def _pin(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()
