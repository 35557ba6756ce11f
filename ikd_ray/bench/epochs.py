"""Seconds of this project's epochs. Each function that measures runs in a process of its own, or starts several."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ikd_ray.bench import machine
from ikd_ray.bench.inputs import Inputs
from ikd_ray.bench.peers import LAMBDA, LEARNING_RATE, TEMPERATURE
from ikd_ray.bench.results import Timing
from ikd_ray.config import TeacherConfig, Trial
from ikd_ray.data.tokens import open_data
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.stage_training import StageTrainer, train_stage
from ikd_ray.distill.targets import build_targets
from ikd_ray.distill.teacher import fine_tuning_stage
from ikd_ray.sweep.placement import TIMEOUT_S, Placement, time_placements

REGIMES = ("kd", "id", "pid", "sid")
EPOCHS = 2  # of every stage; they share what a stage computes once


def time_regime(inputs: Inputs, regime: str) -> tuple[list[Timing], float, float]:
    """Train one trial of a regime; for PID also one whose last stage trains the head alone.

    Returns:
        The mean epoch of each stage, and the peak memory in MiB (2^20 bytes) with data, targets and teacher open, and
        with training.
    """
    warm_up(inputs)
    data, targets = inputs.load()
    machine.reset_peak_memory()
    idle = machine.memory_bytes("VmHWM")
    times = _time_stages(Distillation(make_trial(inputs, regime=regime), data, targets, inputs.world))
    if regime == "pid":
        trial = make_trial(inputs, regime=regime, top_trains="head", epochs_per_layer=1)
        top = _time_stages(Distillation(trial, data, targets, inputs.world))[-1]
        times.append(replace(top, name=f"{top.name}, head alone"))
    return times, idle / 2**20, machine.memory_bytes("VmHWM") / 2**20


def time_teacher(inputs: Inputs) -> Timing:
    """Fine-tune the teacher for one epoch."""
    data, teacher = open_data(inputs.data), inputs.load_teacher()
    config = TeacherConfig(epochs=1, learning_rate=1e-4, batch_size=inputs.batch_size)
    stage = fine_tuning_stage(len(teacher.layers), config.epochs)
    warm_up(inputs)
    start = time.perf_counter()
    for _ in train_stage(StageTrainer(teacher, stage, config, data, None, (), inputs.world)):
        pass
    return Timing("teacher", time.perf_counter() - start, trained_layers(stage, len(teacher.layers)))


def time_targets(inputs: Inputs) -> dict[str, float]:
    """Build the trials' targets, one pass of the teacher over all splits; return seconds and bytes on disk."""
    data, teacher, layers = open_data(inputs.data), inputs.load_teacher(), inputs.layer_map()
    start = time.perf_counter()
    for _ in build_targets(inputs.targets, data, teacher, layers, attention=True):
        pass
    seconds = time.perf_counter() - start
    files = [path for path in inputs.targets.rglob("*") if path.is_file()]
    return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in files)}


def time_concurrent_trials(inputs: Inputs, placements: Sequence[Placement]) -> list[float]:
    """Return the seconds of an `id` epoch of trials that run at once, in each placement."""
    return time_placements(inputs.load, make_trial(inputs, regime="id"), inputs.world, placements)


def time_epoch_of_workers(
    inputs: Inputs, rank: int, workers: int, rendezvous: Path, barrier: threading.Barrier
) -> float:
    """Train a trial as one of its workers, who find each other by a file; return the seconds of its `id` epoch."""
    world = replace(inputs.world, rank=rank, size=workers)
    if inputs.device == "cuda":
        world = replace(world, device=torch.device("cuda", rank))
        torch.cuda.set_device(rank)
    backend = "nccl" if inputs.device == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{rendezvous}", rank=rank, world_size=workers)
    data, targets = inputs.load()
    targets.teacher.to(world.device)
    trial = make_trial(inputs, regime="id")
    epochs = trained_epochs(Distillation(trial, data, targets, world))
    next(epochs)  # NCCL connects the workers at their first step
    barrier.wait(TIMEOUT_S)
    seconds = next(epochs).metrics["time/epoch_s"]
    dist.destroy_process_group()
    return seconds


def warm_up(inputs: Inputs) -> None:
    """Train an epoch on a GPU, which loads its kernels at their first use."""
    if inputs.device == "cuda":
        trial = make_trial(inputs, regime="id", epochs=1)
        next(trained_epochs(Distillation(trial, *inputs.load(), inputs.world)))


def trained_layers(stage: Stage, student_layers: int) -> int:
    """Return the number of layers that a step of a stage passes forward and backward."""
    return stage.depth(student_layers) - min(stage.trains) + 1 if stage.trains else 0


def make_trial(inputs: Inputs, **changes: Any) -> Trial:
    """Return a trial with the settings of all measurements."""
    params: dict[str, Any] = {
        "student_layers": inputs.student_layers,
        "batch_size": inputs.batch_size,
        "learning_rate": LEARNING_RATE,
        "lambda": LAMBDA,
        "temperature": TEMPERATURE,
        "epochs": EPOCHS,
        "epochs_per_layer": EPOCHS,
    }
    return Trial(**(params | changes))


def trained_epochs(distillation: Distillation) -> Iterator[Epoch]:
    """Train a trial without a cache: yield its epochs."""
    # Nothing waits for another trial, so there is no other event.
    return (event for event in distillation if isinstance(event, Epoch))


def _time_stages(distillation: Distillation) -> list[Timing]:
    """Return each stage's mean epoch."""
    metrics = defaultdict(list)
    for epoch in trained_epochs(distillation):
        metrics[epoch.stage].append(epoch.metrics)
    trial = distillation.trial
    return [
        Timing(
            f"{trial.regime} {stage.name}",
            statistics.mean(epoch["time/epoch_s"] for epoch in metrics[number]),
            trained_layers(stage, trial.student_layers),
            statistics.mean(epoch["time/evaluation_s"] for epoch in metrics[number]),
        )
        for number, stage in enumerate(distillation.stages, start=1)
    ]
