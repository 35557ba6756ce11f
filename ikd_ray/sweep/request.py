"""A requested sweep, new or resumed, validated against data, teacher and space before anything is written."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from ikd_ray.config import SweepConfig, first_error
from ikd_ray.data.checks import data_warnings
from ikd_ray.data.dataset import TEST, Dataset
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.splits import HOLDOUT, hold_out, training_rows
from ikd_ray.data.task_file import TASK_FILE, CustomTask, find_task, is_task_file
from ikd_ray.errors import UsageError, first_line
from ikd_ray.records import SPACE_FILE, SWEEP_FILE, Direction, SweepRecord, is_sweep, read_sweep, read_task
from ikd_ray.search.assistant_depths import assistant_depths
from ikd_ray.search.budget import Budget, default_trials, recorded_space, recorded_trials
from ikd_ray.search.builtin_spaces import DEFAULT_SPACE, find_space
from ikd_ray.search.planned_work import DataSize
from ikd_ray.search.space import Space
from ikd_ray.search.space_file import load_space
from ikd_ray.storage.remote import RemoteStorage, SharedStorage
from ikd_ray.storage.store import check_writable
from ikd_ray.sweep.sync import pull_sweep
from ikd_ray.tasks import Task
from ikd_ray.tracking.local_store import require_writable_store

if TYPE_CHECKING:
    from ikd_ray.distill.teacher import TeacherSource

MAX_TRIALS = 100_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
CHANGEABLE = {  # flags that may differ when a sweep is resumed
    "data_dir",  # contents are compared, wherever they are
    "unlabelled",
    "teacher",
    "trials",
    "minutes",
    "concurrent",
    "workers_per_trial",
    "gpus_per_worker",
    "tracking_uri",
    "output",
    "no_share",
}


@dataclass(frozen=True)
class Request:
    """A validated sweep."""

    config: SweepConfig
    space: Space
    dataset: Dataset
    teacher_source: TeacherSource
    budget: Budget
    assistant_students: dict[int, tuple[int, ...]]  # student depths by the depth of their assistant
    resumes: bool

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.config.output / str(self.config.name)

    @property
    def task(self) -> Task:
        """The task of the data set."""
        return self.dataset.task

    @property
    def objectives(self) -> dict[str, Direction]:
        """The direction of each metric that the Pareto front compares."""
        return self.space.objectives_for(self.task)

    @property
    def depths(self) -> tuple[int, ...]:
        """The student depths that the space can reach."""
        return tuple(sorted(self.space.possible_values("student_layers")))

    @property
    def max_length(self) -> int:
        """The most tokens of an example."""
        return min(self.space.data.max_length, self.teacher_source.max_tokens)

    @property
    def data_size(self) -> DataSize:
        """The number of examples that trials train on, and are evaluated on."""
        unlabelled = int((~self.dataset.splits["train"].is_labelled).sum())
        return DataSize.of({name: len(split) for name, split in self.dataset.splits.items()}, unlabelled)

    @property
    def warnings(self) -> list[str]:
        """Warnings of the data and the teacher."""
        return [*data_warnings(self.dataset), *self.teacher_source.warnings]

    @property
    def trials(self) -> int:
        """The number of trials, further seeds included."""
        return self.budget.total

    @property
    def is_open_ended(self) -> bool:
        """True if minutes end the sweep, and no number of trials."""
        return bool(self.config.minutes) and not self.budget.grids

    @property
    def output(self) -> SharedStorage:
        """The output folder, as any node reaches it."""
        return _storage(self.config)


def _storage(config: SweepConfig) -> SharedStorage:
    return RemoteStorage(config.uri) if config.uri else SharedStorage(os.path.realpath(config.output))


def read_config(given: dict[str, Any], storage: SharedStorage, resume: str | None = None) -> SweepConfig:
    """Return the configuration of a new sweep, or of the sweep `resume` with some flags changed.

    Args:
        given: the flags that the user gave, by their names in `SweepConfig`; a space also by its name.
        storage: the output folder.
        resume: name of the sweep that goes on.

    Raises:
        UsageError: A value is wrong, or the task is missing.
    """
    if "space" in given:
        given = given | {"space": find_space(str(given["space"]))}
    if resume:
        return resumed_config(resume, given, storage)
    if not given.get("task"):
        raise UsageError("--task is missing; give a GLUE task, such as cola, or a task file")
    space = {} if "space" in given else {"space": find_space(DEFAULT_SPACE)}
    return make_config(given | space | {"output": storage.folder, "uri": storage.uri})


def make_config(flags: dict[str, Any]) -> SweepConfig:
    """Return the configuration that command-line flags describe.

    Raises:
        UsageError: A value is out of range; the message names the flag.
    """
    for name, value in flags.items():
        if "\0" in str(value):  # opening such a file would raise a ValueError
            raise UsageError(f"{_flag(name)} {str(value)!r}: NUL has no place in it; leave it out")
    if flags.get("trials") and flags.get("minutes"):
        raise UsageError(
            f"--trials {flags['trials']} and --minutes {flags['minutes']:g}: give one of the two, which ends the sweep"
        )
    try:
        return SweepConfig(**flags)
    except ValidationError as error:
        name, reason = first_error(error)
        raise UsageError(f"{_flag(name)} {flags.get(name)}: {reason}") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def validate(config: SweepConfig, resumes: bool = False, tracked: bool = True) -> Request:
    """Read and validate all input of a sweep, without writing anything.

    With `resumes` the sweep `config.name` is resumed; otherwise it must not exist. Where it is `tracked`, MLflow's
    store must be one that can be written.

    Raises:
        UsageError: Some input is wrong.
    """
    task = find_task(config.task)
    space = load_space(config.space)
    space.objectives_for(task)  # raises for a metric that the task does not have
    name = config.name if config.name is not None else f"{task.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = config.model_copy(update={"name": name, **_absolute_paths(config.model_dump())})
    _require_utf8_paths(config)
    folder = config.output / validate_name(name, "--name")
    if not resumes:
        _require_unused(config, folder)
    require_writable(folder, f"--output {config.output}")
    if tracked:
        require_writable_store(config.tracking_uri)
    with _moved_files_explained(config, resumes):
        dataset = load_dataset(task, config.data_dir, config.unlabelled)
    if space.selection == HOLDOUT:
        dataset = hold_out(dataset)
    # Imported late: it takes seconds, and the errors above should appear at once.
    from ikd_ray.distill.teacher import find_teacher

    with _moved_files_explained(config, resumes):
        source = find_teacher(config.teacher, task)
    earlier = read_sweep(folder) if resumes else None
    space = load_space(config.space, source.layers)
    if earlier:
        space = recorded_space(space, earlier)
    deepest = max(space.possible_values("student_layers"))
    if deepest > source.layers:
        raise UsageError(
            f"{config.space}: student_layers: up to {deepest}, but the teacher {source.name} has "
            f"{source.layers} layers; give at most that"
        )
    budget = _make_budget(config, space, earlier)
    assistant_students = assistant_depths(str(config.space), budget.spaces.values(), source.layers)
    _require_unlabelled(config, space, dataset)
    if config.workers_per_trial > 1:
        _require_splittable_batches(config, space, dataset)
    if earlier:
        _require_same_sweep(earlier, dataset, source, space, budget)
    return Request(config, space, dataset, source, budget, assistant_students, resumes)


def _absolute_paths(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that name files, as absolute paths: a sweep may be resumed from another working folder."""
    paths: dict[str, Any] = {}
    if is_task_file(flags.get("task") or ""):
        paths["task"] = os.path.realpath(flags["task"])
    if flags.get("data_dir"):
        paths["data_dir"] = Path(os.path.realpath(flags["data_dir"]))
    if flags.get("unlabelled"):
        paths["unlabelled"] = Path(os.path.realpath(flags["unlabelled"]))
    if flags.get("teacher") and os.path.isdir(flags["teacher"]):
        paths["teacher"] = os.path.realpath(flags["teacher"])
    return paths


def _require_utf8_paths(config: SweepConfig) -> None:
    """Require paths that a record, which is UTF-8, can hold."""
    encoding, advice = sys.getfilesystemencoding(), "rename the file or folder"
    if encoding != "utf-8":
        advice += ", or set LC_ALL=C.UTF-8 if its name is UTF-8"
    for flag, value in (config.model_dump() | {"output": config.output.absolute()}).items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{_flag(flag)} {str(value)!r}: the path is not valid in {encoding}, the encoding of this terminal; "
                f"{advice}"
            ) from None


def validate_name(name: str, flag: str) -> str:
    """Return a sweep's name if it is safe as a folder's name.

    Raises:
        UsageError: It is not.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{flag} {name!r}: use letters, digits, '.', '_' and '-', at most 80, no '.' first")
    if name == "cache":
        raise UsageError(f"{flag} cache: that folder holds what sweeps share; choose another name")
    return name


@contextmanager
def _moved_files_explained(config: SweepConfig, resumes: bool) -> Iterator[None]:
    """Say in an error of a resumed sweep what to type, if files of it are no longer where they were."""
    try:
        yield
    except UsageError as error:
        teacher = config.teacher if os.path.isabs(config.teacher or "") else None  # else a name on the hub
        given = [path for path in (config.data_dir, config.unlabelled, teacher) if path]
        if not resumes or all(map(os.path.exists, given)):
            raise
        raise UsageError(
            f"{error}; where it was moved, give the new places with --resume, as --data-dir, --unlabelled and "
            "--teacher"
        ) from None


def _require_unused(config: SweepConfig, folder: Path) -> None:
    output = _storage(config)
    with output.usage_errors():
        remote_names = output.list_names(output.folder / folder.name)
    # os.path returns False, and does not raise, in a folder that may not be searched.
    if remote_names or os.path.exists(folder):
        is_known = SWEEP_FILE in remote_names or is_sweep(folder)
        resume = f", or go on with --resume {config.name}" if is_known else ""
        raise UsageError(f"--name {config.name}: {folder} exists already; choose another name{resume}")


def require_writable(folder: Path, source: str) -> None:
    """Check all folders that running a sweep writes to: its own, and the output folder with its cache.

    `source` is the flag and value that name the output folder, for the message.

    Raises:
        UsageError: Files cannot be written in one of them.
    """
    cache = folder.parent / "cache"
    try:
        for place in (folder.parent, folder, folder / "trials", cache):
            check_writable(place)
        for kind in filter(Path.is_dir, cache.glob("*")):
            check_writable(kind)
    except OSError as error:
        raise UsageError(
            f"{source}: cannot write in {error.filename} ({error.strerror}); give a folder that you own"
        ) from None
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UsageError(f"TMPDIR: {first_line(error)}; set it to a folder that you own") from None


def _make_budget(config: SweepConfig, space: Space, earlier: SweepRecord | None) -> Budget:
    trials = config.trials
    if config.minutes:
        if space.best_seeds:
            raise UsageError(
                f"--minutes {config.minutes:g}: {config.space} retrains the best configurations (best_seeds) after "
                "a number of trials; give --trials"
            )
        trials = MAX_TRIALS // (len(space.methods) * space.seeds) if space.sampler != "grid" else None
    elif earlier:
        trials = recorded_trials(space, trials, earlier.trials)
    budget = Budget(space, trials)
    if budget.total > MAX_TRIALS:
        given = config.trials or default_trials(space)
        raise UsageError(
            f"--trials {given}: {budget.total:,} trials, as {config.space} trains each configuration "
            f"with {space.seeds} seeds, for each of {len(space.methods)} methods; "
            f"at most {MAX_TRIALS:,} are possible"
        )
    return budget


def _require_unlabelled(config: SweepConfig, space: Space, dataset: Dataset) -> None:
    """Require texts without a label where the space says how many of them to use."""
    fractions = set(space.possible_values("unlabelled_fraction"))
    if fractions != {1.0} and dataset.splits["train"].is_labelled.all():
        raise UsageError(
            f"{config.space}: unlabelled_fraction needs texts without a label; give --unlabelled FILE (or files: "
            "{unlabelled: FILE} in the task file), or leave unlabelled_fraction out"
        )


def _require_splittable_batches(config: SweepConfig, space: Space, dataset: Dataset) -> None:
    """Require at least two examples of every batch for each of a trial's workers."""
    workers, batch_size = config.workers_per_trial, min(space.possible_values("batch_size"))
    if batch_size < 2 * workers:
        raise UsageError(
            f"{config.space}: batch_size: {batch_size} examples are too few for {workers} workers "
            "to split; give at least two a worker"
        )
    fraction = min(space.possible_values("train_fraction"))
    # Stages of hard labels alone read only these examples; their number is equal for all seeds.
    examples = len(training_rows(dataset.splits["train"].labels, fraction, 0, seed=0))
    if examples < 2 * workers:
        raise UsageError(
            f"{config.space}: train_fraction: {fraction:g} leaves {examples} training examples, too few for "
            f"{workers} workers to split; give at least two a worker"
        )


def _require_same_sweep(
    earlier: SweepRecord, dataset: Dataset, source: TeacherSource, space: Space, budget: Budget
) -> None:
    if dataset.fingerprint != earlier.data["fingerprint"]:
        raise UsageError(
            f"--resume {earlier.name}: its data was {earlier.data['description']}, now it is "
            f"{dataset.description}; give the same data as --data-dir (and --unlabelled, where it had texts without a "
            "label), or start a sweep of another --name"
        )
    test, earlier_test = dataset.test_dataset, earlier.data.get("test", {})
    if (test.fingerprint if test else None) != earlier_test.get("fingerprint"):
        raise UsageError(
            f"--resume {earlier.name}: its test examples are not those that it began with "
            f"({earlier_test.get('examples', 0):,} then, {len(test.splits[TEST]) if test else 0:,} now); give the same "
            "data as --data-dir, or start a sweep of another --name"
        )
    if source.key != earlier.teacher["source_key"]:
        raise UsageError(
            f"--resume {earlier.name}: the teacher {source.name} is not the one it began with; give that one "
            "as --teacher, or start a sweep of another --name"
        )
    if space.best_seeds and budget.total != earlier.trials:
        raise UsageError(
            f"--resume {earlier.name}: --trials cannot change, because best_seeds of its space retrains the best "
            "of them; leave it out, or start a sweep of another --name"
        )


def find_sweep(name: str, flag: str, output: SharedStorage) -> Path:
    """Return the folder of an existing sweep, after pulling its records where the output is remote.

    Raises:
        UsageError: There is no sweep of that name, or its record is damaged.
    """
    folder = output.folder / validate_name(name, flag)
    with output.usage_errors():
        pull_sweep(output, folder)
    if not is_sweep(folder):
        names = sorted(path.parent.name for path in output.folder.glob(f"*/{SWEEP_FILE}"))
        existing = f"; there are: {', '.join(names[:20])}" if names else ""
        raise UsageError(f"{flag} {name}: no sweep of that name in {output.path}{existing}")
    read_task(folder)  # refuse a damaged record before the sweep is locked
    return folder


def resumed_config(name: str, changes: dict[str, Any], output: SharedStorage) -> SweepConfig:
    """Return an earlier sweep's configuration, with the flags that the command line changes.

    Raises:
        UsageError: There is no such sweep, or a flag would make it another one.
    """
    folder = find_sweep(name, "--resume", output)
    record, task = read_sweep(folder), read_task(folder)
    settings = {key: value for key, value in record.settings.items() if key in SweepConfig.model_fields}
    own = {"name": name, "output": output.folder, "uri": output.uri, "space": folder / SPACE_FILE}
    if isinstance(task, CustomTask):
        own["task"] = str(folder / TASK_FILE)
    try:
        _ResumeRecord.model_validate(record.settings | record.data | record.teacher)
        SweepConfig(**(settings | own))
    except ValidationError as error:
        key, reason = first_error(error)
        raise UsageError(
            f"--resume {folder.name}: {folder / SWEEP_FILE} is damaged ({key}: {reason}); "
            "bring back the file, or start a sweep of another --name"
        ) from None
    changes = changes | _absolute_paths(changes)
    if is_task_file(changes.get("task") or "") and find_task(changes["task"]) == task:
        changes["task"] = task.name  # the same definition in another place
    if "space" in changes and load_space(changes["space"]).text == load_space(folder / SPACE_FILE).text:
        del changes["space"]
    for flag in set(changes) - CHANGEABLE:
        if str(changes[flag]) != str(record.settings.get(flag)):
            raise UsageError(
                f"{_flag(flag)} cannot change when a sweep goes on (it is "
                f"{record.settings.get(flag)}); leave it out, or start a sweep of another --name"
            )
    for flag, other in (("trials", "minutes"), ("minutes", "trials")):
        if flag in changes and other not in changes:
            settings.pop(other, None)
    tracking_uri_of(record, changes.get("tracking_uri"), "--resume")
    return make_config(settings | changes | own)


class _ResumeRecord(BaseModel):
    """Entries of a sweep's record, besides its flags, that resuming it reads."""

    fingerprint: str
    description: str
    source_key: str
    latency_ms: dict[int, float] = {}
    id: str = Field("", pattern=r"^[0-9a-f]*$", max_length=32)  # part of file names
    run_id: str = Field("", pattern=r"^\w*$", max_length=64)


def tracking_uri_of(sweep: SweepRecord, given: str | None, flag: str) -> str | None:
    """Return the MLflow URI that a sweep continues with; None for MLflow's default.

    Raises:
        UsageError: The URI needs a password, which records do not keep.
    """
    uri = given or sweep.settings.get("tracking_uri")
    if uri is None and sweep.settings.get("store") and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UsageError(
            f"{flag} {sweep.name}: the password of its MLflow store {sweep.settings['store']} is not kept; set "
            "MLFLOW_TRACKING_URI again"
        )
    return uri
