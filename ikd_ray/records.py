"""Read and write the files that a sweep leaves in its output folder.

OUTPUT/cache/                 tokens, teachers, targets, latencies, trained epochs, predictions: shared by all sweeps
OUTPUT/NAME/sweep.json        settings and provenance (`SweepRecord`)
OUTPUT/NAME/space.yaml        copy of the search space
OUTPUT/NAME/task.yaml         copy of the task file, for tasks other than GLUE's
OUTPUT/NAME/study.db          Optuna study
OUTPUT/NAME/trials/ID/        trial.json (`TrialRecord`) and, for a finished trial, the student's Hugging Face folder
OUTPUT/NAME/test.json         metrics of the front's students on the test set, where the task has one
OUTPUT/NAME/damaged/          damaged files and folders, kept for inspection
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ikd_ray.config import contradicting_depths, first_error
from ikd_ray.data.dataset import TEST
from ikd_ray.data.task_file import TASK_FILE, CustomTask, find_task, is_task_file, kept_task
from ikd_ray.errors import UsageError, first_line
from ikd_ray.formatting import model_name
from ikd_ray.program import shell_command
from ikd_ray.storage import store
from ikd_ray.tasks import TASKS, GlueTask, Task

SWEEP_FILE, SPACE_FILE, STUDY_FILE, TRIAL_FILE = "sweep.json", "space.yaml", "study.db", "trial.json"
TEST_FILE = "test.json"
STUDENT = "student"  # folder of the student's weights and configuration, below its trial's

T = TypeVar("T")
Direction = Literal["max", "min"]


@dataclass(frozen=True)
class SweepRecord:
    """Settings and provenance of a sweep: the content of sweep.json."""

    name: str
    task: str
    seed: int
    trials: int  # of an open-ended sweep, as many as it might have
    command: str
    code_version: str
    # source, description, fingerprint, generated, examples (DataSize), selection, max_length, task (its digest);
    # dataset, config, revision: of the hub; example: the texts of one of dev; truncated: for each split the numbers of
    # `truncated` examples, longer than max_length, and of all `examples`; test: `examples` and `fingerprint` of a test
    # set
    data: dict[str, Any]
    # name, key, source_key, model_type, layers, metrics (on test, too, when the sweep has ended); sizes: parameters,
    # MB, latency, named as a trial's; head_note and warnings where there are any; hub_name (empty where none is
    # known), and license, license_name and license_link of its model card; assistants, keyed by their number of
    # layers
    teacher: dict[str, Any]
    objectives: dict[str, Direction]  # metric -> direction
    settings: dict[str, Any] = field(default_factory=dict)  # flags and ids that --resume needs

    @property
    def teacher_warnings(self) -> list[str]:
        """Warnings of a teacher whose answers are poor; shown beside every result."""
        return list(self.teacher.get("warnings", []))

    @property
    def teacher_metrics(self) -> dict[str, float]:
        """The teacher's metrics, and its parameters, megabytes and latency under the names of a trial's metrics."""
        return self.teacher["metrics"] | self.teacher.get("sizes", {})

    @property
    def doubtful_latencies(self) -> set[int]:
        """Numbers of layers whose measured latencies contradict each other, since the machine was busy."""
        latency_ms = self.settings.get("latency_ms") or {}
        return contradicting_depths({int(depth): value for depth, value in latency_ms.items()})

    @property
    def is_open_ended(self) -> bool:
        """True if minutes end the sweep, and no number of trials."""
        return bool(self.settings.get("open_ended"))

    def has_trials_left(self, ended: Iterable[TrialRecord]) -> bool:
        """Return whether `--resume` could run any trial, given those that have ended; one that died runs again."""
        return not self._have_all_ended(trial for trial in ended if not trial.died)

    def is_complete(self, ended: Iterable[TrialRecord]) -> bool:
        """Return whether all trials, or the time for them, have ended."""
        return bool(self.settings.get("time_is_up")) or self._have_all_ended(ended)

    def _have_all_ended(self, ended: Iterable[TrialRecord]) -> bool:
        return not self.is_open_ended and {trial.number for trial in ended}.issuperset(range(self.trials))

    def count(self, ended: int) -> str:
        """Return how many trials have ended, as in `3 of 8 trials`, or `3 trials` in an open-ended sweep."""
        if self.is_open_ended:
            return f"{ended} trial{'' if ended == 1 else 's'}"
        return f"{ended} of {self.trials} trial{'' if self.trials == 1 else 's'}"

    def assistant_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return name, key and metrics of the assistant that taught a trial, or {} if the teacher did."""
        assistants = self.teacher.get("assistants")
        key = str(params.get("assistant_layers", 0))
        assistant = assistants.get(key) if isinstance(assistants, dict) else None
        return assistant if isinstance(assistant, dict) else {}


@dataclass(frozen=True)
class TrialRecord:
    """Outcome of an ended trial: the content of trial.json."""

    id: str
    number: int  # position in the order of suggestion, from 0
    params: dict[str, Any]
    layer_map: list[int]
    status: str  # "finished" or "failed"
    # Of the last epoch, and the final ones; those on the test set are read from test.json.
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of each epoch
    times: list[float] = field(default_factory=list)  # end of each epoch, in seconds since 1970
    reason: str = ""  # of a failed trial
    died: bool = False  # its process kept dying, or had an unexpected error; --resume runs it again
    duration_s: float = 0.0
    reused_from: list[str] = field(default_factory=list)  # trials whose epochs it reused
    warnings: list[str] = field(default_factory=list)  # of saved epochs, and of scores that hardly vary
    precision: str = ""  # of the matrix products of its training; empty in records of earlier versions
    method: str = ""  # in a space that compares methods, the trial's method
    # Trains a method's best configuration with a new seed.
    retrained: Annotated[bool, Field(alias="again")] = False
    seeds: int = 1  # number of trials with this configuration, whether in the search or retrained

    @property
    def tracked_params(self) -> dict[str, Any]:
        """Parameters of the trial's MLflow run."""
        compared = {"method": self.method, "again": self.retrained} if self.method else {}
        return self.params | {"layer_map": self.layer_map} | compared

    @property
    def name(self) -> str:
        """Name of the trial's MLflow run."""
        return trial_name(self.id, self.params)


def trial_name(trial_id: str, params: Mapping[str, Any]) -> str:
    """Return a display name that sorts by regime and depth."""
    return f"{params['regime']}-{params['student_layers']}L-{trial_id}"


def trial_folder(sweep: Path, trial_id: str) -> Path:
    """Return the folder of a trial."""
    return sweep / "trials" / trial_id


def teacher_folder(sweep_folder: Path, sweep: SweepRecord) -> Path:
    """Return the folder of the sweep's teacher, whose tokenizer its students share.

    Raises:
        UsageError: the record names no teacher.
    """
    key = sweep.teacher.get("key")
    if not isinstance(key, str) or key in ("", ".", "..") or Path(key).name != key:
        raise UsageError(f"{sweep_folder}: its {SWEEP_FILE} names no teacher (got {key!r})")
    return sweep_folder.parent / "cache" / "teachers" / key


def task_digest(task: Task) -> str:
    """Return the digest of a task's definition that sweep.json stores."""
    return store.digest(task.identity)


@contextmanager
def sweep_lock(sweep: Path) -> Iterator[None]:
    """Hold the lock under which a sweep is run, resumed or checked.

    Raises:
        UsageError: another process holds it.
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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    store.write_atomic(path, json.dumps(content, indent=1) + "\n")


def write_sweep(folder: Path, record: SweepRecord) -> None:
    """Write a sweep's record to its folder."""
    write_json(folder / SWEEP_FILE, _to_json(record))


def write_trial(
    sweep: Path, record: TrialRecord, save_student: Callable[[Path], object] | None = None
) -> None:
    """Write a trial's folder atomically; `save_student` writes the student's files into the folder that it is given."""
    with store.staging_dir(trial_folder(sweep, record.id)) as folder:
        (folder / TRIAL_FILE).write_text(json.dumps(_to_json(record), indent=1) + "\n", encoding="utf-8")
        if save_student is not None:
            (folder / STUDENT).mkdir()
            save_student(folder / STUDENT)


def metrics_on_test(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return those of some metrics that were measured on the test set."""
    return {name: value for name, value in metrics.items() if name.startswith(f"{TEST}/")}


def write_test_metrics(sweep: Path, trials: Iterable[TrialRecord]) -> None:
    """Write the metrics of trials on the test set, which the readers of records add to the trials' others.

    They are measured when the trials have ended, whose folders do not change any more.
    """
    entries = {
        trial.id: {"ended": _end_of(trial), "metrics": metrics}
        for trial in trials
        if (metrics := metrics_on_test(trial.metrics))
    }
    write_json(sweep / TEST_FILE, entries)


def is_sweep(folder: Path) -> bool:
    """Return whether a folder holds a sweep's record, readable or not."""
    return os.path.isfile(folder / SWEEP_FILE)


def require_sweep(folder: Path) -> None:
    """Check that a sweep's folder has not been deleted: writing a trial would create a part of it.

    Raises:
        FileNotFoundError: It has.
    """
    if not is_sweep(folder):
        raise FileNotFoundError(errno.ENOENT, "deleted while the sweep ran", str(folder))


def read_sweep(folder: Path) -> SweepRecord:
    """Read a sweep's record.

    Raises:
        UsageError: the folder holds no readable record.
    """
    try:
        record = _read(folder / SWEEP_FILE, SweepRecord)
        return replace(record, teacher=_with_model_names(record.teacher))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder}: no sweep there ({SWEEP_FILE} is missing or unreadable: {first_line(error)})"
        ) from None


def _with_model_names(teacher: dict[str, Any]) -> dict[str, Any]:
    """Return a teacher's entry with names in place of the paths that earlier versions recorded."""
    named = dict(teacher)
    if isinstance(name := teacher.get("name"), str):
        named["name"] = model_name(name)
    if isinstance(assistants := teacher.get("assistants"), dict):
        named["assistants"] = {
            layers: _with_model_names(entry) if isinstance(entry, dict) else entry
            for layers, entry in assistants.items()
        }
    return named


def read_task(folder: Path) -> GlueTask | CustomTask:
    """Read the task of a sweep, as it was when the sweep began.

    Raises:
        UsageError: the folder holds no sweep, or the task file is missing or has changed.
    """
    sweep = read_sweep(folder)
    task = kept_task(folder, sweep.task)
    unscaled = replace(task, training_range=task.score_range)  # as earlier versions trained on scores
    for same in (task, unscaled):
        if sweep.data.get("task", task_digest(unscaled)) == task_digest(same):
            return same
    raise UsageError(
        f"{folder / TASK_FILE}: not what the sweep began with; bring back its labels and metrics"
    )


def read_trial(sweep: Path, trial_id: str) -> TrialRecord:
    """Read the record of an ended trial.

    Raises:
        UsageError: the file cannot be read, or is another trial's.
    """
    [record] = _add_test_metrics(sweep, [_read_trial(sweep, trial_id)])
    return record


def read_trials(sweep: Path) -> list[TrialRecord]:
    """Read the records of all ended trials, in the order of their numbers.

    Raises:
        UsageError: a record cannot be read.
    """
    files = (sweep / "trials").glob(f"[!.]*/{TRIAL_FILE}")
    trials = _add_test_metrics(sweep, (_read_trial(sweep, file.parent.name) for file in files))
    return sorted(trials, key=lambda trial: trial.number)


def load_intact_trials(sweep: Path) -> tuple[list[TrialRecord], list[Path]]:
    """Read the records of intact trials, and move damaged trials to `damaged/`, so that --resume runs them again.

    Returns:
        The records in the order of their numbers, and the new folders of damaged trials.
    """
    intact, damaged = [], []
    for folder in sorted((sweep / "trials").glob("[!.]*")):
        try:
            record = _read_trial(sweep, folder.name) if store.is_intact(folder) else None
        except UsageError:
            record = None
        if record:
            intact.append(record)
        else:
            damaged.append(quarantine(sweep, folder))
    return sorted(_add_test_metrics(sweep, intact), key=lambda trial: trial.number), damaged


def quarantine(sweep: Path, path: Path) -> Path:
    """Move a damaged file or folder of a sweep to `damaged/` and return its new path."""
    (sweep / "damaged").mkdir(exist_ok=True)
    names = (f"{path.name}-{count}" if count else path.name for count in itertools.count())
    target = next(sweep / "damaged" / name for name in names if not (sweep / "damaged" / name).exists())
    os.rename(path, target)
    return target


def list_sweeps(output: Path, task: str) -> list[Path]:
    """Return the folders of a task's sweeps below an output folder, oldest first.

    Raises:
        UsageError: the output folder or a sweep's record cannot be read.
    """
    try:
        files = sorted(output.glob(f"*/{SWEEP_FILE}"), key=lambda file: file.stat().st_mtime)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be read ({error.strerror})") from None
    return [file.parent for file in files if read_sweep(file.parent).task == task]


def select_sweep(output: Path, task: Task, name: str | None = None) -> Path:
    """Return the folder of the sweep `name`, or of the task's newest sweep that has a finished trial.

    Raises:
        UsageError: there is no such sweep, it is another task's, or `name` is not the name of a folder in `output`.
    """
    if name is None:
        sweeps = list_sweeps(output, task.name)
        if not sweeps:
            run = shell_command("run", f"--task {task.name}")
            raise UsageError(f"--output {output}: no sweep of {task.name} there; `{run}` makes one")
        for folder in reversed(sweeps):
            if any(trial.status == "finished" for trial in read_trials(folder)):
                return folder
        raise UsageError(f"--output {output}: no sweep of {task.name} there has a finished trial")
    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(f"--name {name!r}: give a sweep's name, not a path")
    found = read_sweep(output / name).task
    if found != task.name:
        raise UsageError(f"--name {name!r}: that is a sweep of {found}, not of {task.name}")
    return output / name


def resolve_task(value: str, output: Path) -> Task:
    """Return the task that `--task` names: GLUE's, a task file's, or that of the newest sweep of a task so named.

    Raises:
        UsageError: there is none.
    """
    if value in TASKS or is_task_file(value):
        return find_task(value)
    sweeps = list_sweeps(output, value)
    if sweeps:
        return read_task(sweeps[-1])
    try:
        return find_task(value)
    except UsageError as error:
        raise UsageError(f"{error}; {_advise_task(value, output)}") from None


def _advise_task(value: str, output: Path) -> str:
    """Say what may be meant by a task that is unknown in an output folder."""
    if Path(value).name == value and is_sweep(output / value):
        task = read_sweep(output / value).task
        return f"{value} is a sweep of {task}: give --task {task} --name {value}"
    return f"or the task of a sweep in {output}; give --output if it is elsewhere"


class _TestEntry(TypedDict):
    ended: float  # time of the trial's last epoch, which tells it from one that was made again
    metrics: dict[str, float]


_TEST_ENTRIES = TypeAdapter(dict[str, _TestEntry])
_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (SweepRecord, TrialRecord)}


def _add_test_metrics(sweep: Path, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the records with what `write_test_metrics` wrote; a file that cannot be read counts as missing."""
    path = sweep / TEST_FILE
    try:
        entries = _TEST_ENTRIES.validate_json(path.read_bytes(), strict=True) if path.is_file() else {}
    except (OSError, ValueError):
        entries = {}
    # A trial that was damaged, and made again, has another end and other weights.
    return [
        replace(trial, metrics=trial.metrics | metrics_on_test(entry["metrics"]))
        if (entry := entries.get(trial.id)) and entry["ended"] == _end_of(trial)
        else trial
        for trial in trials
    ]


def _end_of(trial: TrialRecord) -> float:
    return trial.times[-1] if trial.times else 0.0


def _to_json(record: SweepRecord | TrialRecord) -> dict[str, Any]:
    return _ADAPTERS[type(record)].dump_python(record, by_alias=True)


def _read_trial(sweep: Path, trial_id: str) -> TrialRecord:
    path = trial_folder(sweep, trial_id) / TRIAL_FILE
    try:
        record = _read(path, TrialRecord)
        if record.id != trial_id:  # names of folders are made of it
            raise ValueError(f"id: it is {record.id!r}")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)})") from None
    return record


def _read(path: Path, kind: type[T]) -> T:
    """Read a JSON file strictly: every field must have its type.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is not a `kind`.
    """
    if not path.is_file():  # opening a pipe would block
        raise FileNotFoundError(f"no such file: {path.name}")
    try:
        return _ADAPTERS[kind].validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        key, reason = first_error(error)
        raise ValueError(f"{key or 'the file'}: {reason}") from None
