"""From a request to a sweep that can run: what its trials share, shown while it is made, and its folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ikd_ray.data.task_file import keep_task
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.loop import Epoch
from ikd_ray.distill.teacher import TeacherRecord, load_tokenizer
from ikd_ray.distill.training import DivergedError
from ikd_ray.errors import UsageError
from ikd_ray.records import SPACE_FILE, SweepRecord, read_sweep, sweep_lock, task_digest, write_sweep
from ikd_ray.redaction import has_credentials, redact_uri
from ikd_ray.sweep.cluster import cluster_nodes
from ikd_ray.sweep.prepare import (
    AssistantReady,
    Event,
    Note,
    PrepareJob,
    Progress,
    SharedArtifacts,
    StageStarted,
    prepare_artifacts,
)
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.results import MAX_FAILURES
from ikd_ray.terminal.console import Console
from ikd_ray.version import code_version


@contextmanager
def owned(request: Request) -> Iterator[None]:
    """This process's alone: no second one runs or resumes the same sweep meanwhile."""
    request.config.output.mkdir(parents=True, exist_ok=True)
    with sweep_lock(request.folder):
        if request.folder.exists() and not request.resumes:
            raise UsageError(
                f"--name {request.folder.name}: {request.folder} exists already; choose another name"
            )
        # Of those killed while they saved a trial, or began this sweep.
        begun = request.folder.parent.glob(_beginning(request, "?" * 8))
        for left in (*(request.folder / "trials").glob(".*"), *begun):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _beginning(request: Request, suffix: str = "") -> str:
    """The name of a sweep's folder that is not complete yet."""
    return f".{request.folder.name}.begins.{suffix}"


def prepare_shared(request: Request, console: Console) -> tuple[TeacherRecord, SharedArtifacts]:
    """What all trials share, shown while it is made."""
    output = request.output
    tokens = output.folder / "cache" / "tokens"
    with console.step("tokenizing"):
        tokenizer = load_tokenizer(request.source)
        data = tokenize(request.dataset, tokenizer, request.source.key, request.max_length, tokens)
        output.upload(data.folder)
    known = read_sweep(request.folder).settings["latency_ms"] if request.resumes else {}
    job = PrepareJob(
        output,
        data.folder.relative_to(output.folder),
        request.source,
        request.depths,
        request.space.teacher,
        request.space.targets,
        {int(depth): milliseconds for depth, milliseconds in known.items()},
        request.assisted,
        request.space.assistant,
        request.space.prefix,
        None if request.config.no_share else request.space.sharing,
    )
    events = _events(job)
    record = shared = None
    event = next(events, None)
    while event is not None:
        if isinstance(event, StageStarted):
            with console.step(event.text):
                event = _within(events, console, request, event.model)
            continue
        if isinstance(event, Note):
            console.note(event.label, event.text)
        elif isinstance(event, TeacherRecord):
            record = event
            console.note("teacher", _scores(request, record))
        elif isinstance(event, AssistantReady):
            assert record is not None
            record.assistants[event.layers] = event.record
            console.note("assistant", f"{event.layers} layers, {_scores(request, event.record)}")
        elif isinstance(event, SharedArtifacts):
            shared = event
        event = next(events, None)
    assert record is not None
    assert shared is not None
    return record, shared


def _events(job: PrepareJob) -> Iterator[Event]:
    """The preparation: in this process, which has all it needs imported, or where the GPUs are."""
    node = max(cluster_nodes(), key=lambda node: (node.gpus > 0, node.cpus))
    if not node.gpus and "RAY_ADDRESS" not in os.environ:
        return prepare_artifacts(job, node.cpus)
    cpus, gpus = max(1, min(node.cpus, int(ray.available_resources().get("CPU", 0)))), min(1, node.gpus)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, num_returns="streaming", max_retries=0)(prepare_artifacts)
    return _events_of(task, job, cpus)


def _events_of(task: Any, job: PrepareJob, cpus: int) -> Iterator[Event]:
    """A node that dies takes only time with it: what was made is kept, and the rest is made on another one."""
    for others in reversed(range(MAX_FAILURES)):
        try:
            yield from map(_result, task.remote(job, cpus))
            return
        except RayTaskError:
            raise
        except RayError:
            if not others:
                raise


def _result(reference: ray.ObjectRef[Event]) -> Event:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray wraps what a task raises in a traceback; these are for the user.
        if isinstance(error.cause, (UsageError, DivergedError, OSError)):
            raise error.cause from None
        raise


def _scores(request: Request, record: TeacherRecord) -> str:
    """The task's metrics; an assistant has others too, against the teacher."""
    measured = {
        name: value for name, value in record.metrics.items() if name.split("/")[-1] in request.task.metrics
    }
    return ", ".join(f"{name} {value:.4f}" for name, value in measured.items())


def _within(events: Iterator[Event], console: Console, request: Request, who: str) -> Event | None:
    """Show what happens within a step; returns the event that ends it.

    Args:
        who: trains in it.
    """
    for event in events:
        if isinstance(event, Progress):
            console.progress(event.done, event.total, "examples")
        elif isinstance(event, Epoch):
            metric = request.space.selection_metric(request.task)
            shown = {key: event.metrics[key] for key in ("train/loss", metric)}
            console.epoch(who, event.epoch, event.epoch + event.remaining, shown)
        else:
            return event
    return None


def open_sweep(
    request: Request,
    command: str,
    store: str,
    teacher: TeacherRecord,
    shared: SharedArtifacts,
    planned_concurrency: int,
) -> SweepRecord:
    """The sweep's folder and its record: new ones, or those that go on.

    Args:
        store: MLflow's URI.
        planned_concurrency: trials at once, which the search's suggestions depend on.
    """
    config, dataset = request.config, request.dataset
    assert config.name is not None
    settings = config.model_dump(mode="json") | {
        "task": request.task.name,
        # One with a password is not kept: it must be given again.
        "tracking_uri": None if has_credentials(store) else store,
        "store": redact_uri(store),
        "latency_ms": shared.latency_ms,
        "foreseen": planned_concurrency,
        "methods": [name for name in request.space.methods if name],
        "id": uuid.uuid4().hex,
    }
    if request.resumes:
        earlier = read_sweep(request.folder)
        command = earlier.command
        settings |= {name: earlier.settings[name] for name in ("run_id", "id") if name in earlier.settings}
    sweep = SweepRecord(
        name=config.name,
        task=request.task.name,
        seed=config.seed,
        trials=request.trials,
        command=command,
        code_version=code_version(),
        data={
            "source": dataset.source,
            "description": dataset.description,
            "fingerprint": dataset.fingerprint,
            "generated": dataset.generated,
            "selection": request.space.selection,
            "max_length": request.max_length,
            "task": task_digest(request.task),
        },
        teacher={
            "name": teacher.name,
            "key": teacher.key,
            "source_key": request.source.key,
            "layers": request.source.layers,
            "metrics": teacher.metrics,
            **_assistants(teacher),
        },
        objectives=request.objectives,
        settings=settings,
    )
    _keep(request, sweep)
    return sweep


def _assistants(teacher: TeacherRecord) -> dict[str, Any]:
    """What a sweep's record has of them, where there are some."""
    found = {
        str(layers): {"name": record.name, "key": record.key, "metrics": record.metrics}
        for layers, record in teacher.assistants.items()
    }
    return {"assistants": found} if found else {}


def _keep(request: Request, sweep: SweepRecord) -> None:
    """Whole or not at all: a folder that is no sweep could neither be gone on with nor begun again."""
    if request.resumes:
        write_sweep(request.folder, sweep)
        return
    new = Path(tempfile.mkdtemp(prefix=_beginning(request), dir=request.folder.parent))
    (new / SPACE_FILE).write_text(request.space.text)
    keep_task(new, request.task)
    write_sweep(new, sweep)
    new.chmod(0o755)
    os.rename(new, request.folder)
