"""Run the preparation of a sweep, in this process or as a Ray task, and show its progress."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.loop import Epoch
from ikd_ray.distill.stage_training import DivergedError
from ikd_ray.distill.teacher import load_tokenizer
from ikd_ray.errors import UsageError
from ikd_ray.records import read_sweep
from ikd_ray.sweep.artifacts import (
    Event,
    Note,
    Prepared,
    PrepareJob,
    Progress,
    StageStarted,
    prepare_artifacts,
)
from ikd_ray.sweep.cluster import cluster_nodes
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.trial_results import MAX_FAILURES
from ikd_ray.terminal.console import Console


def prepare_sweep(request: Request, console: Console) -> Prepared:
    """Prepare what all trials share, and show the progress on the console."""
    prepared, model = None, "teacher"
    metric = request.space.selection_metric(request.task)
    job = _prepare_job(request, console)
    with ExitStack() as step:
        for event in _run_job(job):
            if isinstance(event, Progress):
                console.progress(event.done, event.total, "examples")
            elif isinstance(event, Epoch):
                shown = {name: event.metrics[name] for name in ("train/loss", metric)}
                console.epoch(model, event.epoch, event.epoch + event.remaining, shown)
            else:
                step.close()  # any other event ends the stage before it
                if isinstance(event, StageStarted):
                    model = event.model
                    step.enter_context(console.step(event.text))
                elif isinstance(event, Note):
                    console.note(event.label, event.text)
                else:
                    prepared = event
    assert prepared is not None
    return prepared


def _prepare_job(request: Request, console: Console) -> PrepareJob:
    """Tokenize the data set and describe the rest of the preparation."""
    output, source = request.output, request.teacher_source
    with console.step("tokenizing"):
        folder = output.folder / "cache" / "tokens"
        data = tokenize(request.dataset, load_tokenizer(source), source.key, request.max_length, folder)
        output.upload(data.folder)
    latency_ms = read_sweep(request.folder).settings["latency_ms"] if request.resumes else {}
    return PrepareJob(
        output=output,
        tokens=data.folder.relative_to(output.folder),
        source=source,
        space=request.space,
        depths=request.depths,
        assistant_students=request.assistant_students,
        latency_ms={int(depth): milliseconds for depth, milliseconds in latency_ms.items()},
        share=not request.config.no_share,
    )


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
