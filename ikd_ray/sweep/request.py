"""A sweep as asked for, checked against data, teacher and space before anything is written."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from ikd_ray.config import SweepConfig, first_error
from ikd_ray.data.dataset import Dataset
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.splits import HOLDOUT, hold_out, nested_subset
from ikd_ray.data.task_file import TASK_FILE, CustomTask, find_task, is_task_file
from ikd_ray.errors import UsageError
from ikd_ray.records import SPACE_FILE, SWEEP_FILE, Direction, SweepRecord, is_sweep, read_sweep, read_task
from ikd_ray.search.assistant_depths import assistant_depths
from ikd_ray.search.budget import DEFAULT_TRIALS, Budget
from ikd_ray.search.space import Space, load_space
from ikd_ray.storage.remote import RemoteStorage, SharedStorage
from ikd_ray.sweep.sync import pull_sweep
from ikd_ray.tasks import Task

MOST_TRIALS = 100_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


if TYPE_CHECKING:
    from ikd_ray.distill.teacher import TeacherSource


@dataclass(frozen=True)
class Request:
    """Everything that a sweep needs to know, all of it valid."""

    config: SweepConfig
    task: Task
    space: Space
    objectives: dict[str, Direction]
    dataset: Dataset
    source: TeacherSource
    depths: tuple[int, ...]
    assistant_students: dict[int, tuple[int, ...]]  # student depths by the depth of their assistant
    max_length: int
    budget: Budget
    folder: Path
    resumes: bool

    @property
    def trials(self) -> int:
        """All of them, further seeds included."""
        return self.budget.total

    @property
    def output(self) -> SharedStorage:
        """Where the sweep lies, for any node."""
        return _output(self.config.uri, self.config.output)


def _output(uri: str | None, folder: Path) -> SharedStorage:
    return RemoteStorage(uri) if uri else SharedStorage(os.path.realpath(folder))


def validate(config: SweepConfig, resumes: bool = False) -> Request:
    """Read and check all input; writes nothing.

    Args:
        resumes: the sweep `config.name` is to go on; else it must be new.

    Raises:
        UsageError: something asked for is wrong.
    """
    task = find_task(config.task)
    space = load_space(config.space)
    objectives = space.objectives_for(task)
    name = config.name if config.name is not None else f"{task.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = config.model_copy(update={"name": name, **_absolute(config.model_dump())})
    folder = _folder(config, resumes)
    budget = _budget(config, space)
    dataset = load_dataset(task, config.data_dir)
    if space.selection == HOLDOUT:
        dataset = hold_out(dataset)
    # Imported late: it takes seconds, and the mistakes above should be answered at once.
    from ikd_ray.distill.teacher import find_teacher

    source = find_teacher(config.teacher, task)
    depths = tuple(sorted(space.possible_values("student_layers")))
    if depths[-1] > source.layers:
        raise UsageError(
            f"{config.space}: student_layers: up to {depths[-1]}, but the teacher {source.name} has "
            f"{source.layers} layers; give at most that"
        )
    assistants = assistant_depths(str(config.space), budget.spaces.values(), source.layers)
    if config.workers_per_trial > 1:
        _check_workers(config, space, dataset)
    if resumes:
        _same_as_before(read_sweep(folder), dataset, source)
        _no_longer_than_before(read_sweep(folder), space, budget)
    length = min(space.data.max_length, source.max_tokens)
    checked = (config, task, space, objectives, dataset, source, depths, assistants, length, budget, folder)
    return Request(*checked, resumes)


def _check_workers(config: SweepConfig, space: Space, dataset: Dataset) -> None:
    """Whether every batch is large enough for a trial's workers to split."""
    workers, smallest = config.workers_per_trial, min(space.possible_values("batch_size"))
    if smallest < 2 * workers:
        raise UsageError(
            f"{config.space}: batch_size: {smallest} examples are too few for {workers} workers "
            "to split; give at least two a worker"
        )
    least = space.minimum("train_fraction")
    fewest = len(nested_subset(dataset.splits["train"].labels, least, seed=0))  # as many with every seed
    if fewest < 2 * workers:
        raise UsageError(
            f"{config.space}: train_fraction: {least:g} leaves {fewest} training examples, too few for "
            f"{workers} workers to split; give at least two a worker"
        )


def _same_as_before(earlier: SweepRecord, dataset: Dataset, source: TeacherSource) -> None:
    if dataset.fingerprint != earlier.data["fingerprint"]:
        raise UsageError(
            f"--resume {earlier.name}: its data was {earlier.data['description']}, now it is "
            f"{dataset.description}; bring back the first, or start a sweep of another --name"
        )
    if source.key != earlier.teacher["source_key"]:
        raise UsageError(
            f"--resume {earlier.name}: the teacher {source.name} is not the one it began with; bring that "
            "back, or start a sweep of another --name"
        )


def _budget(config: SweepConfig, space: Space) -> Budget:
    budget = Budget(space, config.trials)
    if budget.total > MOST_TRIALS:
        raise UsageError(
            f"--trials {config.trials or DEFAULT_TRIALS}: {budget.total:,} trials, as {config.space} trains each "
            f"configuration with {space.seeds} seeds, for each of {len(space.methods)} methods; "
            f"at most {MOST_TRIALS:,} are possible"
        )
    return budget


def _no_longer_than_before(earlier: SweepRecord, space: Space, budget: Budget) -> None:
    if space.best_seeds and budget.total != earlier.trials:
        raise UsageError(
            f"--resume {earlier.name}: --trials cannot change, as best_seeds of its space trains what was best of them "
            "again; leave it out, or start a sweep of another --name"
        )


def _absolute(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that name folders, in full: a sweep may go on from another working folder."""
    found = {}
    if is_task_file(flags.get("task") or ""):
        found["task"] = os.path.realpath(flags["task"])
    if flags.get("data_dir"):
        found["data_dir"] = Path(os.path.realpath(flags["data_dir"]))
    if flags.get("teacher") and os.path.isdir(flags["teacher"]):
        found["teacher"] = os.path.realpath(flags["teacher"])
    return found


def validate_name(name: str, flag: str) -> str:
    """A sweep's name that is safe as a folder's.

    Raises:
        UsageError: it is not.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{flag} {name!r}: use letters, digits, '.', '_' and '-', at most 80, no '.' first")
    return name


def _folder(config: SweepConfig, resumes: bool) -> Path:
    assert config.name is not None
    folder = config.output / validate_name(config.name, "--name")
    if config.name == "cache":
        raise UsageError("--name cache: that folder holds what sweeps share; choose another name")
    output = _output(config.uri, config.output)
    with output.usage_errors():
        elsewhere = output.list_names(output.folder / config.name)
    # os.path answers False, and raises nothing, where a folder may not even be looked into.
    if not resumes and (elsewhere or os.path.exists(folder)):
        known = SWEEP_FILE in elsewhere or is_sweep(folder)
        again = f", or go on with --resume {config.name}" if known else ""
        raise UsageError(f"--name {config.name}: {folder} exists already; choose another name{again}")
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(folder)  # a name too long for a folder's
        # To ask for permission is not enough: a file system may be read-only, full, or none that takes folders.
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=existing))
    except OSError as error:
        raise UsageError(
            f"--output {config.output}: cannot write in {existing} ({error.strerror}); give a folder that you own"
        ) from None
    return folder


def find_sweep(name: str, flag: str, output: SharedStorage) -> Path:
    """The folder of a sweep that is there, with all that is known of it.

    Raises:
        UsageError: there is none of that name, or its record is damaged.
    """
    folder = output.folder / validate_name(name, flag)
    with output.usage_errors():
        pull_sweep(output, folder)
    if not is_sweep(folder):
        known = sorted(path.parent.name for path in output.folder.glob(f"*/{SWEEP_FILE}"))
        there = f"; there are: {', '.join(known[:20])}" if known else ""
        raise UsageError(f"{flag} {name}: no sweep of that name in {output.path}{there}")
    read_task(folder)  # damaged ones are refused before anybody locks them
    return folder


def resumed_config(name: str, changes: dict[str, Any], output: SharedStorage) -> SweepConfig:
    """The configuration of an earlier sweep, with what the command line changes.

    Raises:
        UsageError: there is no such sweep, or a flag would make it another one.
    """
    folder = find_sweep(name, "--resume", output)
    record = read_sweep(folder)
    _check_kept(folder, record)
    free = {
        "trials",
        "concurrent",
        "workers_per_trial",
        "gpus_per_worker",
        "tracking_uri",
        "output",
        "no_share",
    }
    changes = dict(changes) | _absolute(changes)
    task = read_task(folder)
    if is_task_file(changes.get("task") or "") and find_task(changes["task"]) == task:
        changes["task"] = task.name  # wherever the file lies now
    for flag in set(changes) - free:
        if str(changes[flag]) != str(record.settings.get(flag)):
            raise UsageError(
                f"--{flag.replace('_', '-')} cannot change when a sweep goes on (it is "
                f"{record.settings.get(flag)}); leave it out, or start a sweep of another --name"
            )
    tracking_uri_of(record, changes.get("tracking_uri"), "--resume")
    kept = {key: value for key, value in record.settings.items() if key in SweepConfig.model_fields}
    own = {"name": name, "output": output.folder, "uri": output.uri, "space": folder / SPACE_FILE}
    if isinstance(task, CustomTask):
        own["task"] = str(folder / TASK_FILE)
    try:
        SweepConfig(**(kept | own))
    except ValidationError as error:
        raise _damaged(folder, error) from None
    return make_config(kept | changes | own)


def tracking_uri_of(sweep: SweepRecord, given: str | None, flag: str) -> str | None:
    """The MLflow store that a sweep goes on with; none: MLflow's own choice.

    Raises:
        UsageError: it needs a password.
    """
    kept = given or sweep.settings.get("tracking_uri")
    if kept is None and sweep.settings.get("store") and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UsageError(
            f"{flag} {sweep.name}: the password of its MLflow store {sweep.settings['store']} is not kept; set "
            "MLFLOW_TRACKING_URI again"
        )
    return kept


class _Kept(BaseModel):
    """What a sweep's record has, besides the flags, that a sweep goes on by."""

    fingerprint: str
    description: str
    source_key: str
    latency_ms: dict[int, float] = {}
    id: str = Field("", pattern=r"^[0-9a-f]*$", max_length=32)  # names of what trials share are made of it
    run_id: str = Field("", pattern=r"^\w*$", max_length=64)


def _check_kept(folder: Path, record: SweepRecord) -> None:
    try:
        _Kept.model_validate(record.settings | record.data | record.teacher)
    except ValidationError as error:
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: ValidationError) -> UsageError:
    key, reason = first_error(error)
    return UsageError(
        f"--resume {folder.name}: {folder / SWEEP_FILE} is damaged ({key}: {reason}); "
        "bring back the file, or start a sweep of another --name"
    )


def make_config(given: dict[str, Any]) -> SweepConfig:
    """A validated configuration from flags' values.

    Raises:
        UsageError: a value is out of range; the message names the flag.
    """
    for key, value in given.items():
        if "\0" in str(value):  # what looks for such a file raises an error of its own
            raise UsageError(
                f"--{key.replace('_', '-')} {str(value)!r}: NUL has no place in it; leave it out"
            )
    try:
        return SweepConfig(**given)
    except ValidationError as error:
        key, reason = first_error(error)
        raise UsageError(f"--{key.replace('_', '-')} {given.get(key)}: {reason}") from None
