"""What a sweep leaves on disk, and how it is read back.

OUTPUT/cache/                 tokens, teachers, targets, latencies, trained epochs, predictions: shared by every sweep
OUTPUT/NAME/sweep.json        what was asked for, and of which data and teacher
OUTPUT/NAME/space.yaml        the search space as it was
OUTPUT/NAME/task.yaml         the task's definition as it was, where the task is none of GLUE's
OUTPUT/NAME/study.db          the Optuna study
OUTPUT/NAME/trials/ID/        trial.json and, for a finished trial, the student as a Hugging Face folder
OUTPUT/NAME/damaged/          what was found damaged, for whoever wants to see it
OUTPUT/NAME/pareto.json, pareto.png, trials.csv
OUTPUT/NAME/report/           report.html and its figures
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from ikd_ray.config import first_error
from ikd_ray.data.task_file import TASK_FILE, CustomTask, find_task, is_task_file, kept_task
from ikd_ray.errors import UsageError, first_line
from ikd_ray.storage import store
from ikd_ray.tasks import TASKS, GlueTask, Task

SWEEP_FILE, SPACE_FILE, STUDY_FILE, TRIAL_FILE = "sweep.json", "space.yaml", "study.db", "trial.json"
STUDENT = "student"
STUDY = "ikd"  # the study's name in its file

T = TypeVar("T")
Direction = Literal["max", "min"]


@dataclass(frozen=True)
class SweepRecord:
    """One sweep's settings and provenance."""

    name: str
    task: str
    seed: int
    trials: int
    command: str
    code_version: str
    data: dict[
        str, Any
    ]  # source, description, fingerprint, generated, selection, max_length, task (its identity's digest)
    teacher: dict[str, Any]  # name, key, layers, metrics; assistants, by their layers
    objectives: dict[str, Direction]  # by metric
    settings: dict[str, Any] = field(default_factory=dict)  # what --resume needs to go on

    def assistant_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Name, key and metrics of the assistant that taught a trial; empty where the teacher did."""
        known = self.teacher.get("assistants")
        found = known.get(str(params.get("assistant_layers", 0))) if isinstance(known, dict) else None
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class TrialRecord:
    """One trial that ended. A finished one has its metrics, a failed one the reason."""

    id: str
    number: int  # order in which the searcher suggested it, from 0
    params: dict[str, Any]
    layer_map: list[int]
    status: str  # "finished" or "failed"
    metrics: dict[str, float] = field(default_factory=dict)  # the last epoch's and the final ones
    history: list[dict[str, float]] = field(default_factory=list)  # each epoch's metrics
    times: list[float] = field(default_factory=list)  # when each was reported, in seconds since 1970
    reason: str = ""
    died: bool = False  # failed because its process did, again and again: it may run once more
    duration_s: float = 0.0
    reused_from: list[str] = field(default_factory=list)  # trials whose epochs it took
    warnings: list[str] = field(default_factory=list)  # what happened to saved epochs that should not
    method: str = ""  # of a space that compares methods: which one's it is
    again: bool = False  # its method's best configuration once more, with a seed of its own
    seeds: int = 1  # that its configuration is trained with in all, in the search or again

    @property
    def told(self) -> dict[str, Any]:
        """What a tracker has as its parameters."""
        compared = {"method": self.method, "again": self.again} if self.method else {}
        return self.params | {"layer_map": self.layer_map} | compared

    @property
    def name(self) -> str:
        """For people: names sort by regime and depth."""
        return trial_name(self.id, self.params)


def missing(trials: int, ended: Iterable[TrialRecord]) -> int:
    """How many of a sweep's trials have not ended; those that it had before it was shortened are none of them."""
    return len(set(range(trials)) - {trial.number for trial in ended})


def trial_name(trial_id: str, params: Mapping[str, Any]) -> str:
    return f"{params['regime']}-{params['student_layers']}L-{trial_id}"


@contextmanager
def sweep_lock(sweep: Path) -> Iterator[None]:
    """Within it no other process runs, resumes or checks the sweep.

    Raises:
        UsageError: one does.
    """
    lock = FileLock(sweep.parent / f".{sweep.name}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"{sweep.name}: another process is running that sweep; wait for its end, or choose another name"
        ) from None
    try:
        yield
    finally:
        lock.release()


def trial_folder(sweep: Path, trial_id: str) -> Path:
    return sweep / "trials" / trial_id


def write_json(path: Path, content: Any) -> None:
    """Replace a file at once: a reader sees the old text or the new, never half of it."""
    store.replace(path, json.dumps(content, indent=1) + "\n")


def write_sweep(folder: Path, record: SweepRecord) -> None:
    write_json(folder / SWEEP_FILE, asdict(record))


def write_trial(sweep: Path, record: TrialRecord, save_student: Callable[[Path], None] | None = None) -> None:
    """Leave a trial's folder whole or not at all. `save_student(folder)` writes the student's files."""
    with store.staging_dir(trial_folder(sweep, record.id)) as folder:
        (folder / TRIAL_FILE).write_text(json.dumps(asdict(record), indent=1) + "\n")
        if save_student is not None:
            (folder / STUDENT).mkdir()
            save_student(folder / STUDENT)


def read_sweep(folder: Path) -> SweepRecord:
    """A sweep's record.

    Raises:
        UsageError: the folder holds no sweep.
    """
    try:
        return _read(folder / SWEEP_FILE, SweepRecord)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder}: no sweep there ({SWEEP_FILE} is missing or unreadable: {first_line(error)})"
        ) from None


def read_task(folder: Path) -> GlueTask | CustomTask:
    """A sweep's task, as it was when the sweep began.

    Raises:
        UsageError: the folder holds no sweep, or another definition of its task than it began with, or none.
    """
    sweep = read_sweep(folder)
    task = kept_task(folder, sweep.task)
    if sweep.data.get("task", digest_of(task)) != digest_of(task):
        raise UsageError(
            f"{folder / TASK_FILE}: not what the sweep began with; bring back its labels and metrics"
        )
    return task


def digest_of(task: Task) -> str:
    """What a sweep's record says of its task's definition."""
    return store.digest(task.identity)


def asked_task(value: str, output: Path) -> Task:
    """The task that a flag names: GLUE's, a task file's, or that of the newest sweep of a task of that name.

    Raises:
        UsageError: there is none.
    """
    if value in TASKS or is_task_file(value):
        return find_task(value)
    try:
        sweeps = find_sweeps(output, value)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be read ({error.strerror})") from None
    return read_task(sweeps[-1]) if sweeps else find_task(value)


def teacher_folder(sweep_folder: Path, sweep: SweepRecord) -> Path:
    """Where the sweep's teacher is kept, with the tokenizer that its students share.

    Raises:
        UsageError: the record names none.
    """
    key = sweep.teacher.get("key")
    if not isinstance(key, str) or key in ("", ".", "..") or Path(key).name != key:
        raise UsageError(f"{sweep_folder}: its {SWEEP_FILE} names no teacher (got {key!r})")
    return sweep_folder.parent / "cache" / "teachers" / key


def read_trial(sweep: Path, trial_id: str) -> TrialRecord:
    """One ended trial.

    Raises:
        OSError, ValueError: its file cannot be read, or holds something else.
    """
    record = _read(trial_folder(sweep, trial_id) / TRIAL_FILE, TrialRecord)
    if record.id != trial_id:  # names of folders are made of it
        raise ValueError(f"{TRIAL_FILE} of {trial_id} is that of {record.id!r}")
    return record


def _read(path: Path, kind: type[T]) -> T:
    """A record whose every field has its type; the file may come from anywhere."""
    if not path.is_file():  # a pipe, for one, would be waited for
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    try:
        adapter = _adapter(kind)  # type: ignore[arg-type]  # mypy takes a class for one of its instances
        return adapter.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        key, reason = first_error(error)
        raise ValueError(f"{key or 'the file'}: {reason}") from None


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def read_trials(sweep: Path) -> list[TrialRecord]:
    """Every ended trial, in the order they were suggested."""
    files = (sweep / "trials").glob(f"[!.]*/{TRIAL_FILE}")
    return sorted((read_trial(sweep, file.parent.name) for file in files), key=lambda trial: trial.number)


def whole_trials(sweep: Path) -> tuple[list[TrialRecord], list[Path]]:
    """Every ended trial, in the order they were suggested, and where in `damaged/` those are now that are not whole.

    `--resume` runs these again.
    """
    whole, damaged = [], []
    for folder in sorted((sweep / "trials").glob("[!.]*")):
        try:
            record = read_trial(sweep, folder.name) if store.is_intact(folder) else None
        except (OSError, ValueError):
            record = None
        if record:
            whole.append(record)
        else:
            damaged.append(set_aside(sweep, folder))
    return sorted(whole, key=lambda trial: trial.number), damaged


def set_aside(sweep: Path, path: Path) -> Path:
    """Move something damaged out of the way, to `damaged/`; returns where it is now."""
    (sweep / "damaged").mkdir(exist_ok=True)
    names = (f"{path.name}-{count}" if count else path.name for count in itertools.count())
    target = next(sweep / "damaged" / name for name in names if not (sweep / "damaged" / name).exists())
    os.rename(path, target)
    return target


def find_sweeps(output: Path, task: str) -> list[Path]:
    """The task's sweeps below an output folder, the oldest first."""
    files = sorted(output.glob(f"*/{SWEEP_FILE}"), key=lambda file: file.stat().st_mtime)
    return [file.parent for file in files if read_sweep(file.parent).task == task]
