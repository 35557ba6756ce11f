"""Tune trainables: one worker inside a reused actor, or a Ray Train run of several workers."""

from __future__ import annotations

import os
from typing import Any

import ray
import torch
from ray import tune

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.search.results import FAILED, REPORT
from ikd_ray.sweep.trial import TrialContext, format_error, run_trial

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class StudentTrainable(tune.Trainable):
    """One worker a trial. The process, its imports, data, targets and teacher serve one trial after another."""

    # What `tune.with_parameters` adds, Ray's own annotation has no place for.
    def setup(self, config: dict[str, Any], course: TrialContext) -> None:  # type: ignore[override]
        torch.set_num_threads(course.shares.cpus)
        self._course = course
        self._world = DistributedContext(device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
        self._opened = course.shared.open(self._world.device)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        self._results = run_trial(self._course, config, self._opened, self._world)

    def step(self) -> dict[str, Any]:
        try:
            result = next(self._results)
        except Exception as error:  # as a result: what Tune calls an error is the end of the process alone
            result = {FAILED: format_error(error)}
        done = REPORT not in result or result[REPORT].remaining == 0
        if done:  # what it holds for itself alone is others' again
            self._results.close()
        return result | {"done": done}


def trainable_for(course: TrialContext) -> Any:
    """The Tune trainable of a sweep and the resources of each trial."""
    shares = course.shares
    if shares.workers == 1:
        return tune.with_resources(tune.with_parameters(StudentTrainable, course=course), shares.resources)
    from ikd_ray.sweep.workers import train_with_workers  # imported late: most sweeps need no Ray Train

    # The function only waits, its workers take the CPUs; but Tune wants something to be asked for.
    return tune.with_resources(tune.with_parameters(train_with_workers, course=course), {"memory": 1_000_000})
