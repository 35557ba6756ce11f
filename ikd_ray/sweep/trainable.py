"""Tune trainables: where a trial meets Ray.

With one worker a trial runs inside an actor that Tune reuses. With several workers it is a Ray Train run.
"""

from __future__ import annotations

import os
import uuid
from functools import partial
from typing import Any, ClassVar

import ray
import torch
from ray import tune
from ray.exceptions import RayError

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import DISK_ERRORS
from ikd_ray.sweep.artifacts import LoadedArtifacts
from ikd_ray.sweep.trial import TUNE_FOLDER, TrialContext, format_error, run_trial
from ikd_ray.sweep.trial_results import ERROR, MAX_FAILURES, REPORT, STOPPED, trial_id

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def make_trainable(context: TrialContext) -> Any:
    """Return the sweep's Tune trainable together with the resources that each trial requests."""
    # Not by `tune.with_parameters`: a driver that owns an object in Ray's store ends without a word when its raylet
    # dies, before `ClusterMonitor` can say what happened.
    if context.resources.workers == 1:
        trainable = type(StudentTrainable.__name__, (StudentTrainable,), {"context": context})
        return tune.with_resources(trainable, context.resources.per_worker)
    # The function itself only waits: its workers request the CPUs. Tune wants a request that is not empty.
    return tune.with_resources(partial(train_with_workers, context=context), {"memory": 1_000_000})


class StudentTrainable(tune.Trainable):
    """A trial with one worker.

    Tune reuses the actor for later trials, which then find the imports, data, targets and teacher loaded.
    """

    context: ClassVar[TrialContext]
    """Inputs of every trial of the sweep."""

    def setup(self, config: dict[str, Any]) -> None:
        """Load what all trials share and start the first trial."""
        context = self.context
        torch.set_num_threads(context.resources.cpus)
        self._distributed = DistributedContext(device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
        self._artifacts = LoadedArtifacts(context.artifacts, self._distributed.device)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this actor."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        self._results = run_trial(self.context, config, self._artifacts, self._distributed)

    def step(self) -> dict[str, Any]:
        """Return the trial's next result; an exception becomes an `ERROR` result.

        Tune's own errors are thereby left to mean that the process died.
        """
        try:
            result = next(self._results)
        except Exception as error:
            result = {ERROR: format_error(error)}
        done = REPORT not in result or result[REPORT].remaining == 0
        if done:
            self._results.close()  # release the trial's locks
        return result | {"done": done}


def train_with_workers(config: dict[str, Any], context: TrialContext) -> None:
    """Run a trial with several Ray Train workers and forward their reports to Tune."""
    # Imported late: most sweeps do not use Ray Train.
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"config": config, "context": context},
        scaling_config=train.ScalingConfig(
            num_workers=context.resources.workers,
            use_gpu=context.resources.gpus > 0,
            resources_per_worker=context.resources.per_worker,
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
        failures = list(error.worker_failures.values())
        if any(isinstance(failure, RayError) for failure in failures):
            raise  # a worker process died too often
        key = STOPPED if any(isinstance(failure, DISK_ERRORS) for failure in failures) else ERROR
        tune.report({key: format_error(failures[0])})


def _run_worker(arguments: dict[str, Any]) -> None:
    from ray import train
    from ray.train.torch import get_device

    context, config = arguments["context"], arguments["config"]
    torch.set_num_threads(context.resources.cpus)
    worker = train.get_context()
    distributed = DistributedContext(worker.get_world_rank(), worker.get_world_size(), get_device())
    artifacts = LoadedArtifacts(context.artifacts, distributed.device)
    for result in run_trial(context, config, artifacts, distributed):
        train.report(result)
