"""Preparation of what all trials share, done once before them. Knows no Ray."""

from __future__ import annotations

import errno
import json
import platform
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from transformers.utils import logging

from ikd_ray.config import contradicting_depths
from ikd_ray.data.tokens import TaskData, open_data, tokenize
from ikd_ray.distill.assistant import assistant_key, make_assistant
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.epoch_cache import STAGES, EpochCache
from ikd_ray.distill.latency import measure_latency
from ikd_ray.distill.memory import ModelShape, StepMemory
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.student import matched_layers, size_metrics
from ikd_ray.distill.targets import (
    Targets,
    build_targets,
    part_names,
    should_store_attention,
    size_gb,
    stored_gb,
    targets_key,
)
from ikd_ray.distill.teacher import (
    TeacherRecord,
    TeacherSource,
    load_teacher,
    load_tokenizer,
    make_teacher,
    open_teacher,
    teacher_key,
    teacher_warnings,
)
from ikd_ray.formatting import describe_truncated
from ikd_ray.records import read_sweep, write_json
from ikd_ray.search.space import Space
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.trial_context import SharedArtifacts, TeacherArtifacts
from ikd_ray.tasks import ERROR_METRICS, Task
from ikd_ray.terminal.console import Console


@dataclass(frozen=True)
class PrepareJob:
    """Inputs of the preparation. They are sent to the node that runs it, which may not be the driver's."""

    output: SharedStorage
    tokens: Path  # the tokenized data set, relative to the output folder
    source: TeacherSource
    space: Space
    depths: tuple[int, ...]  # student depths that the space can reach
    assistant_students: Mapping[int, tuple[int, ...]]  # student depths by the depth of their assistant
    latency_ms: dict[int, float]  # known latencies by student depth, from an earlier run of the sweep
    share: bool  # whether epochs of assistants are saved
    memory: StepMemory

    @property
    def cache(self) -> Path:
        """The cache below the output folder."""
        return self.output.folder / "cache"


@dataclass(frozen=True)
class StageStarted:
    """Event: a stage of the preparation starts."""

    text: str
    model: str = "teacher"  # the model that is trained in it, if any


@dataclass(frozen=True)
class Note:
    """Event: a fact for the user."""

    label: str
    text: str


@dataclass(frozen=True)
class WarningEvent:
    """Event: a warning for the user."""

    text: str


@dataclass(frozen=True)
class Progress:
    """Event: progress within a stage, in examples."""

    done: int
    total: int


Prepared = tuple[TeacherRecord, SharedArtifacts]
Event = StageStarted | Note | WarningEvent | Progress | Epoch | Prepared


def print_data(request: Request, console: Console) -> None:
    """Print the description of the data, after the warnings of them and of the teacher."""
    generated = [request.dataset.description] if request.dataset.generated else []
    for text in [*generated, *request.warnings]:
        console.warn(text)
    console.note("data", request.dataset.description)


def tokenize_test_set(request: Request) -> TaskData | None:
    """Tokenize the test examples apart from all others, or open the result of an earlier call; None without any."""
    dataset, source = request.dataset.test_dataset, request.teacher_source
    if dataset is None:
        return None
    folder = request.output.folder / "cache" / "tokens"
    return tokenize(dataset, load_tokenizer(source), source.key, request.max_length, folder)


def make_job(request: Request, console: Console) -> PrepareJob:
    """Tokenize the data set and describe the rest of the preparation."""
    output, source = request.output, request.teacher_source
    with console.step("tokenizing"):
        folder = output.folder / "cache" / "tokens"
        data = tokenize(request.dataset, load_tokenizer(source), source.key, request.max_length, folder)
        output.upload(data.folder)
        test = tokenize_test_set(request)
    if cut := describe_truncated(data.truncation | (test.truncation if test else {})):
        console.note(
            "texts", f"{cut} examples are longer than max_length {request.max_length}, and cut there"
        )
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
        memory=StepMemory(request.config.step_memory),
    )


def show_events(events: Iterable[Event], console: Console, metric: str) -> Prepared:
    """Show the events of `prepare_artifacts` on the console, the metric with each epoch; return what was prepared."""
    prepared, model = None, "teacher"
    with ExitStack() as step:
        for event in events:
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
                elif isinstance(event, WarningEvent):
                    console.warn(event.text)
                else:
                    prepared = event
    assert prepared is not None
    return prepared


def prepare_artifacts(job: PrepareJob, threads: int) -> Iterator[Event]:
    """Prepare everything that trials share, and yield the events of doing so.

    What the cache holds already is reused. The last event is what was prepared.
    """
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = DistributedContext(device=device, precision=job.space.precision)
    job.output.download(job.output.folder / job.tokens)
    data = open_data(job.output.folder / job.tokens)
    key = teacher_key(job.source, data, job.space.teacher, job.memory, job.space.precision)
    folder = job.cache / "teachers" / key
    stage = StageStarted(f"{'scoring' if job.source.has_head else 'fine-tuning'} {job.source.name}")
    record = yield from _get_or_train(
        job.output,
        folder,
        stage,
        lambda: make_teacher(
            job.source, data, job.space.teacher, folder, device, job.memory, job.space.precision
        ),
    )
    yield Note("teacher", _format_scores(record, data.task))
    if record.head_note:
        yield Note("teacher", record.head_note)
    # Not stored with the teacher: other versions of the checks may have seen it.
    record = replace(record, warnings=teacher_warnings(record.metrics, data, job.source.has_head))
    yield from map(WarningEvent, record.warnings)
    teacher = load_teacher(folder).to(device)
    layers = matched_layers({*job.depths, *job.assistant_students}, len(teacher.layers))
    stored = yield from _store_targets(job, data, record, teacher, layers)
    targets = Targets(job.output.folder / stored.targets, data, teacher, stored.attention_stored, device)
    assistants = {}
    for depth, students in job.assistant_students.items():
        assistants[depth] = yield from _prepare_assistant(job, data, record, targets, world, depth, students)
    cached = _read_latency(job.cache, record.key)
    cached = {depth: cached[depth] for depth in cached.keys() - contradicting_depths(cached)}
    latency = cached | job.latency_ms
    # A sweep of an earlier version did not measure its teacher; one measured today would not compare with its students.
    is_comparable = not job.latency_ms or len(teacher.layers) in job.latency_ms
    depths = [*job.depths, *([len(teacher.layers)] if is_comparable else [])]
    if missing := [depth for depth in depths if depth not in latency]:
        yield StageStarted("measuring the latency of teacher and students")
        latency |= measure_latency(teacher.cpu(), missing, latency)
        write_json(_latency_file(job.cache, record.key), latency)
    sizes = size_metrics(teacher)
    if is_comparable:
        sizes["student/latency_ms"] = latency[len(teacher.layers)]
    record = replace(record, sizes=sizes)
    tokens = data.folder.relative_to(job.output.folder)
    yield record, SharedArtifacts(job.output, tokens, stored, latency, assistants)


def _format_scores(record: TeacherRecord, task: Task) -> str:
    """Format the task's metrics; an assistant's record also compares it with the teacher."""
    scores, shown = record.metrics.items(), (*task.metrics, *ERROR_METRICS)
    return ", ".join(f"{name} {value:.4f}" for name, value in scores if name.split("/")[-1] in shown)


def _get_or_train(
    output: SharedStorage, folder: Path, stage: StageStarted, train: Callable[[], Iterator[Event]]
) -> Generator[Event, None, TeacherRecord]:
    """Return the record of the teacher or assistant in `folder`, training it where the folder lacks it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.making.lock"):  # another sweep may need the same one
        output.download(folder)
        if open_teacher(folder) is None:
            yield stage
            yield from train()
        output.upload(folder)
        record = open_teacher(folder)
    if record is None:
        raise FileNotFoundError(errno.ENOENT, "deleted during the preparation", str(folder))
    return record


def _store_targets(
    job: PrepareJob,
    data: TaskData,
    record: TeacherRecord,
    teacher: Encoder,
    layers: list[int],
    model: str = "teacher",
) -> Generator[Event, None, TeacherArtifacts]:
    """Store the targets of the given layers of a teacher or an assistant."""
    targets = job.cache / "targets" / targets_key(data, record.key)
    size, free = size_gb(data, teacher, layers), shutil.disk_usage(job.cache).free / 1e9
    attention = should_store_attention(size, free, job.space.targets, stored_gb(targets, layers))
    if attention:
        how = "stored"
    else:
        size = size_gb(data, teacher, layers, attention=False)
        how = "stored without attention, which is computed for each batch (too large to store, or asked for)"
    yield Note("targets", f"{size:.2f} GB of {model} layers {', '.join(map(str, layers))}, {how}")
    yield StageStarted(f"storing the {model}'s targets")
    parts = part_names(layers, attention)
    for part in parts:
        job.output.download(targets / part)
    for done, total in build_targets(targets, data, teacher, layers, attention):
        yield Progress(done, total)
    for part in parts:
        job.output.upload(targets / part)
    home = job.output.folder
    return TeacherArtifacts(
        record.folder.relative_to(home), targets.relative_to(home), tuple(parts), attention
    )


def _prepare_assistant(
    job: PrepareJob,
    data: TaskData,
    teacher: TeacherRecord,
    targets: Targets,
    world: DistributedContext,
    layers: int,
    students: Iterable[int],
) -> Generator[Event, None, TeacherArtifacts]:
    """Distil the assistant with `layers` layers, and store its targets for students of the given depths."""
    config = job.space.assistant.model_copy(update={"student_layers": layers})
    shape, stages = ModelShape.of(targets.teacher.config), REGIMES[config.regime](config)
    memory_key = job.memory.key(shape, layers, stages, config.batch_size, data)
    key = assistant_key(teacher.key, data, config, memory_key, job.space.precision)
    folder, model, epochs = job.cache / "teachers" / key, f"{layers}-layer assistant", None
    if job.share:
        # The owner depends on the assistant alone, so that any sweep continues from its saved epochs.
        epochs = EpochCache(
            job.cache / STAGES,
            job.space.sharing.disk_gb,
            f"{model} {key[:8]}",
            f"assistant-{key}",
            job.output,
        )
    record = yield from _get_or_train(
        job.output,
        folder,
        StageStarted(f"distilling a {model} ({config.regime})", model),
        lambda: make_assistant(
            teacher, data, targets, config, folder, job.space.prefix, epochs, job.memory, world
        ),
    )
    teacher.assistants[layers] = record
    yield Note("assistant", f"{layers} layers, {_format_scores(record, data.task)}")
    encoder = load_teacher(folder).to(world.device)
    return (yield from _store_targets(job, data, record, encoder, matched_layers(students, layers), model))


def _latency_file(cache: Path, teacher: str) -> Path:
    """Return the file of a teacher's latencies on this machine, so that its sweeps compare the same numbers."""
    folder = cache / "latency"
    folder.mkdir(exist_ok=True)
    return folder / f"{teacher}-{platform.node()}.json"


def _read_latency(cache: Path, teacher: str) -> dict[int, float]:
    try:
        latency = json.loads(_latency_file(cache, teacher).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or cut off when the machine went down
        return {}
    return {int(depth): milliseconds for depth, milliseconds in latency.items()}
