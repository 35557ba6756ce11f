"""What all trials share, made once before them: teacher, targets, latencies."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from transformers.utils import logging

from ikd_ray.config import TargetConfig, TeacherConfig
from ikd_ray.data.remote import Output
from ikd_ray.data.tokens import TaskData, open_data
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.loop import Epoch
from ikd_ray.distill.student import build_student, latency_ms, layer_map
from ikd_ray.distill.targets import (
    Targets,
    build_targets,
    key_of,
    parts_of,
    size_gb,
    stored_gb,
    stores_attention,
)
from ikd_ray.distill.teacher import (
    TeacherRecord,
    TeacherSource,
    load_teacher,
    make_teacher,
    open_teacher,
    teacher_key,
)
from ikd_ray.report.records import write_json


@dataclass(frozen=True)
class Job:
    """What to prepare. The node that does it may be another one than the driver's."""

    output: Output
    data: Path  # the tokenized examples, below the output's folder
    source: TeacherSource
    depths: tuple[int, ...]  # student depths the space can ask for
    teacher: TeacherConfig
    targets: TargetConfig
    latency_ms: dict[int, float]  # what is known already

    @property
    def cache(self) -> Path:
        return self.output.folder / "cache"


@dataclass(frozen=True)
class Shared:
    """Where everything that a trial needs lies, below the output's folder; small enough to travel with every trial."""

    output: Output
    data: Path
    teacher: Path
    targets: Path
    parts: tuple[str, ...]  # of the targets
    attention_stored: bool
    latency_ms: dict[int, float]  # by student depth

    def open(self, device: torch.device) -> tuple[TaskData, Targets]:
        """On any node: what it lacks it gets."""
        home = self.output.folder
        for path in (self.data, self.teacher, *(self.targets / part for part in self.parts)):
            self.output.fetch(home / path)
        data, teacher = open_data(home / self.data), load_teacher(home / self.teacher)
        return data, Targets(home / self.targets, data, teacher, self.attention_stored, device)


@dataclass(frozen=True)
class Step:
    """A stage of the preparation begins."""

    text: str


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


Event = Step | Fact | Done | Epoch | TeacherRecord | Shared


def preparation(job: Job, threads: int) -> Iterator[Event]:
    """Do the job, telling what happens; the last event is the `Shared` result. Finished parts are reused."""
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job.output.fetch(job.output.folder / job.data)
    data = open_data(job.output.folder / job.data)
    folder = job.cache / "teachers" / teacher_key(job.source, data, job.teacher)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.making.lock"):  # another sweep may need the same one
        job.output.fetch(folder)
        if open_teacher(folder) is None:
            yield Step(f"{'scoring' if job.source.has_head else 'fine-tuning'} {job.source.name}")
            yield from make_teacher(job.source, data, job.teacher, folder, device)
        job.output.push(folder)
        record = open_teacher(folder)
    assert record is not None
    yield record
    teacher = load_teacher(folder).to(device)
    layers = sorted({layer for depth in job.depths for layer in layer_map(depth, len(teacher.layers))})
    targets = job.cache / "targets" / key_of(data, record.key)
    size, free = size_gb(data, teacher, layers), shutil.disk_usage(job.cache).free / 1e9
    attention = stores_attention(size, free, job.targets, stored_gb(targets, layers))
    if attention:
        how = "stored"
    else:
        size = size_gb(data, teacher, layers, attention=False)
        how = "stored without attention, which is computed for each batch (too large to store, or asked for)"
    yield Fact("targets", f"{size:.2f} GB of teacher layers {', '.join(map(str, layers))}, {how}")
    yield Step("storing the teacher's targets")
    parts = parts_of(layers, attention)
    for part in parts:
        job.output.fetch(targets / part)
    for done in build_targets(targets, data, teacher, layers, attention):
        yield Done(*done)
    for part in parts:
        job.output.push(targets / part)
    latency = _kept_latency(job.cache, record.key) | job.latency_ms
    if missing := [depth for depth in job.depths if depth not in latency]:
        yield Step("measuring students' latency")
        latency |= measure_latency(teacher.cpu(), missing)
        write_json(_latency_file(job.cache, record.key), latency)
    paths = (data.folder, folder, targets)
    tokens, taught, stored = (path.relative_to(job.output.folder) for path in paths)
    yield Shared(job.output, tokens, taught, stored, tuple(parts), attention, latency)


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
