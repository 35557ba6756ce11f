"""A trial with several workers: a Ray Train run inside a function that Tune calls.

Of the processes that Ray starts for it, only the workers import transformers. The others wait or forward reports, and
import this module alone.
"""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import torch
from ray import train, tune
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import DISK_ERRORS
from ikd_ray.sweep.trial_context import TUNE_FOLDER, TrialContext
from ikd_ray.sweep.trial_results import ERROR, MAX_FAILURES, STOPPED, trial_id


def make_workers_trainable(context: TrialContext) -> Any:
    """Return the Tune trainable of trials with several workers, and the resources that each trial requests."""
    # The function itself only waits: its workers request the CPUs. Tune wants a request that is not empty.
    return tune.with_resources(partial(_train_with_workers, context=context), {"memory": 1_000_000})


def _train_with_workers(config: dict[str, Any], context: TrialContext) -> None:
    """Run a trial with several Ray Train workers and forward their reports to Tune."""
    resources = context.resources
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"config": config, "context": context},
        scaling_config=train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=resources.per_worker,
        ),
        run_config=train.RunConfig(
            # Unique, since a paused trial starts another run.
            name=f"{trial_id(config['number'])}-{uuid.uuid4().hex[:8]}",
            storage_path=str(context.sweep / TUNE_FOLDER),
            # After a failure all workers restart and continue from the saved epochs.
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Ray annotates another `Callback`
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        # Imported late: it imports transformers, which this process needs only here.
        from ikd_ray.sweep.trial import format_error

        failures = list(error.worker_failures.values())
        if any(isinstance(failure, RayError) for failure in failures):
            raise  # a worker process died too often
        key = STOPPED if any(isinstance(failure, DISK_ERRORS) for failure in failures) else ERROR
        tune.report({key: format_error(failures[0])})


def _run_worker(arguments: dict[str, Any]) -> None:
    # Imported late: other processes that import this module need no transformers.
    from ikd_ray.sweep.artifacts import LoadedArtifacts
    from ikd_ray.sweep.trial import run_trial

    context, config = arguments["context"], arguments["config"]
    torch.set_num_threads(context.resources.cpus)
    worker = train.get_context()
    distributed = DistributedContext(
        worker.get_world_rank(), worker.get_world_size(), get_device(), context.precision
    )
    artifacts = LoadedArtifacts(context.artifacts, distributed.device)
    for result in run_trial(context, config, artifacts, distributed):
        train.report(result)
