"""What all trials share, made once before them: teacher, targets, latencies."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from transformers.utils import logging

from ikd_ray.config import PrefixConfig, SharingConfig, TargetConfig, TeacherConfig, Trial
from ikd_ray.data.tokens import TaskData, open_data
from ikd_ray.distill.assistant import assistant_key, make_assistant
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.loop import Epoch
from ikd_ray.distill.student import build_student, latency_ms, matched_layers
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
    make_teacher,
    open_teacher,
    teacher_key,
)
from ikd_ray.records import write_json
from ikd_ray.storage.remote import Output
from ikd_ray.terminal.cache_tables import STAGES


@dataclass(frozen=True)
class PrepareJob:
    """What to prepare. The node that does it may be another one than the driver's."""

    output: Output
    data: Path  # the tokenized examples, below the output's folder
    source: TeacherSource
    depths: tuple[int, ...]  # student depths the space can ask for
    teacher: TeacherConfig
    targets: TargetConfig
    latency_ms: dict[int, float]  # what is known already
    assisted: Mapping[int, tuple[int, ...]]  # assistants' depths, each with its students'
    assistant: Trial  # how assistants are distilled, but for their depth
    prefix: PrefixConfig
    sharing: SharingConfig | None  # none: an assistant's epochs are not saved

    @property
    def cache(self) -> Path:
        return self.output.folder / "cache"


@dataclass(frozen=True)
class TeacherArtifacts:
    """A teacher, or an assistant, and its targets as they lie below the output's folder."""

    teacher: Path
    targets: Path
    parts: tuple[str, ...]  # of the targets
    attention_stored: bool

    def open(self, output: Output, data: TaskData, device: torch.device) -> Targets:
        """On any node: what it lacks it gets."""
        home = output.folder
        for path in (self.teacher, *(self.targets / part for part in self.parts)):
            output.fetch(home / path)
        return Targets(
            home / self.targets, data, load_teacher(home / self.teacher), self.attention_stored, device
        )


@dataclass(frozen=True)
class SharedArtifacts:
    """Where everything that a trial needs lies, below the output's folder; small enough to travel with every trial."""

    output: Output
    data: Path
    teacher: TeacherArtifacts
    latency_ms: dict[int, float]  # by student depth
    assistants: dict[int, TeacherArtifacts] = field(default_factory=dict)  # by their depth

    def open(self, device: torch.device) -> LoadedArtifacts:
        """On any node: what it lacks it gets."""
        self.output.fetch(self.output.folder / self.data)
        return LoadedArtifacts(self, open_data(self.output.folder / self.data), device)


class LoadedArtifacts:
    """Data and teacher as a trial's process has them, and each assistant once a trial has needed it."""

    def __init__(self, shared: SharedArtifacts, data: TaskData, device: torch.device) -> None:
        self.data = data
        self._shared, self._device = shared, device
        self.teacher = shared.teacher.open(shared.output, data, device)
        self._assistants: dict[int, Targets] = {}

    def assistant(self, layers: int) -> Targets:
        """What the assistant of that depth says.

        Raises:
            OSError: it is not here, and cannot be fetched.
        """
        if layers not in self._assistants:
            stored = self._shared.assistants[layers]
            self._assistants[layers] = stored.open(self._shared.output, self.data, self._device)
        return self._assistants[layers]


@dataclass(frozen=True)
class Step:
    """A stage of the preparation begins."""

    text: str
    who: str = "teacher"  # trains in it


@dataclass(frozen=True)
class Fact:
    """Something the user wants to know."""

    label: str
    text: str


@dataclass(frozen=True)
class Done:
    """Examples done of examples in all, within a step."""

    done: int
    total: int


@dataclass(frozen=True)
class Assistant:
    """An assistant is there."""

    layers: int
    record: TeacherRecord


Event = Step | Fact | Done | Epoch | TeacherRecord | Assistant | SharedArtifacts
Made = Generator[Event, None, TeacherRecord]


def preparation(job: PrepareJob, threads: int) -> Iterator[Event]:
    """Do the job, telling what happens; the last event is the `SharedArtifacts` result. Finished parts are reused."""
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job.output.fetch(job.output.folder / job.data)
    data = open_data(job.output.folder / job.data)
    folder = job.cache / "teachers" / teacher_key(job.source, data, job.teacher)
    step = Step(f"{'scoring' if job.source.has_head else 'fine-tuning'} {job.source.name}")
    record = yield from _made(
        job.output, folder, step, lambda: make_teacher(job.source, data, job.teacher, folder, device)
    )
    yield record
    teacher = load_teacher(folder).to(device)
    taught = matched_layers({*job.depths, *job.assisted}, len(teacher.layers))
    stored = yield from _store(job, data, record, teacher, taught)
    targets = Targets(job.output.folder / stored.targets, data, teacher, stored.attention_stored, device)
    assistants = {}
    for layers, students in job.assisted.items():
        assistants[layers] = yield from _assistant(job, data, record, targets, layers, students)
    latency = _kept_latency(job.cache, record.key) | job.latency_ms
    if missing := [depth for depth in job.depths if depth not in latency]:
        yield Step("measuring students' latency")
        latency |= measure_latency(teacher.cpu(), missing)
        write_json(_latency_file(job.cache, record.key), latency)
    tokens = data.folder.relative_to(job.output.folder)
    yield SharedArtifacts(job.output, tokens, stored, latency, assistants)


def _made(output: Output, folder: Path, step: Step, make: Callable[[], Iterator[Event]]) -> Made:
    """A teacher, or an assistant, as `folder` has it; made there if need be."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.making.lock"):  # another sweep may need the same one
        output.fetch(folder)
        if open_teacher(folder) is None:
            yield step
            yield from make()
        output.push(folder)
        record = open_teacher(folder)
    assert record is not None
    return record


def _store(
    job: PrepareJob,
    data: TaskData,
    record: TeacherRecord,
    teacher: Encoder,
    layers: list[int],
    who: str = "teacher",
) -> Generator[Event, None, TeacherArtifacts]:
    """The targets of a teacher's, or an assistant's, layers."""
    targets = job.cache / "targets" / targets_key(data, record.key)
    size, free = size_gb(data, teacher, layers), shutil.disk_usage(job.cache).free / 1e9
    attention = should_store_attention(size, free, job.targets, stored_gb(targets, layers))
    if attention:
        how = "stored"
    else:
        size = size_gb(data, teacher, layers, attention=False)
        how = "stored without attention, which is computed for each batch (too large to store, or asked for)"
    yield Fact("targets", f"{size:.2f} GB of {who} layers {', '.join(map(str, layers))}, {how}")
    yield Step(f"storing the {who}'s targets")
    parts = part_names(layers, attention)
    for part in parts:
        job.output.fetch(targets / part)
    for done in build_targets(targets, data, teacher, layers, attention):
        yield Done(*done)
    for part in parts:
        job.output.push(targets / part)
    home = job.output.folder
    return TeacherArtifacts(
        record.folder.relative_to(home), targets.relative_to(home), tuple(parts), attention
    )


def _assistant(
    job: PrepareJob,
    data: TaskData,
    teacher: TeacherRecord,
    targets: Targets,
    layers: int,
    students: Iterable[int],
) -> Generator[Event, None, TeacherArtifacts]:
    """The assistant of a depth, distilled from the teacher's targets, and its own ones for students of some depths."""
    recipe = job.assistant.model_copy(update={"student_layers": layers})
    key = assistant_key(teacher.key, data, recipe)
    folder, who, checkpoints = job.cache / "teachers" / key, f"{layers}-layer assistant", None
    if job.sharing:
        owner = f"assistant-{key}"  # whoever makes it: so it goes on with its own epochs
        checkpoints = EpochCache(
            job.cache / STAGES, job.sharing.disk_gb, f"{who} {key[:8]}", owner, job.output
        )
    step = Step(f"distilling a {who} ({recipe.regime})", who)
    record = yield from _made(
        job.output,
        folder,
        step,
        lambda: make_assistant(teacher, data, targets, recipe, folder, job.prefix, checkpoints),
    )
    yield Assistant(layers, record)
    model = load_teacher(folder).to(next(targets.teacher.parameters()).device)
    return (yield from _store(job, data, record, model, matched_layers(students, layers), who))


def _latency_file(cache: Path, teacher: str) -> Path:
    """Measured once for a teacher and a machine, so that its sweeps compare equal sizes as equals."""
    folder = cache / "latency"
    folder.mkdir(exist_ok=True)
    return folder / f"{teacher}-{platform.node()}.json"


def _kept_latency(cache: Path, teacher: str) -> dict[int, float]:
    try:
        kept = json.loads(_latency_file(cache, teacher).read_text())
    except (OSError, ValueError):  # not there, or torn when the machine went down
        return {}
    return {int(depth): milliseconds for depth, milliseconds in kept.items()}


def measure_latency(teacher: Encoder, depths: Iterable[int]) -> dict[int, float]:
    """Milliseconds on the CPU for each student depth."""
    return {depth: latency_ms(build_student(teacher, depth, "first")) for depth in depths}
