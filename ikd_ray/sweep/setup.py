"""Setup of a requested sweep: its lock, the preparation of what trials share, and its folder with its record."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ikd_ray.data.task_file import keep_task
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.loop import Epoch
from ikd_ray.distill.stage_training import DivergedError
from ikd_ray.distill.teacher import TeacherRecord, load_tokenizer
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
from ikd_ray.sweep.trial_results import MAX_FAILURES
from ikd_ray.terminal.console import Console
from ikd_ray.version import code_version


@contextmanager
def locked_sweep(request: Request) -> Iterator[None]:
    """Lock the sweep, so that no other process runs, resumes or creates it while the block runs.

    Raises:
        UsageError: Another process has it locked, or has created it since it was requested.
    """
    request.config.output.mkdir(parents=True, exist_ok=True)
    with sweep_lock(request.folder):
        if request.folder.exists() and not request.resumes:
            raise UsageError(
                f"--name {request.folder.name}: {request.folder} exists already; choose another name"
            )
        # Left by processes that were killed while they wrote a trial or created this sweep.
        created = request.folder.parent.glob(_staging_prefix(request) + "?" * 8)
        for leftover in (*(request.folder / "trials").glob(".*"), *created):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _staging_prefix(request: Request) -> str:
    return f".{request.folder.name}.begins."


def run_preparation(request: Request, console: Console) -> tuple[TeacherRecord, SharedArtifacts]:
    """Prepare what all trials share, and show the progress on the console."""
    teacher = artifacts = None
    model = "teacher"
    metric = request.space.selection_metric(request.task)
    job = _prepare_job(request, console)
    with ExitStack() as step:
        for event in _run_job(job):
            if isinstance(event, Progress):
                console.progress(event.done, event.total, "examples")
                continue
            if isinstance(event, Epoch):
                shown = {name: event.metrics[name] for name in ("train/loss", metric)}
                console.epoch(model, event.epoch, event.epoch + event.remaining, shown)
                continue
            step.close()  # any other event ends the stage before it
            if isinstance(event, StageStarted):
                model = event.model
                step.enter_context(console.step(event.text))
            elif isinstance(event, Note):
                console.note(event.label, event.text)
            elif isinstance(event, TeacherRecord):
                teacher = event
                console.note("teacher", _format_scores(request, teacher))
            elif isinstance(event, AssistantReady):
                assert teacher is not None
                teacher.assistants[event.layers] = event.record
                console.note("assistant", f"{event.layers} layers, {_format_scores(request, event.record)}")
            else:
                artifacts = event
    assert teacher is not None
    assert artifacts is not None
    return teacher, artifacts


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


def _format_scores(request: Request, record: TeacherRecord) -> str:
    """Format the task's metrics; an assistant's record also compares it with the teacher."""
    return ", ".join(
        f"{name} {value:.4f}"
        for name, value in record.metrics.items()
        if name.split("/")[-1] in request.task.metrics
    )


def open_sweep(
    request: Request,
    command: str,
    tracking_uri: str,
    teacher: TeacherRecord,
    artifacts: SharedArtifacts,
    planned_concurrency: int,
) -> SweepRecord:
    """Create the sweep's folder, or update its record where the sweep is resumed.

    Args:
        request: The validated request.
        command: The command line that started the sweep, without passwords.
        tracking_uri: MLflow's URI.
        teacher: The teacher's record.
        artifacts: Everything that the trials share.
        planned_concurrency: Trials at once that the search's suggestions depend on.
    """
    config, dataset = request.config, request.dataset
    assert config.name is not None
    settings = config.model_dump(mode="json") | {
        "task": request.task.name,
        "tracking_uri": None if has_credentials(tracking_uri) else tracking_uri,
        "store": redact_uri(tracking_uri),
        "latency_ms": artifacts.latency_ms,
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
        teacher=_teacher_entry(request, teacher),
        objectives=request.objectives,
        settings=settings,
    )
    if request.resumes:
        write_sweep(request.folder, sweep)
    else:
        _create_folder(request, sweep)
    return sweep


def _teacher_entry(request: Request, teacher: TeacherRecord) -> dict[str, Any]:
    entry = {
        "name": teacher.name,
        "key": teacher.key,
        "source_key": request.teacher_source.key,
        "layers": request.teacher_source.layers,
        "metrics": teacher.metrics,
    }
    if teacher.assistants:
        entry["assistants"] = {
            str(layers): {"name": record.name, "key": record.key, "metrics": record.metrics}
            for layers, record in teacher.assistants.items()
        }
    return entry


def _create_folder(request: Request, sweep: SweepRecord) -> None:
    """Create the sweep's folder completely or not at all: half of one could be neither resumed nor created."""
    staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(request), dir=request.folder.parent))
    (staging / SPACE_FILE).write_text(request.space.text)
    keep_task(staging, request.task)
    write_sweep(staging, sweep)
    staging.chmod(0o755)
    os.rename(staging, request.folder)
