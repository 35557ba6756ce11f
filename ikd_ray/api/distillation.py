"""`ikd_ray.distill`: train one student from Python, without Ray and without MLflow."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from pydantic import ValidationError

from ikd_ray.analysis.dataframes import DEFAULTS
from ikd_ray.analysis.objectives import main_metric
from ikd_ray.api.arguments import changed_arguments, describe_call, named_arguments, space_file
from ikd_ray.api.library_settings import quiet_libraries
from ikd_ray.api.student import Student
from ikd_ray.config import STEP_MEMORY_GB, DataConfig, Precision, Regime, Trial, first_error
from ikd_ray.data.task_file import find_task
from ikd_ray.distill.cache_keys import precision_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch import TIME_METRICS, Epoch
from ikd_ray.distill.epoch_cache import STAGES, EpochCache
from ikd_ray.distill.evaluate import score
from ikd_ray.distill.fast_layers import use_pytorch_layers
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.memory import StepMemory
from ikd_ray.errors import UsageError
from ikd_ray.export.hf_export import folder_name, tokenizer_files, write_student
from ikd_ray.storage import store
from ikd_ray.storage.remote import open_storage
from ikd_ray.sweep.artifacts import LoadedArtifacts
from ikd_ray.sweep.preparation import (
    Prepared,
    make_job,
    prepare_artifacts,
    print_data,
    show_events,
    tokenize_test_set,
)
from ikd_ray.sweep.request import Request, read_config, validate
from ikd_ray.sweep.sweep_folder import make_record
from ikd_ray.sweep.trial import add_final_metrics, finished_record
from ikd_ray.terminal.console import Console
from ikd_ray.yaml_file import nearest

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in Python's own `typing` from 3.11

    from ikd_ray.records import SweepRecord, TrialRecord
    from ikd_ray.tasks import Task

PATHS = ("task", "data_dir", "unlabelled", "teacher")


class TrialFields(TypedDict, total=False):
    """The fields of `ikd_ray.config.Trial`, which describes them; `lambda_` is `lambda` elsewhere."""

    regime: Regime
    student_layers: int
    assistant_layers: int
    student_init: Literal["mapped", "first"]
    temperature: float
    lambda_: float
    soft_labels: Literal["top", "always"]
    internal_losses: Literal["kl", "cos", "both"]
    internal_weight: float
    epochs: int
    epochs_per_layer: int
    cosine_threshold: float
    train: Literal["layer", "upto"]
    top_trains: Literal["all", "head"]
    embeddings: Literal["frozen", "train"]
    learning_rate: float
    batch_size: int
    train_fraction: float
    unlabelled_fraction: float
    seed: int


def distill(
    teacher: str | os.PathLike[str] | None = None,
    *,
    task: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    unlabelled: str | os.PathLike[str] | None = None,
    max_length: int = DataConfig().max_length,
    fine_tuning: Mapping[str, Any] | None = None,
    precision: Precision = "auto",
    step_memory: float = STEP_MEMORY_GB,
    share: bool = True,
    output: str | os.PathLike[str] = "outputs",
    **trial: Unpack[TrialFields],
) -> Student:
    """Train one student in this process. A teacher without a classification head is fine-tuned first, once.

    Teachers, targets and trained epochs are kept in the cache of the output folder, which sweeps share: a call that
    was interrupted continues from its last epoch.

    Args:
        teacher: Hugging Face name or folder; by default bert-base-uncased where a GPU and the hub are there, else the
            bundled MiniLM.
        task: a GLUE task, or the path of a task file.
        data_dir: folder in the GLUE layout, or the folder of a task file's tables; by default the Hugging Face hub.
        unlabelled: table of texts without labels.
        max_length: tokens per example; longer examples are cut.
        fine_tuning: settings of the teacher's fine-tuning, as in `teacher` of a space file: `{"epochs": 3}`.
        precision: of the matrix products of training, as in a space file.
        step_memory: gigabytes that the tensors of a step may take.
        share: reuse epochs that another trial has trained, and keep those of this one.
        output: folder with the cache, or `s3://BUCKET/PREFIX`.
        trial: fields of the student and its training, such as `regime="kd"`, `student_layers=3`, `temperature=2.0`,
            `epochs=3` and `seed=0`.

    Returns:
        The student after its last epoch.

    Raises:
        UsageError: an argument or a file is wrong; nothing was written.
        DivergedError: a loss became NaN or infinite.
    """
    arguments = {name: value for name, value in locals().items() if name != "trial"}
    given = changed_arguments(distill, arguments) | dict(trial)
    settings = _make_trial(trial)
    for argument in PATHS:
        if given.get(argument) is not None:
            given[argument] = os.path.expanduser(given[argument])
    params = {name: value for name, value in settings.params().items() if value != DEFAULTS[name]}
    space: dict[str, Any] = {"params": params, "teacher": dict(fine_tuning or {}), "precision": precision}
    space["data"] = {"max_length": max_length}
    console = Console()
    with named_arguments(given), _named_fields(), quiet_libraries(), space_file(space) as path:
        flags = {name: given[name] for name in (*PATHS, "step_memory") if name in given}
        flags |= {"space": path, "trials": 1, "no_share": not share}
        config = read_config(flags, open_storage(os.path.expanduser(output)))
        console.heading(
            f"{find_task(config.task).name}: a student of {config.teacher or 'the default teacher'}"
        )
        with console.step("reading data and teacher"):
            request = validate(config, tracked=False)
        print_data(request, console)
        events = prepare_artifacts(make_job(request, console), torch.get_num_threads())
        prepared = show_events(events, console, request.space.selection_metric(request.task))
        run, record = _train(settings, request, prepared, console)
        of_student, of_teacher = _score_on_test(request, run, console)
        record = replace(record, metrics=record.metrics | of_student)
        # Of a sweep's record an exported student needs what tells of data, teacher and code; it has no sweep to name.
        sweep = replace(make_record(request, describe_call("distill", given), *prepared, {}), name="")
        sweep.teacher["metrics"] |= of_teacher
    return _describe(sweep, request.task, record, run, tokenizer_files(prepared[0].folder))


def _make_trial(fields: Mapping[str, Any]) -> Trial:
    """Return a trial with the given fields; a mistake is one line that names the argument."""
    try:
        return Trial.model_validate(dict(fields))
    except ValidationError as error:
        key, reason = first_error(error)
        if key not in {*DEFAULTS, *Trial.model_fields}:
            raise UsageError(f"{key}: unknown name; {nearest(key, [*Trial.model_fields])}") from None
        name = "lambda_" if key == "lambda" else key
        raise UsageError(f"{name}={fields.get(name, fields.get(key))!r}: {reason}") from None


@contextmanager
def _named_fields() -> Iterator[None]:
    """Raise the block's `UsageError` with a message that names arguments where it names places of a space file."""
    try:
        yield
    except UsageError as error:
        message = re.sub(r"^space: teacher\.", "fine_tuning.", str(error), flags=re.MULTILINE)
        raise UsageError(re.sub(r"^space: (params\.|data\.)?", "", message, flags=re.MULTILINE)) from None


def _train(
    trial: Trial, request: Request, prepared: Prepared, console: Console
) -> tuple[Distillation, TrialRecord]:
    """Train the student, and return it with its record."""
    teacher, shared = prepared
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    artifacts = LoadedArtifacts(shared, device)
    targets, reference = artifacts.targets_of(trial)
    precision = request.space.precision
    key = store.digest("distill", artifacts.data.key, teacher.key, trial.params(), *precision_key(precision))
    run = Distillation(
        trial,
        artifacts.data,
        targets,
        DistributedContext(device=device, precision=precision),
        request.space.prefix,
        None if request.config.no_share else _epoch_cache(request, key),
        reference,
        StepMemory(request.config.step_memory),
    )
    metric = request.space.selection_metric(request.task)
    shown = ("train/loss", metric, "dev/attention_kl", *TIME_METRICS)
    epochs: list[Epoch] = []
    times: list[float] = []
    start = time.monotonic()
    with console.step(f"distilling a student ({trial.regime}, {trial.student_layers} layers)"):
        for epoch in run.epochs():
            epochs.append(epoch)
            times.append(time.time())
            metrics = {name: epoch.metrics[name] for name in shown if name in epoch.metrics}
            console.epoch("student", epoch.epoch, epoch.epoch + epoch.remaining, metrics)
    use_pytorch_layers(run.student.model)
    latency_ms = shared.latency_ms[trial.student_layers]
    epochs[-1] = add_final_metrics(run, epochs, latency_ms, time.monotonic() - start)
    record = finished_record(key[:8], run, epochs, times, run.warnings)
    for warning in record.warnings:
        console.warn(warning)
    return run, record


def _score_on_test(
    request: Request, run: Distillation, console: Console
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of the student and of the teacher on the test set; empty where there is none."""
    data, memory = tokenize_test_set(request), StepMemory(request.config.step_memory)
    if data is None:
        return {}, {}
    with console.step("scoring student and teacher on the test set"):
        return score(run.student, data, memory), score(run.reference.teacher, data, memory)


def _epoch_cache(request: Request, key: str) -> EpochCache:
    """Return the saved epochs; the owner depends on the trial alone, so that the same call continues from its own."""
    folder, disk_gb = request.output.folder / "cache" / STAGES, request.space.sharing.disk_gb
    return EpochCache(folder, disk_gb, f"distill {key[:8]}", f"distill-{key}", request.output)


def _describe(
    sweep: SweepRecord, task: Task, trial: TrialRecord, run: Distillation, tokenizer: Sequence[Path]
) -> Student:
    """Return the trained student; `tokenizer` are the files of the teacher's."""

    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            run.student.model.save_pretrained(temporary)
            write_student(sweep, task, trial, Path(temporary), tokenizer, folder)

    return Student(trial, folder_name(sweep, trial), main_metric(sweep.objectives), write)
