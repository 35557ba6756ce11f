"""The Optuna study of a sweep on disk, which optuna-dashboard can open.

It is written when a trial is suggested and when it ends. The trials' own records outrank it: a study that
is missing, damaged or behind is completed from them.
"""

from __future__ import annotations

import math
import sqlite3
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError

from ikd_ray.records import STUDY_FILE, quarantine
from ikd_ray.search.space import Space
from ikd_ray.storage.store import is_disk_full

METHOD = "method"  # a parameter of the trials in a study of several methods
EARLIER_NAME = "ikd"  # of the study of every sweep that an earlier version began
ATTRIBUTES = ("student/latency_ms", "dev/attention_kl", "dev/teacher_kl")
"""Metrics that are attributes of a trial, for optuna-dashboard, unless they are objectives."""


class Sample(NamedTuple):
    """The searched parameters of a trial."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


def to_sample(space: Space, params: Mapping[str, Any]) -> Sample:
    """Return the searched ones of a trial's parameters, with their distributions, in one method's space."""
    trial = optuna.trial.FixedTrial(dict(params))
    space.suggest(trial)
    return Sample(trial.params, trial.distributions)


class Outcome(NamedTuple):
    """The end of a trial: its state, and its objectives unless it failed."""

    state: TrialState
    values: list[float] | None


def to_outcome(metrics: Mapping[str, float], objectives: Iterable[str]) -> Outcome:
    """Return the outcome of a trial that ended with these metrics; one that lacks an objective failed."""
    values = [metrics.get(name, math.nan) for name in objectives]
    if any(map(math.isnan, values)):
        return Outcome(TrialState.FAIL, None)
    return Outcome(TrialState.COMPLETE, values)


def to_directions(objectives: Mapping[str, str]) -> list[Literal["minimize", "maximize"]]:
    """Return Optuna's directions of the objectives."""
    return ["minimize" if mode == "min" else "maximize" for mode in objectives.values()]


def add_running(study: optuna.Study, sample: Sample) -> None:
    """Add a running trial in one write, so that a killed process leaves no part of one."""
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, **sample._asdict()))


def open_storage(sweep: Path) -> optuna.storages.RDBStorage:
    """Open a sweep's study database; a damaged one is moved to `damaged/` and a new one begun."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = (sweep / STUDY_FILE).resolve()
    try:
        return open_database(path)
    except (DatabaseError, StorageInternalError) as error:
        if is_disk_full(error):
            raise
        quarantine(sweep, path)
        return open_database(path)


def open_database(path: Path) -> optuna.storages.RDBStorage:
    """Open or create an Optuna database in a file."""
    # A URL could not name every path: SQLAlchemy's versions differ in which characters they escape.
    connect = partial(sqlite3.connect, path, check_same_thread=False)
    return optuna.storages.RDBStorage(f"sqlite:///{STUDY_FILE}", engine_kwargs={"creator": connect})


def load_study(name: str, storage: optuna.storages.BaseStorage) -> optuna.Study | None:
    """Return the study of the sweep `name` in its database; None if there is none.

    It has the sweep's name, `EARLIER_NAME` where an earlier version began it, or that of a folder that was renamed.
    """
    names = optuna.get_all_study_names(storage)
    found = next((each for each in (name, EARLIER_NAME, *names) if each in names), None)
    return None if found is None else optuna.load_study(study_name=found, storage=storage)


def rebuild_study(sweep: Path, objectives: Mapping[str, str]) -> None:
    """Move the study to `damaged/` and write a new one of the same trials, none of them ended."""
    earlier = load_study(sweep.name, open_storage(sweep))
    trials = earlier.get_trials(deepcopy=False) if earlier else []
    quarantine(sweep, sweep / STUDY_FILE)
    study = _open_study(sweep, open_storage(sweep), objectives)
    for trial in trials:
        add_running(study, Sample(trial.params, trial.distributions))


def _open_study(
    sweep: Path, storage: optuna.storages.RDBStorage, objectives: Mapping[str, str]
) -> optuna.Study:
    """Open the study in a sweep's database or create it, and name its objectives."""
    study = load_study(sweep.name, storage) or optuna.create_study(
        storage=storage, study_name=sweep.name, directions=to_directions(objectives)
    )
    if study.metric_names != list(objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(objectives))
    return study


class StudyWriter:
    """Writer of a sweep's study.

    All methods raise Optuna's `StorageInternalError` where the database cannot be written.
    """

    def __init__(self, sweep: Path, objectives: Mapping[str, str], methods: Sequence[str]) -> None:
        """Open the study in the sweep's folder, or create it."""
        self._storage = open_storage(sweep)
        self._study = _open_study(sweep, self._storage, objectives)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._methods = methods
        self._attributes = [name for name in ATTRIBUTES if name not in objectives]

    def read_samples(self) -> list[Sample]:
        """Return the searched parameters of every trial, by number."""
        samples = []
        for trial in self._study.get_trials(deepcopy=False):
            params, distributions = dict(trial.params), dict(trial.distributions)
            params.pop(METHOD, None)
            distributions.pop(METHOD, None)
            samples.append(Sample(params, distributions))
        return samples

    def append(self, method: str, sample: Sample) -> None:
        """Add the next trial, as running."""
        params, distributions = sample
        if len(self._methods) > 1:
            params = {METHOD: method, **params}
            distributions = {METHOD: CategoricalDistribution(list(self._methods)), **distributions}
        add_running(self._study, Sample(params, distributions))

    def tell(self, number: int, outcome: Outcome, metrics: Mapping[str, float]) -> None:
        """Write how a trial ended; one that has already ended keeps its outcome.

        Args:
            number: the trial's number.
            outcome: its outcome.
            metrics: its metrics, of which `ATTRIBUTES` become attributes of the trial.
        """
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        with suppress(UpdateFinishedTrialError):
            for name in self._attributes:
                if math.isfinite(value := metrics.get(name, math.nan)):
                    self._storage.set_trial_user_attr(trial_id, name, value)
        self._study.tell(number, outcome.values, outcome.state, skip_if_finished=True)
