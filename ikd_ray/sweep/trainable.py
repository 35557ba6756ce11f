"""Where a trial meets Ray: one worker inside a reused Tune actor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from ikd_ray.config import PrefixConfig, make_trial
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.student import size_metrics
from ikd_ray.distill.training import DivergedError
from ikd_ray.distill.world import World
from ikd_ray.report.records import TrialRecord, write_trial
from ikd_ray.sweep.cluster import Shares
from ikd_ray.sweep.prepare import Shared
from ikd_ray.sweep.results import FAILED, REPORT, trial_id

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SCRATCH = ".tune"  # Tune's and Train's own state below a sweep's folder; removed at its end


@dataclass(frozen=True)
class Course:
    """All that a trial needs besides its own configuration; travels to every worker."""

    shared: Shared
    shares: Shares
    sweep: Path
    prefix: PrefixConfig
    method: type[Distillation] = Distillation


def results(course: Course, config: dict[str, Any], opened, world: World) -> Iterator[dict[str, Any]]:
    """Train one trial; yields a result an epoch. Rank 0 leaves the trial's folder with the last one.

    A loss that diverges ends the trial with a result that has the reason under `FAILED`.
    """
    start = time.monotonic()
    data, targets = opened
    run = course.method(make_trial(config["params"]), data, targets, world, course.prefix)
    history = []
    try:
        for epoch in run:
            history.append(epoch.metrics)
            if epoch.remaining == 0:
                depth = run.trial.student_layers
                final = size_metrics(run.student) | {"student/latency_ms": course.shared.latency_ms[depth]}
                epoch = replace(epoch, metrics=epoch.metrics | final)
                if world.rank == 0:
                    _save(course.sweep, config, run, history, epoch.metrics, time.monotonic() - start)
            yield {REPORT: epoch}
    except DivergedError as error:
        yield {FAILED: str(error)}


def _save(
    sweep: Path, config: dict[str, Any], run: Distillation, history: list, metrics: dict, seconds: float
) -> None:
    record = TrialRecord(
        id=trial_id(config["number"]),
        number=config["number"],
        params=run.trial.params(),
        layer_map=list(run.matched),
        status="finished",
        metrics=metrics,
        history=history,
        duration_s=seconds,
    )
    write_trial(sweep, record, lambda folder: run.student.model.save_pretrained(folder))


class StudentTrainable(tune.Trainable):
    """One worker a trial. The process, its imports, data, targets and teacher serve one trial after another."""

    def setup(self, config: dict[str, Any], course: Course) -> None:
        torch.set_num_threads(course.shares.cpus)
        self._course = course
        self._world = World(device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
        self._opened = course.shared.open(self._world.device)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        self._results = results(self._course, config, self._opened, self._world)

    def step(self) -> dict[str, Any]:
        result = next(self._results)
        return result | {"done": FAILED in result or result[REPORT].remaining == 0}


def trainable_for(course: Course):
    """The Tune trainable of a sweep and the resources of each trial."""
    shares = course.shares
    if shares.workers == 1:
        return tune.with_resources(tune.with_parameters(StudentTrainable, course=course), shares.resources)
    from ikd_ray.sweep.workers import train_with_workers  # imported late: most sweeps need no Ray Train

    # The function only waits, its workers take the CPUs; but Tune wants something to be asked for.
    return tune.with_resources(tune.with_parameters(train_with_workers, course=course), {"memory": 1_000_000})
