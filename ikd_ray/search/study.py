"""The Optuna study of a sweep on disk, which optuna-dashboard can open.

It is written once when a trial is suggested and once when it ends. The trials' own records outrank it: a study that
is missing, damaged or behind is completed from them.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError

from ikd_ray.records import STUDY, STUDY_FILE, quarantine
from ikd_ray.search.space import Space
from ikd_ray.storage.store import is_disk_full

METHOD = "method"  # a parameter of the trials in a study of several methods


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


def rebuild_study(sweep: Path, objectives: Mapping[str, str]) -> None:
    """Move the study to `damaged/` and write a new one of the same trials, none of them ended."""
    trials = optuna.load_study(study_name=STUDY, storage=open_storage(sweep)).get_trials(deepcopy=False)
    quarantine(sweep, sweep / STUDY_FILE)
    study = _open_study(sweep, objectives)
    for trial in trials:
        add_running(study, Sample(trial.params, trial.distributions))


def _open_study(sweep: Path, objectives: Mapping[str, str]) -> optuna.Study:
    return optuna.create_study(
        storage=open_storage(sweep),
        study_name=STUDY,
        directions=to_directions(objectives),
        load_if_exists=True,
    )


class StudyWriter:
    """Writer of a sweep's study.

    All methods raise Optuna's `StorageInternalError` where the database cannot be written.
    """

    def __init__(self, sweep: Path, objectives: Mapping[str, str], methods: Sequence[str]) -> None:
        """Open the study in the sweep's folder, or create it."""
        self._study = _open_study(sweep, objectives)
        self._methods = methods

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

    def tell(self, number: int, outcome: Outcome) -> None:
        """Write how a trial ended; one that has already ended keeps its outcome."""
        self._study.tell(number, outcome.values, outcome.state, skip_if_finished=True)
