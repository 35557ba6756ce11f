"""Measurement of how many trials at once train the most on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ikd_ray.config import Trial
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.targets import Targets
from ikd_ray.sweep.local_processes import run_together

TIMEOUT_S = 300.0  # of processes that wait for each other
Load = Callable[[], tuple[TaskData, Targets]]


@dataclass(frozen=True)
class Placement:
    """A number of trials that run at once, and the CPU threads of each."""

    trials: int
    threads: int


def time_placements(
    load: Load, trial: Trial, world: DistributedContext, placements: Sequence[Placement]
) -> list[float]:
    """Train copies of a trial at once, as each placement says, on the same device.

    Args:
        load: Opens data and targets, in each of the processes; must be picklable.
        trial: The configuration, with two epochs: the first one also compiles kernels for each new shape.
        world: Device and precision of training.
        placements: Numbers of trials and threads.

    Returns:
        For each placement, the seconds of the second epoch of the trial that takes the longest.
    """
    calls = [(load, trial, world, placements, rank) for rank in range(max(p.trials for p in placements))]
    times = run_together(_time_rounds, calls, placements[0].threads)
    return [max(seconds) for seconds in zip(*times, strict=True)]


def _time_rounds(
    load: Load,
    trial: Trial,
    world: DistributedContext,
    placements: Sequence[Placement],
    rank: int,
    barrier: threading.Barrier,
) -> list[float]:
    """Return this process's seconds in each placement, 0 where it has no trial."""
    data, targets = load()
    times = []
    for placement in placements:
        barrier.wait(TIMEOUT_S)
        seconds = 0.0
        if rank < placement.trials:
            torch.set_num_threads(placement.threads)
            *_, last = Distillation(trial, data, targets, world)
            assert isinstance(last, Epoch)  # without a cache no epoch is pending
            seconds = last.metrics["time/epoch_s"]
        times.append(seconds)
    return times
