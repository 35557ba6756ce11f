"""What an epoch costs on this machine, from a few seconds of real training on a sample of the data."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ikd_ray.config import Trial
from ikd_ray.data.dataset import Dataset, fingerprint
from ikd_ray.data.tokens import TaskData, prepare
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.loop import Distillation, Epoch
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.student import matched_layers
from ikd_ray.distill.targets import Targets, build_targets
from ikd_ray.distill.teacher import TeacherSource, load_tokenizer

SECONDS = 10.0
FIRST, MOST = 64, 8192  # examples of each split in the sample: to begin with, and at most


@dataclass(frozen=True)
class Costs:
    """Seconds an example, on this machine with all its threads (or its GPU).

    An epoch over n examples takes `n * (step + layer * passed + matched * internal)`, where `passed` counts the layers
    that a step goes through forward and backward, and `internal` those whose internal losses are on.
    """

    step: float
    layer: float
    matched: float
    evaluation: float
    evaluation_layer: float
    target: float  # the teacher's pass
    examples: int  # that they were measured on
    seconds: float  # that measuring took

    def stage_s(self, stage: Stage, student_layers: int, train: int, dev: int) -> tuple[float, float]:
        """Seconds that a stage takes once, for what its frozen layers give, and for each epoch."""
        depth = stage.depth(student_layers)
        frozen = min(stage.frozen(student_layers), depth)
        passed = depth - frozen
        once = (
            (train + dev) * self.evaluation_layer * min(frozen, 1)
        )  # the layer that the stage before trained
        epoch = train * (self.step + self.layer * passed + self.matched * len(stage.layers))
        return once, epoch + dev * (self.evaluation + self.evaluation_layer * (student_layers - frozen))

    def teacher_s(self, layers: int, train: int, dev: int) -> float:
        """Seconds of an epoch of fine-tuning a teacher."""
        return train * (self.step + self.layer * layers) + dev * self.evaluation_layer * layers


def sampled(dataset: Dataset, limit: int) -> Dataset:
    """At most `limit` random examples of every split, the same ones each time."""
    splits = {}
    for name, split in dataset.splits.items():
        rows = np.random.default_rng(0).permutation(len(split))[:limit]
        splits[name] = split.take(rows)
    return replace(dataset, splits=splits, fingerprint=fingerprint(dataset.task, splits))


class Probe:
    """Trains the deepest student and the shallowest one, and sees what they cost. Writes to `room` alone."""

    def __init__(
        self,
        source: TeacherSource,
        teacher: Encoder,
        max_length: int,
        depth: int,
        batch_size: int,
        room: Path,
    ) -> None:
        """
        Args:
            teacher: of that source; one with a random head does, as times do not depend on it.
            depth: of the deepest student.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._source, self._teacher, self._max_length = source, teacher.to(device), max_length
        self._depth, self._batch_size, self._room = depth, batch_size, room

    def measure(self, dataset: Dataset) -> Costs:
        """From a few examples first, and from as many as there is time for within `SECONDS`."""
        started = time.perf_counter()
        costs = self._costs(sampled(dataset, FIRST))
        left = SECONDS - (time.perf_counter() - started)
        if left > costs.seconds and costs.examples < len(dataset.splits["train"]):
            costs = self._costs(sampled(dataset, min(MOST, int(FIRST * left / costs.seconds))))
        return replace(costs, seconds=time.perf_counter() - started)

    def _costs(self, sample: Dataset) -> Costs:
        tokenizer = load_tokenizer(self._source)
        data = prepare(sample, tokenizer, self._source.key, self._max_length, self._room / "tokens")
        train, dev = len(data.train), sum(map(len, data.evaluation().values()))
        shallow = 1 if self._depth > 1 else 0
        layers = matched_layers((self._depth, 1), len(self._teacher.layers))
        started = time.perf_counter()
        folder = self._room / f"targets-{len(data.train)}"
        for _ in build_targets(folder, data, self._teacher, layers, attention=True):
            pass
        taught = time.perf_counter() - started
        targets = Targets(folder, data, self._teacher, device=next(self._teacher.parameters()).device)
        deep, deep_dev = self._epoch(data, targets, "kd", self._depth)
        inside, _ = self._epoch(data, targets, "id", self._depth)
        # Of a student of no layers nothing is measured: its epochs would be nothing but steps.
        low, low_dev = self._epoch(data, targets, "kd", 1) if shallow else (0.0, 0.0)
        between = self._depth - shallow
        layer, layer_dev = max(deep - low, 0.0) / between, max(deep_dev - low_dev, 0.0) / between
        return Costs(
            step=max(low - layer, 0.0) / train,
            layer=layer / train,
            matched=max(inside - deep, 0.0) / self._depth / train,
            evaluation=max(low_dev - layer_dev, 0.0) / dev,
            evaluation_layer=layer_dev / dev,
            target=taught / (train + dev),
            examples=train,
            seconds=time.perf_counter() - started,
        )

    def _epoch(self, data: TaskData, targets: Targets, regime: str, depth: int) -> tuple[float, float]:
        """Seconds of training and of evaluation. The first epoch also makes kernels for each new shape."""
        trial = Trial(regime=regime, student_layers=depth, epochs=2, batch_size=self._batch_size)
        *_, last = Distillation(trial, data, targets)
        assert isinstance(last, Epoch)  # without checkpoints it waits for nobody
        return last.metrics["time/epoch_s"], last.metrics["time/evaluation_s"]
