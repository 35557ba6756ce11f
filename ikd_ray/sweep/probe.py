"""Estimate the cost of an epoch on this machine from a few seconds of training on a sample of the data."""

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

PROBE_SECONDS = 10.0
FIRST_EXAMPLES = 64  # of each split, in the first measurement


@dataclass(frozen=True)
class Costs:
    """Seconds per example on this machine, with the threads (or the GPU) of one trial unless said otherwise.

    Only the [CLS] position of the highest layer is computed, which makes it cheaper than the layers below. So an
    epoch over n examples takes `n * (top_layer + lower_layer * (trained - 1) + internal_losses * matched)` seconds,
    with `trained` layers in the forward and backward pass and `matched` layers with internal losses.
    """

    top_layer: float
    lower_layer: float
    internal_losses: float  # of one layer
    evaluated_top_layer: float
    evaluated_lower_layer: float
    target: float  # the teacher's pass, with all threads
    all_threads_ratio: float  # time of an epoch with all threads, relative to a trial's threads
    examples: int  # number that was measured
    seconds: float  # duration of the measurement

    def stage_seconds(self, stage: Stage, student_layers: int, train: int, dev: int) -> tuple[float, float]:
        """Return the seconds of a stage's start, which evaluates newly frozen layers, and of each of its epochs.

        `train` and `dev` are numbers of examples.
        """
        depth = stage.depth(student_layers)
        frozen = min(stage.frozen(student_layers), depth)
        start = (train + dev) * self.evaluated_lower_layer * min(frozen, 1)
        step = self._train_seconds(depth - frozen) + self.internal_losses * len(stage.layers)
        return start, train * step + dev * self._evaluation_seconds(student_layers - frozen)

    def _train_seconds(self, layers: int) -> float:
        return self.top_layer + self.lower_layer * max(layers - 1, 0)

    def _evaluation_seconds(self, layers: int) -> float:
        return self.evaluated_top_layer + self.evaluated_lower_layer * max(layers - 1, 0)

    def teacher_seconds(self, layers: int, train: int, dev: int) -> float:
        """Return the seconds of an epoch of fine-tuning a teacher with all threads."""
        seconds = train * self._train_seconds(layers) + dev * self._evaluation_seconds(layers)
        return self.all_threads_ratio * seconds


def random_subset(dataset: Dataset, limit: int) -> Dataset:
    """Return at most `limit` random examples of every split; the same ones each time."""
    rows = {
        name: np.random.default_rng(0).permutation(len(split))[:limit]
        for name, split in dataset.splits.items()
    }
    return _select(dataset, rows)


def typical_subset(dataset: Dataset, lengths: Mapping[str, np.ndarray], limit: int) -> Dataset:
    """Return at most `limit` examples of every split that cost as much as the split's average example.

    Training batches examples of similar length. A small random sample has no such batches and would be padded much
    more. The chosen length is the root mean square of all lengths: it exceeds the mean by about what padding and
    attention, whose cost is quadratic, add.

    Args:
        dataset: The data set to choose from.
        lengths: Token counts of each split's examples.
        limit: Number of examples of each split.
    """
    rows = {}
    for name, tokens in lengths.items():
        length = np.sqrt(np.square(tokens, dtype=float).mean())
        rows[name] = np.argsort(np.abs(tokens - length), kind="stable")[:limit]
    return _select(dataset, rows)


def _select(dataset: Dataset, rows: Mapping[str, np.ndarray]) -> Dataset:
    splits = {name: split.select(rows[name]) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits, fingerprint=fingerprint(dataset.task, splits))


class Probe:
    """Trains a student of the greatest depth and one of a single layer, and compares their times.

    Args:
        source: The teacher's source, for its tokenizer.
        teacher: The teacher; its head may be random, since times do not depend on it.
        max_length: Maximum number of tokens.
        depth: Greatest depth of a student.
        batch_size: Examples of a batch.
        threads: CPU threads of one trial.
        folder: Temporary folder; nothing is written elsewhere.
    """

    def __init__(
        self,
        source: TeacherSource,
        teacher: Encoder,
        max_length: int,
        depth: int,
        batch_size: int,
        threads: int,
        folder: Path,
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._source, self._teacher, self._max_length = source, teacher.to(device), max_length
        self._depth = min(max(depth, 2), len(teacher.layers))  # two layers are needed to measure a lower one
        self._batch_size, self._folder = batch_size, folder
        self._threads, self._all_threads = threads, torch.get_num_threads()

    def measure(self, dataset: Dataset, lengths: Mapping[str, np.ndarray]) -> Costs:
        """Measure on a few examples, and then on as many as `PROBE_SECONDS` allow.

        Args:
            dataset: The data set to sample from.
            lengths: Token counts of each split's examples.
        """
        started = time.perf_counter()
        costs = self._measure_sample(typical_subset(dataset, lengths, FIRST_EXAMPLES))
        left = PROBE_SECONDS - (time.perf_counter() - started)
        if left > costs.seconds and costs.examples < len(dataset.splits["train"]):
            examples = int(FIRST_EXAMPLES * left / costs.seconds)
            costs = self._measure_sample(typical_subset(dataset, lengths, examples))
        return replace(costs, seconds=time.perf_counter() - started)

    def _measure_sample(self, sample: Dataset) -> Costs:
        tokenizer = load_tokenizer(self._source)
        data = tokenize(sample, tokenizer, self._source.key, self._max_length, self._folder / "tokens")
        train, dev = len(data.train), sum(map(len, data.evaluation_splits.values()))
        layers = matched_layers((self._depth, 1), len(self._teacher.layers))
        started = time.perf_counter()
        folder = self._folder / f"targets-{len(data.train)}"
        for _ in build_targets(folder, data, self._teacher, layers, attention=True):
            pass
        target_seconds = time.perf_counter() - started
        targets = Targets(folder, data, self._teacher, device=next(self._teacher.parameters()).device)
        torch.set_num_threads(self._threads)
        try:
            deep, deep_dev = self._time_epoch(data, targets, "kd", self._depth)
            internal, _ = self._time_epoch(data, targets, "id", self._depth)
            shallow, shallow_dev = self._time_epoch(data, targets, "kd", 1)
        finally:
            torch.set_num_threads(self._all_threads)
        all_threads = deep
        if self._threads != self._all_threads:
            all_threads, _ = self._time_epoch(data, targets, "kd", self._depth)
        lower_layers = max(self._depth - 1, 1)
        return Costs(
            top_layer=shallow / train,
            lower_layer=max(deep - shallow, 0.0) / lower_layers / train,
            internal_losses=max(internal - deep, 0.0) / self._depth / train,
            evaluated_top_layer=shallow_dev / dev,
            evaluated_lower_layer=max(deep_dev - shallow_dev, 0.0) / lower_layers / dev,
            target=target_seconds / (train + dev),
            all_threads_ratio=min(all_threads / deep, 1.0),
            examples=train,
            seconds=time.perf_counter() - started,
        )

    def _time_epoch(self, data: TaskData, targets: Targets, regime: str, depth: int) -> tuple[float, float]:
        """Return the seconds of training and of evaluation in the second of two epochs.

        The first one also compiles kernels for each new shape.
        """
        trial = Trial(regime=regime, student_layers=depth, epochs=2, batch_size=self._batch_size)
        *_, last = Distillation(trial, data, targets)
        assert isinstance(last, Epoch)  # without a cache no epoch is pending
        return last.metrics["time/epoch_s"], last.metrics["time/evaluation_s"]
