"""Estimate the cost of an epoch on this machine from a few seconds of training on a sample of the data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ikd_ray.config import Trial
from ikd_ray.data.dataset import Dataset
from ikd_ray.data.tokens import TaskData, open_data, tokenize
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.student import matched_layers
from ikd_ray.distill.targets import Targets, build_targets
from ikd_ray.distill.teacher import TeacherSource, load_teacher, load_tokenizer
from ikd_ray.search.planned_work import DataSize, EpochCosts
from ikd_ray.sweep.placement import Load, Placement, time_placements

PROBE_SECONDS = 10.0
FIRST_EXAMPLES = 64  # of each split, in the first measurement


@dataclass(frozen=True)
class Costs:
    """Seconds per example on this machine, with the threads (or the GPU) of one trial unless said otherwise."""

    epoch: EpochCosts
    target: float  # the teacher's pass, with all threads
    all_threads_ratio: float  # time of an epoch with all threads, relative to a trial's threads
    examples: int  # number that was measured
    seconds: float  # duration of the measurement
    slowdown: float = 1.0  # time of an epoch beside the trials that run at once, relative to one alone
    speeds: Mapping[Placement, float] = field(
        default_factory=dict
    )  # epochs a second; the planned placement first

    def teacher_seconds(self, layers: int, size: DataSize) -> float:
        """Return the seconds of an epoch of fine-tuning a teacher with all threads."""
        seconds = size.train * self.epoch.training(layers) + size.evaluation * self.epoch.evaluation(layers)
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
    more. The chosen length is the root mean square of all lengths, in tokens: it exceeds the mean by about what
    padding and attention, whose cost is quadratic, add.
    """
    rows = {}
    for name, tokens in lengths.items():
        length = np.sqrt(np.square(tokens, dtype=float).mean())
        rows[name] = np.argsort(np.abs(tokens - length), kind="stable")[:limit]
    return _select(dataset, rows)


def _select(dataset: Dataset, rows: Mapping[str, np.ndarray]) -> Dataset:
    splits = {name: split.select(rows[name]) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits)


@dataclass(frozen=True)
class Probe:
    """Trains a student of the greatest depth and one of a single layer, and compares their times."""

    source: TeacherSource  # for its tokenizer
    teacher: Encoder  # its head may be random, since times do not depend on it
    max_length: int  # tokens
    depth: int  # of the deeper student; at least two where the teacher has two, to measure a lower layer
    batch_size: int
    placements: Sequence[Placement]  # the planned one first, then others to compare it with
    folder: Path  # temporary; nothing is written elsewhere
    world: DistributedContext  # this process, with the teacher's device and the precision of training

    def measure(self, dataset: Dataset, lengths: Mapping[str, np.ndarray]) -> Costs:
        """Measure on a few examples, and then on as many as `PROBE_SECONDS` allow; `lengths` are in tokens."""
        started = time.perf_counter()
        costs, load = self._measure_sample(typical_subset(dataset, lengths, FIRST_EXAMPLES))
        left = PROBE_SECONDS - (time.perf_counter() - started)
        if left > costs.seconds and costs.examples < len(dataset.splits["train"]):
            examples = int(FIRST_EXAMPLES * left / costs.seconds)
            costs, load = self._measure_sample(typical_subset(dataset, lengths, examples))
        if max(placement.trials for placement in self.placements) > 1:
            costs = self._compare_placements(costs, load)
        return replace(costs, seconds=time.perf_counter() - started)

    def _measure_sample(self, sample: Dataset) -> tuple[Costs, Load]:
        """Return the costs of a sample, and the function that opens it with its targets."""
        tokenizer = load_tokenizer(self.source)
        data = tokenize(sample, tokenizer, self.source.key, self.max_length, self.folder / "tokens")
        train, dev = len(data.train), sum(map(len, data.evaluation_splits.values()))
        layers = matched_layers((self.depth, 1), len(self.teacher.layers))
        started = time.perf_counter()
        folder = self.folder / f"targets-{train}"
        for _ in build_targets(folder, data, self.teacher, layers, attention=True):
            pass
        target_seconds = time.perf_counter() - started
        targets = Targets(folder, data, self.teacher, device=self.world.device)
        all_threads = torch.get_num_threads()
        torch.set_num_threads(self.placements[0].threads)
        try:
            deep, deep_dev = self._time_epoch(data, targets, "kd", self.depth)
            internal, _ = self._time_epoch(data, targets, "id", self.depth)
            shallow, shallow_dev = self._time_epoch(data, targets, "kd", 1)
        finally:
            torch.set_num_threads(all_threads)
        with_all_threads = deep
        if self.placements[0].threads != all_threads:
            with_all_threads, _ = self._time_epoch(data, targets, "kd", self.depth)
        lower_layers = max(self.depth - 1, 1)
        epoch = EpochCosts(
            top_layer=shallow / train,
            lower_layer=max(deep - shallow, 0.0) / lower_layers / train,
            internal_losses=max(internal - deep, 0.0) / self.depth / train,
            evaluated_top_layer=shallow_dev / dev,
            evaluated_lower_layer=max(deep_dev - shallow_dev, 0.0) / lower_layers / dev,
        )
        costs = Costs(
            epoch=epoch,
            target=target_seconds / (train + dev),
            all_threads_ratio=min(with_all_threads / deep, 1.0),
            examples=train,
            seconds=time.perf_counter() - started,
        )
        return costs, partial(_load, data.folder, self.folder / "teacher", folder, self.world.device)

    def _compare_placements(self, costs: Costs, load: Load) -> Costs:
        """Add how fast the sample's trials train beside each other."""
        self.teacher.model.save_pretrained(self.folder / "teacher")
        planned = self.placements[0]
        compared = list(dict.fromkeys([Placement(1, planned.threads), *self.placements]))
        times = time_placements(load, self._trial("kd", self.depth), self.world, compared)
        seconds = dict(zip(compared, times, strict=True))
        speeds = {placement: placement.trials / seconds[placement] for placement in self.placements}
        return replace(costs, slowdown=max(seconds[planned] / times[0], 1.0), speeds=speeds)

    def _time_epoch(self, data: TaskData, targets: Targets, regime: str, depth: int) -> tuple[float, float]:
        """Return the seconds of training and of evaluation in the second of two epochs.

        The first one also compiles kernels for each new shape.
        """
        *_, last = Distillation(self._trial(regime, depth), data, targets, self.world)
        assert isinstance(last, Epoch)  # without a cache no epoch is pending
        return last.metrics["time/epoch_s"], last.metrics["time/evaluation_s"]

    def _trial(self, regime: str, depth: int) -> Trial:
        return Trial(regime=regime, student_layers=depth, epochs=2, batch_size=self.batch_size)


def _load(tokens: Path, teacher: Path, targets: Path, device: torch.device) -> tuple[TaskData, Targets]:
    data = open_data(tokens)
    return data, Targets(targets, data, load_teacher(teacher), device=device)
