"""Tune trainables: where a trial meets Ray.

With one worker a trial runs inside an actor that Tune reuses; trials with several workers are in `train_workers`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import ray
import torch
from ray import tune

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.sweep.artifacts import LoadedArtifacts
from ikd_ray.sweep.trial import format_error, run_trial
from ikd_ray.sweep.trial_context import TrialContext
from ikd_ray.sweep.trial_results import ERROR, REPORT


def make_trainable(context: TrialContext) -> Any:
    """Return the sweep's Tune trainable together with the resources that each trial requests."""
    # Not by `tune.with_parameters`: a driver that owns an object in Ray's store ends without a word when its raylet
    # dies, before `ClusterMonitor` can say what happened.
    if context.resources.workers == 1:
        trainable = type(StudentTrainable.__name__, (StudentTrainable,), {"context": context})
        return tune.with_resources(trainable, context.resources.per_worker)
    # Imported late: most sweeps do not use Ray Train.
    from ikd_ray.sweep.train_workers import make_workers_trainable

    return make_workers_trainable(context)


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
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._distributed = DistributedContext(device=device, precision=context.precision)
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

    def cleanup(self) -> None:
        """End the trial that runs: wait until its last epoch is saved, and release its locks."""
        self._results.close()
