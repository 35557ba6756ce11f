"""What an epoch costs on this machine, from a few seconds of real training on a sample of the data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ikd_ray.config import Trial
from ikd_ray.data.dataset import Dataset, fingerprint
from ikd_ray.data.tokens import TaskData, tokenize
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.loop import Distillation, Epoch
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.student import matched_layers
from ikd_ray.distill.targets import Targets, build_targets
from ikd_ray.distill.teacher import TeacherSource, load_tokenizer

SECONDS = 10.0
FIRST = 64  # examples of each split, to begin with


@dataclass(frozen=True)
class Costs:
    """Seconds an example, on this machine, with the threads (or the GPU) that a trial gets.

    Of the highest layer that a step goes through only [CLS] counts, which makes it cheaper than those below it: an
    epoch over n examples takes `n * (top + layer * (passed - 1) + matched * internal)`, where `passed` counts the
    layers that a step goes through forward and backward, and `internal` those whose internal losses are on.
    """

    top: float
    layer: float
    matched: float
    evaluation: float  # through one layer
    evaluation_layer: float  # through each other one
    target: float  # the teacher's pass, with all threads
    together: float  # what an epoch takes with all threads, as a share of what it takes with a trial's
    examples: int  # that they were measured on
    seconds: float  # that measuring took

    def stage_s(self, stage: Stage, student_layers: int, train: int, dev: int) -> tuple[float, float]:
        """Seconds that a stage takes once, for what its frozen layers give, and for each epoch."""
        depth = stage.depth(student_layers)
        frozen = min(stage.frozen(student_layers), depth)
        # The layer that the stage before trained.
        once = (train + dev) * self.evaluation_layer * min(frozen, 1)
        step = self._step_s(depth - frozen) + self.matched * len(stage.layers)
        return once, train * step + dev * self._evaluation_s(student_layers - frozen)

    def _step_s(self, layers: int) -> float:
        return self.top + self.layer * max(layers - 1, 0)

    def _evaluation_s(self, layers: int) -> float:
        return self.evaluation + self.evaluation_layer * max(layers - 1, 0)

    def teacher_s(self, layers: int, train: int, dev: int) -> float:
        """Seconds of an epoch of fine-tuning a teacher, with all threads."""
        with_a_trials = train * self._step_s(layers) + dev * self._evaluation_s(layers)
        return self.together * with_a_trials


def sampled(dataset: Dataset, limit: int) -> Dataset:
    """At most `limit` random examples of every split, the same ones each time."""
    rows = {
        name: np.random.default_rng(0).permutation(len(split))[:limit]
        for name, split in dataset.splits.items()
    }
    return _taken(dataset, rows)


def typical(dataset: Dataset, lengths: Mapping[str, np.ndarray], limit: int) -> Dataset:
    """At most `limit` examples of every split that cost what one costs on average in batches of equal lengths.

    Random ones would be padded far more: so few make no batches of equal lengths. The length that stands for all is
    the root of the mean square: beyond the mean by about what padding and attention, which grows with the square,
    take.

    Args:
        lengths: tokens of each split's examples.
    """
    rows = {}
    for name, tokens in lengths.items():
        size = np.sqrt(np.square(tokens, dtype=float).mean())
        rows[name] = np.argsort(np.abs(tokens - size), kind="stable")[:limit]
    return _taken(dataset, rows)


def _taken(dataset: Dataset, rows: Mapping[str, np.ndarray]) -> Dataset:
    splits = {name: split.select(rows[name]) for name, split in dataset.splits.items()}
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
        threads: int,
        room: Path,
    ) -> None:
        """
        Args:
            teacher: of that source; one with a random head does, as times do not depend on it.
            depth: of the deepest student.
            threads: that a trial gets.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._source, self._teacher, self._max_length = source, teacher.to(device), max_length
        # One of a single layer says nothing of what a second one costs.
        self._depth = min(max(depth, 2), len(teacher.layers))
        self._batch_size, self._room = batch_size, room
        self._threads, self._all_threads = threads, torch.get_num_threads()

    def measure(self, dataset: Dataset, lengths: Mapping[str, np.ndarray]) -> Costs:
        """From a few examples first, and from as many as there is time for within `SECONDS`.

        Args:
            lengths: tokens of each split's examples.
        """
        started = time.perf_counter()
        costs = self._costs(typical(dataset, lengths, FIRST))
        left = SECONDS - (time.perf_counter() - started)
        if left > costs.seconds and costs.examples < len(dataset.splits["train"]):
            costs = self._costs(typical(dataset, lengths, int(FIRST * left / costs.seconds)))
        return replace(costs, seconds=time.perf_counter() - started)

    def _costs(self, sample: Dataset) -> Costs:
        tokenizer = load_tokenizer(self._source)
        data = tokenize(sample, tokenizer, self._source.key, self._max_length, self._room / "tokens")
        train, dev = len(data.train), sum(map(len, data.evaluation_splits.values()))
        layers = matched_layers((self._depth, 1), len(self._teacher.layers))
        started = time.perf_counter()
        folder = self._room / f"targets-{len(data.train)}"
        for _ in build_targets(folder, data, self._teacher, layers, attention=True):
            pass
        taught = time.perf_counter() - started
        targets = Targets(folder, data, self._teacher, device=next(self._teacher.parameters()).device)
        torch.set_num_threads(self._threads)
        try:
            deep, deep_dev = self._epoch(data, targets, "kd", self._depth)
            inside, _ = self._epoch(data, targets, "id", self._depth)
            low, low_dev = self._epoch(data, targets, "kd", 1)
        finally:
            torch.set_num_threads(self._all_threads)
        together = deep
        if self._threads != self._all_threads:
            together, _ = self._epoch(data, targets, "kd", self._depth)
        between = max(self._depth - 1, 1)
        return Costs(
            top=low / train,
            layer=max(deep - low, 0.0) / between / train,
            matched=max(inside - deep, 0.0) / self._depth / train,
            evaluation=low_dev / dev,
            evaluation_layer=max(deep_dev - low_dev, 0.0) / between / dev,
            target=taught / (train + dev),
            together=min(together / deep, 1.0),
            examples=train,
            seconds=time.perf_counter() - started,
        )

    def _epoch(self, data: TaskData, targets: Targets, regime: str, depth: int) -> tuple[float, float]:
        """Seconds of training and of evaluation. The first epoch also makes kernels for each new shape."""
        trial = Trial(regime=regime, student_layers=depth, epochs=2, batch_size=self._batch_size)
        *_, last = Distillation(trial, data, targets)
        assert isinstance(last, Epoch)  # without checkpoints it waits for nobody
        return last.metrics["time/epoch_s"], last.metrics["time/evaluation_s"]
