"""Run the preparation of a sweep in this process, or as a Ray task on a cluster's best node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ikd_ray.distill.stage_training import DivergedError
from ikd_ray.errors import UsageError
from ikd_ray.sweep.cluster import cluster_nodes
from ikd_ray.sweep.preparation import Event, Prepared, PrepareJob, make_job, prepare_artifacts, show_events
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.trial_results import MAX_FAILURES
from ikd_ray.terminal.console import Console


def prepare_sweep(request: Request, console: Console) -> Prepared:
    """Prepare what all trials share, and show the progress on the console."""
    metric = request.space.selection_metric(request.task)
    return show_events(_run_job(make_job(request, console)), console, metric)


def _run_job(job: PrepareJob) -> Iterator[Event]:
    """Run the preparation in this process, or on a cluster as a task on the best node."""
    node = max(cluster_nodes(), key=lambda node: (node.gpus > 0, node.cpus))
    if not node.gpus and "RAY_ADDRESS" not in os.environ:
        return prepare_artifacts(job, node.cpus)
    cpus, gpus = max(1, min(node.cpus, int(ray.available_resources().get("CPU", 0)))), min(1, node.gpus)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, num_returns="streaming", max_retries=0)(prepare_artifacts)
    return _run_task(task, job, cpus)


def _run_task(task: Any, job: PrepareJob, cpus: int) -> Iterator[Event]:
    """Run the task, and again on another node if its node dies: what is prepared already is reused."""
    for retries_left in reversed(range(MAX_FAILURES)):
        try:
            yield from map(_get_event, task.remote(job, cpus))
            return
        except RayTaskError:
            raise
        except RayError:
            if not retries_left:
                raise


def _get_event(reference: ray.ObjectRef[Event]) -> Event:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray wraps errors of a task in a traceback; these ones are messages for the user.
        if isinstance(error.cause, (UsageError, DivergedError, OSError)):
            raise error.cause from None
        raise
