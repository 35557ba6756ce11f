"""Whether a sweep's records, its study, MLflow and its tables tell one story; and making them do so.

The trials' own records say what happened: each was left whole by the process that trained the trial. What the
others lack, or have otherwise, is derived from them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.errors import UsageError
from ikd_ray.records import SPACE_FILE, SweepRecord, TrialRecord, load_intact_trials, read_sweep, sweep_lock
from ikd_ray.report.summary_files import stale, write_summary_files
from ikd_ray.search.budget import Budget
from ikd_ray.search.space import load_space
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.request import tracking_uri_of
from ikd_ray.sweep.results import trial_id
from ikd_ray.sweep.searcher import STUDY, OrderedSearch, begin_study_again, open_study, outcome
from ikd_ray.sweep.sync import pull_students
from ikd_ray.tracking.differences import find_differences, repair
from ikd_ray.tracking.publish import publish_front
from ikd_ray.tracking.tracker import Tracker


@dataclass(frozen=True)
class Discrepancy:
    """Something that was not as the records say. `mended`: now it is; else `--resume` makes it so."""

    where: str
    what: str
    mended: bool


def verify(
    output: SharedStorage, folder: Path, tracking_uri: str | None
) -> tuple[SweepRecord, list[TrialRecord], list[Discrepancy]]:
    """Compare all that there is of a sweep, and mend what can be derived.

    Args:
        folder: the sweep's, below the output's.

    Returns:
        The sweep, its ended trials, and what was found.

    Raises:
        UsageError: there is no such sweep, it is running, or MLflow's store is not there.
    """
    with sweep_lock(folder):
        sweep = read_sweep(folder)
        tracker = Tracker(tracking_uri_of(sweep, tracking_uri, "--check"), sweep.task)
        trials, damaged = load_intact_trials(folder)
        found = [
            Discrepancy("trials", f"{path.name} was damaged; it is in {path} now", mended=False)
            for path in damaged
        ]
        found += _study(folder, sweep, {trial.number: trial for trial in trials if not trial.died})
        old = stale(folder, sweep, trials)
        if old:
            write_summary_files(folder, sweep, trials)
        found += [Discrepancy("tables", f"{name} was not there, or old", mended=True) for name in old]
        found += _mlflow(tracker, output, folder, sweep, trials)
        return sweep, trials, found


def _study(folder: Path, sweep: SweepRecord, ended: Mapping[int, TrialRecord]) -> list[Discrepancy]:
    before = _differences(folder, sweep, ended)
    if before:
        _tell_study(folder, sweep, ended)
        # A trial that has ended cannot be changed in a study: that takes a new one.
        if any(number in ended for number, _ in _differences(folder, sweep, ended)):
            begin_study_again(folder, sweep.objectives)
            _tell_study(folder, sweep, ended)
    left = {number for number, _ in _differences(folder, sweep, ended)}
    return [Discrepancy("study", what, number not in left) for number, what in before]


def _differences(folder: Path, sweep: SweepRecord, ended: Mapping[int, TrialRecord]) -> list[tuple[int, str]]:
    """Numbers of trials of which the study says something else than their records, and what."""
    storage = open_study(folder)
    if STUDY not in optuna.get_all_study_names(storage):
        return [(number, f"{record.id} was not in it") for number, record in ended.items()]
    known = {trial.number: trial for trial in optuna.load_study(study_name=STUDY, storage=storage).trials}
    found = []
    for number, record in ended.items():
        trial = known.get(number)
        if trial is None:
            found.append((number, f"{record.id} was not in it"))
        elif (trial.state, trial.values) != outcome(record.metrics, sweep.objectives):
            found.append((number, f"{record.id} was {trial.state.name} {trial.values or ''}".rstrip()))
        elif any(record.tracked_params.get(name) != value for name, value in trial.params.items()):
            found.append((number, f"{record.id} had other parameters"))
    for number in sorted(known.keys() - ended.keys()):
        if known[number].state.is_finished():
            found.append((number, f"{trial_id(number)} had ended, but its record is gone"))
    return found


def _tell_study(folder: Path, sweep: SweepRecord, ended: Mapping[int, TrialRecord]) -> None:
    """As a sweep that goes on does, before it suggests anything."""

    def refuse(reason: str) -> None:
        raise UsageError(f"{folder}: {reason}")

    budget = Budget(load_space(folder / SPACE_FILE), sweep.settings.get("trials"))
    storage, planned_concurrency = open_study(folder), sweep.settings.get("foreseen", 1)
    OrderedSearch(budget, sweep.objectives, sweep.seed, planned_concurrency, storage, ended, 0, refuse)


def _mlflow(
    tracker: Tracker, output: SharedStorage, folder: Path, sweep: SweepRecord, trials: list[TrialRecord]
) -> list[Discrepancy]:
    before = find_differences(tracker, sweep, trials)
    repair(tracker, folder, sweep, trials, before)
    with output.usage_errors():
        pull_students(output, folder, pareto_front(trials, sweep.objectives))
    with suppress(UsageError):  # what a student lacks is seen below
        publish_front(tracker, folder, sweep, trials)
    left = {difference.what for difference in find_differences(tracker, sweep, trials)}
    return [Discrepancy("MLflow", what, what not in left) for what in (found.what for found in before)]
