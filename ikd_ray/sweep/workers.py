"""A trial of several workers: Ray Train inside a Tune function."""

from __future__ import annotations

import uuid
from typing import Any

import torch
from ray import train, tune
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.search.results import FAILED, MOST_DEATHS, trial_id
from ikd_ray.sweep.trial import SCRATCH, TrialContext, format_error, run_trial


def train_with_workers(config: dict[str, Any], course: TrialContext) -> None:
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
            name=f"{trial_id(config['number'])}-{uuid.uuid4().hex[:8]}",  # a trial that waits comes again
            storage_path=str(course.sweep / SCRATCH),
            # All workers start again, and take the epochs that were saved.
            failure_config=train.FailureConfig(max_failures=MOST_DEATHS),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Ray names the other `Callback`
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        if any(isinstance(failure, RayError) for failure in error.worker_failures.values()):
            raise  # a process died, too often
        tune.report({FAILED: format_error(next(iter(error.worker_failures.values())))})


def _worker(arguments: dict[str, Any]) -> None:
    course = arguments["course"]
    torch.set_num_threads(course.shares.cpus)
    context = train.get_context()
    world = DistributedContext(context.get_world_rank(), context.get_world_size(), get_device())
    for result in run_trial(course, arguments["config"], course.shared.open(world.device), world):
        train.report(result)
