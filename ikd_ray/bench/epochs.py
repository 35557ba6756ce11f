"""Seconds of the project's own epochs. Every function here runs in a process of its own."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ikd_ray.bench import machine
from ikd_ray.bench.inputs import Inputs
from ikd_ray.bench.processes import meet
from ikd_ray.bench.reference import LAMBDA, LEARNING_RATE, TEMPERATURE
from ikd_ray.config import TeacherConfig, Trial
from ikd_ray.data.tokens import open_data
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.loop import Distillation, Epoch
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.targets import build_targets
from ikd_ray.distill.teacher import fine_tuning_stage, load_teacher
from ikd_ray.distill.training import StageTrainer, train_stage

REGIMES = ("kd", "id", "pid", "sid")
EPOCHS = 2  # of every stage: what a stage computes once, for all its epochs, is shared by this many


@dataclass(frozen=True)
class Timing:
    """Seconds of an epoch: training alone, and the evaluation after it."""

    name: str
    seconds: float
    layers: float  # passed forward and backward
    evaluation_s: float | None = None


@dataclass(frozen=True)
class RegimeTimes:
    """A regime's stages, and the memory of the process that trained them."""

    stages: list[Timing]
    idle_mib: float  # with data, targets and teacher open
    peak_mib: float


@dataclass(frozen=True)
class Store:
    """The teacher's targets: seconds to build them, and their bytes on disk."""

    seconds: float
    bytes: int


def passed_layers(stage: Stage, student_layers: int) -> int:
    """Layers that a step passes forward and backward."""
    return stage.depth(student_layers) - min(stage.trains) + 1 if stage.trains else 0


def _trial(inputs: Inputs, **changes: Any) -> Trial:
    usual: dict[str, Any] = {
        "student_layers": inputs.student_layers,
        "batch_size": inputs.batch_size,
        "learning_rate": LEARNING_RATE,
        "lambda": LAMBDA,
        "temperature": TEMPERATURE,
        "epochs": EPOCHS,
        "epochs_per_layer": EPOCHS,
    }
    return Trial(**(usual | changes))


def _epochs(course: Distillation) -> Iterator[Epoch]:
    # Without checkpoints it waits for nobody.
    return (event for event in course if isinstance(event, Epoch))


def _stage_times(course: Distillation) -> list[Timing]:
    """Each stage's mean epoch."""
    epochs = defaultdict(list)
    for epoch in _epochs(course):
        epochs[epoch.stage].append(epoch.metrics)
    regime, student_layers = course.trial.regime, course.trial.student_layers
    return [
        Timing(
            f"{regime} {stage.name}",
            statistics.mean(metrics["time/epoch_s"] for metrics in epochs[number]),
            passed_layers(stage, student_layers),
            statistics.mean(metrics["time/evaluation_s"] for metrics in epochs[number]),
        )
        for number, stage in enumerate(course.stages, start=1)
    ]


def regime_times(inputs: Inputs, regime: str) -> RegimeTimes:
    """One trial of the regime, all its stages; of PID another one, for its last stage where only the head trains."""
    machine.prepare(inputs.threads)
    data, targets = inputs.open()
    machine.reset_peak_memory()
    idle = machine.peak_memory_mib()
    times = _stage_times(Distillation(_trial(inputs, regime=regime), data, targets))
    if regime == "pid":
        trial = _trial(inputs, regime=regime, top_trains="head", epochs_per_layer=1)
        top = _stage_times(Distillation(trial, data, targets))[-1]
        times.append(replace(top, name=f"{top.name}, head alone"))
    return RegimeTimes(times, idle, machine.peak_memory_mib())


def teacher_times(inputs: Inputs) -> Timing:
    """One epoch of fine-tuning the teacher."""
    machine.prepare(inputs.threads)
    data, teacher = open_data(inputs.data), load_teacher(inputs.teacher)
    config = TeacherConfig(epochs=1, learning_rate=1e-4, batch_size=inputs.batch_size)
    stage = fine_tuning_stage(teacher, config.epochs)
    start = time.perf_counter()
    for _ in train_stage(StageTrainer(teacher, stage, config, data, None, (), DistributedContext())):
        pass
    return Timing("teacher", time.perf_counter() - start, passed_layers(stage, len(teacher.layers)))


def build_store(inputs: Inputs) -> Store:
    """Build the targets that the trials need: one pass of the teacher over all splits."""
    machine.prepare(inputs.threads)
    data, teacher, layers = open_data(inputs.data), load_teacher(inputs.teacher), inputs.matched()
    start = time.perf_counter()
    for _ in build_targets(inputs.targets, data, teacher, layers, attention=True):
        pass
    seconds = time.perf_counter() - start
    return Store(seconds, sum(path.stat().st_size for path in inputs.targets.rglob("*") if path.is_file()))


def _id_epoch(inputs: Inputs, seed: int) -> Iterator[Epoch]:
    data, targets = inputs.open()
    return _epochs(Distillation(_trial(inputs, regime="id", epochs=1, seed=seed), data, targets))


def epochs_in_turn(inputs: Inputs, count: int) -> float:
    """Seconds of an `id` epoch of each of `count` trials, one after the other, with all threads."""
    machine.prepare(inputs.threads)
    return sum(next(_id_epoch(inputs, seed)).metrics["time/epoch_s"] for seed in range(count))


def epoch_beside_others(inputs: Inputs, seed: int, threads: int) -> float:
    """Seconds of an `id` epoch that begins when the other processes' do."""
    machine.prepare(threads)
    epochs = _id_epoch(inputs, seed)
    meet()
    return next(epochs).metrics["time/epoch_s"]
