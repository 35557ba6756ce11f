"""The folder of a sweep: its lock, and its record, created or updated before the first trial."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ikd_ray.data.dataset import TEST, short_example
from ikd_ray.data.task_file import CustomTask, keep_task
from ikd_ray.data.tokens import open_data
from ikd_ray.distill.teacher import TeacherRecord
from ikd_ray.errors import UsageError
from ikd_ray.records import (
    SPACE_FILE,
    SweepRecord,
    metrics_on_test,
    read_sweep,
    sweep_lock,
    task_digest,
    write_sweep,
)
from ikd_ray.redaction import has_credentials, redact_uri
from ikd_ray.sweep.preparation import tokenize_test_set
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.trial_context import SharedArtifacts
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
        request: The sweep.
        command: The command line that started it, without passwords.
        tracking_uri: MLflow's URI, possibly with a password, which is not recorded.
        teacher: The teacher's record, with its assistants.
        artifacts: Artifacts that all trials share.
        planned_concurrency: Trials at once that the search's suggestions depend on.
    """
    settings = request.config.model_dump(mode="json") | {
        "task": request.task.name,
        "tracking_uri": None if has_credentials(tracking_uri) else tracking_uri,
        "store": redact_uri(tracking_uri),
        "latency_ms": artifacts.latency_ms,
        "foreseen": planned_concurrency,
        "open_ended": request.is_open_ended,
        "methods": [name for name in request.space.methods if name],
        "id": uuid.uuid4().hex,
    }
    if request.resumes:
        earlier = read_sweep(request.folder)
        command = earlier.command
        settings |= {name: earlier.settings[name] for name in ("run_id", "id") if name in earlier.settings}
    sweep = make_record(request, command, teacher, artifacts, settings)
    if request.resumes:
        if earlier.teacher["key"] == teacher.key:
            sweep.teacher["metrics"] |= metrics_on_test(earlier.teacher["metrics"])
        write_sweep(request.folder, sweep)
    else:
        _create_folder(request, sweep)
    return sweep


def make_record(
    request: Request,
    command: str,
    teacher: TeacherRecord,
    artifacts: SharedArtifacts,
    settings: dict[str, Any],
) -> SweepRecord:
    """Return the record of a sweep with these settings; other arguments as for `open_sweep`."""
    return SweepRecord(
        name=request.folder.name,
        task=request.task.name,
        seed=request.config.seed,
        trials=request.trials,
        command=command,
        code_version=code_version(),
        data=_data_entry(request, artifacts),
        teacher=_teacher_entry(request, teacher),
        objectives=request.objectives,
        settings=settings,
    )


def _data_entry(request: Request, artifacts: SharedArtifacts) -> dict[str, Any]:
    dataset = request.dataset
    entry: dict[str, Any] = {
        "source": dataset.source,
        "description": dataset.description,
        "fingerprint": dataset.fingerprint,
        "generated": dataset.generated,
        "examples": asdict(request.data_size),
        "selection": request.space.selection,
        "max_length": request.max_length,
        "truncated": open_data(request.output.folder / artifacts.tokens).truncation,
        "example": short_example(dataset.splits["dev"]),
        "task": task_digest(request.task),
    }
    if isinstance(dataset.task, CustomTask) and dataset.task.dataset:
        task = dataset.task
        entry |= {"dataset": task.dataset, "config": task.config, "revision": task.revision}
    if dataset.test_dataset and (test := tokenize_test_set(request)):
        entry["truncated"] |= test.truncation
        entry["test"] = {"examples": len(test.splits[TEST]), "fingerprint": dataset.test_dataset.fingerprint}
    return entry


def _teacher_entry(request: Request, teacher: TeacherRecord) -> dict[str, Any]:
    entry = {
        "name": teacher.name,
        "key": teacher.key,
        "source_key": request.teacher_source.key,
        "model_type": request.teacher_source.model_type,
        "layers": request.teacher_source.layers,
        "metrics": dict(teacher.metrics),
        "sizes": teacher.sizes,
        "hub_name": request.teacher_source.origin.hub_name,
        **request.teacher_source.origin.license,
    }
    entry |= {"head_note": teacher.head_note} if teacher.head_note else {}
    entry |= {"warnings": teacher.warnings} if teacher.warnings else {}
    if teacher.assistants:
        entry["assistants"] = {
            str(layers): {"name": record.name, "key": record.key, "metrics": record.metrics}
            for layers, record in teacher.assistants.items()
        }
    return entry


def _create_folder(request: Request, sweep: SweepRecord) -> None:
    """Create the sweep's folder completely or not at all: half of one could be neither resumed nor created."""
    staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(request), dir=request.folder.parent))
    try:
        (staging / SPACE_FILE).write_text(request.space.text, encoding="utf-8")
        keep_task(staging, request.task)
        write_sweep(staging, sweep)
        staging.chmod(0o755)
        os.rename(staging, request.folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
