"""Verification that a sweep's records, study, MLflow runs and tables agree.

The trials' records are the truth: each was written completely by the process that trained the trial. What the
others lack, or have otherwise, is derived from the records again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.errors import UsageError
from ikd_ray.records import (
    SPACE_FILE,
    SweepRecord,
    TrialRecord,
    load_intact_trials,
    read_sweep,
    sweep_lock,
)
from ikd_ray.report.summary_files import stale_summary_files, write_summary_files
from ikd_ray.search.budget import Budget, recorded_space, recorded_trials
from ikd_ray.search.sampler import SearchSettings
from ikd_ray.search.space_file import load_space
from ikd_ray.search.study import load_study, open_storage, rebuild_study, to_outcome
from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.request import require_writable, tracking_uri_of
from ikd_ray.sweep.sync import pull_students
from ikd_ray.sweep.trial_results import trial_id
from ikd_ray.tracking.async_tracker import PATIENCE_S
from ikd_ray.tracking.models import publish_front
from ikd_ray.tracking.reconcile import find_differences, repair
from ikd_ray.tracking.tracker import Tracker


@dataclass(frozen=True)
class Discrepancy:
    """A difference from the trials' records; `--resume` repairs those that verification did not."""

    where: str
    what: str
    repaired: bool


def verify(
    output: SharedStorage, folder: Path, tracking_uri: str | None
) -> tuple[SweepRecord, list[TrialRecord], list[Discrepancy]]:
    """Compare everything that exists of a sweep, and repair what can be derived from its records.

    `tracking_uri` is MLflow's, or None for the sweep's own.

    Raises:
        UsageError: There is no such sweep, it is running, or its folder or MLflow's store cannot be written.
    """
    require_writable(folder, f"--output {output.folder}")
    with sweep_lock(folder):
        sweep = read_sweep(folder)
        tracker = Tracker(tracking_uri_of(sweep, tracking_uri, "--check"), sweep.task)
        tracker.client.patience_s = PATIENCE_S
        trials, damaged = load_intact_trials(folder)
        discrepancies = [
            Discrepancy("trials", f"{path.name} was damaged; it is in {path} now", repaired=False)
            for path in damaged
        ]
        discrepancies += _verify_study(
            folder, sweep, {trial.number: trial for trial in trials if not trial.died}
        )
        outdated = stale_summary_files(folder, sweep, trials)
        if outdated:
            write_summary_files(folder, sweep, trials)
        discrepancies += [
            Discrepancy("tables", f"{name} was missing or outdated", repaired=True) for name in outdated
        ]
        discrepancies += _verify_mlflow(tracker, output, folder, sweep, trials)
        return sweep, trials, discrepancies


def _verify_study(folder: Path, sweep: SweepRecord, ended: Mapping[int, TrialRecord]) -> list[Discrepancy]:
    before = _study_differences(folder, sweep, ended)
    if before:
        _update_study(folder, sweep, ended)
        # An ended trial of a study cannot be changed: that takes a new study.
        if any(number in ended for number, _ in _study_differences(folder, sweep, ended)):
            rebuild_study(folder, sweep.objectives)
            _update_study(folder, sweep, ended)
    left = {number for number, _ in _study_differences(folder, sweep, ended)} if before else set()
    return [Discrepancy("study", what, number not in left) for number, what in before]


def _study_differences(
    folder: Path, sweep: SweepRecord, ended: Mapping[int, TrialRecord]
) -> list[tuple[int, str]]:
    """Return the numbers of trials whose entry in the study differs from their record, and the difference."""
    study = load_study(folder.name, open_storage(folder))
    if study is None:
        return [(number, f"{record.id} was not in it") for number, record in ended.items()]
    entries = {trial.number: trial for trial in study.trials}
    differences = []
    for number, record in ended.items():
        entry = entries.get(number)
        if entry is None:
            differences.append((number, f"{record.id} was not in it"))
        elif (entry.state, entry.values) != to_outcome(record.metrics, sweep.objectives):
            differences.append((number, f"{record.id} was {entry.state.name} {entry.values or ''}".rstrip()))
        elif any(record.tracked_params.get(name) != value for name, value in entry.params.items()):
            differences.append((number, f"{record.id} had other parameters"))
    for number in sorted(entries.keys() - ended.keys()):
        if entries[number].state.is_finished():
            differences.append((number, f"{trial_id(number)} had ended, but its record is gone"))
    return differences


def _update_study(folder: Path, sweep: SweepRecord, ended: Mapping[int, TrialRecord]) -> None:
    """Enter the ended trials in the study, as a resumed sweep does before its first suggestion."""

    def refuse(reason: str) -> None:
        raise UsageError(f"{folder}: {reason}")

    space = recorded_space(load_space(folder / SPACE_FILE, sweep.teacher["layers"]), sweep)
    budget = Budget(space, recorded_trials(space, sweep.settings.get("trials"), sweep.trials))
    TrialQueue(folder, budget, SearchSettings.of(sweep), ended, 0, refuse)


def _verify_mlflow(
    tracker: Tracker, output: SharedStorage, folder: Path, sweep: SweepRecord, trials: list[TrialRecord]
) -> list[Discrepancy]:
    before = find_differences(tracker, sweep, trials)
    repair(tracker, folder, sweep, trials, before)
    with output.usage_errors():
        pull_students(output, folder, pareto_front(trials, sweep.objectives))
    with suppress(UsageError):  # a missing student shows as a difference below
        publish_front(tracker, folder, sweep, trials)
    # Each trial is a call to the store.
    left = {difference.what for difference in find_differences(tracker, sweep, trials)} if before else set()
    return [Discrepancy("MLflow", difference.what, difference.what not in left) for difference in before]
