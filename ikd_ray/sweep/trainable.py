"""Where a trial meets Ray: one worker inside a reused Tune actor, several as Ray Train workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train, tune
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from ikd_ray.config import make_trial
from ikd_ray.distill.loop import Distillation, DivergedError, Epoch
from ikd_ray.distill.student import size_metrics
from ikd_ray.distill.world import World
from ikd_ray.report.records import TrialRecord, write_trial
from ikd_ray.sweep.cluster import Shares
from ikd_ray.sweep.prepare import Shared
from ikd_ray.sweep.search import FAILED, trial_id

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SCRATCH = ".tune"  # Tune's and Train's own state below a sweep's folder; removed at its end
PLACE = ("epoch", "remaining", "stage_number", "stages", "stage_name")


@dataclass(frozen=True)
class Course:
    """All that a trial needs besides its own configuration; travels to every worker."""

    shared: Shared
    shares: Shares
    sweep: Path


def results(course: Course, config: dict[str, Any], opened, world: World) -> Iterator[dict[str, Any]]:
    """Train one trial; yields a flat result an epoch. Rank 0 leaves the trial's folder with the last one.

    A loss that diverges ends the trial with a result that has the reason under `FAILED`.
    """
    start = time.monotonic()
    data, targets = opened
    run = Distillation(make_trial(config["params"]), data, targets, world)
    history = []
    try:
        for epoch in run:
            result = _flat(epoch)
            history.append(epoch.metrics)
            if epoch.remaining == 0:
                depth = run.trial.student_layers
                result |= size_metrics(run.student) | {"student/latency_ms": course.shared.latency_ms[depth]}
                if world.rank == 0:
                    _save(course.sweep, config, run, history, result, time.monotonic() - start)
            yield result
    except DivergedError as error:
        yield {FAILED: str(error)}


def _flat(epoch: Epoch) -> dict[str, Any]:
    place = (epoch.epoch, epoch.remaining, epoch.stage, epoch.stages, epoch.stage_name)
    return dict(zip(PLACE, place, strict=True)) | epoch.metrics


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """A result's metrics, without what Tune and `PLACE` add."""
    return {key: value for key, value in result.items() if "/" in key or key == "stage"}


def _save(
    sweep: Path, config: dict[str, Any], run: Distillation, history: list, result: dict, seconds: float
) -> None:
    record = TrialRecord(
        id=trial_id(config["number"]),
        number=config["number"],
        params=run.trial.params(),
        layer_map=list(run.matched),
        status="finished",
        metrics=metrics_of(result),
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
        return result | {"done": FAILED in result or result["remaining"] == 0}


def train_with_workers(config: dict[str, Any], course: Course) -> None:
    """Several workers a trial: a Tune function that runs Ray Train, whose reports become Tune's."""
    shares = course.shares
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config, "course": course},
        scaling_config=train.ScalingConfig(
            num_workers=shares.workers,
            use_gpu=shares.gpus > 0,
            resources_per_worker=shares.resources,
        ),
        run_config=train.RunConfig(
            name=trial_id(config["number"]),
            storage_path=str(course.sweep / SCRATCH),
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def _worker(arguments: dict[str, Any]) -> None:
    course = arguments["course"]
    torch.set_num_threads(course.shares.cpus)
    context = train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    for result in results(course, arguments["config"], course.shared.open(world.device), world):
        train.report(result)


def trainable_for(course: Course):
    """The Tune trainable of a sweep and the resources of each trial."""
    shares = course.shares
    if shares.workers == 1:
        return tune.with_resources(tune.with_parameters(StudentTrainable, course=course), shares.resources)
    # The function only waits, its workers take the CPUs; but Tune wants something to be asked for.
    return tune.with_resources(tune.with_parameters(train_with_workers, course=course), {"memory": 1_000_000})
