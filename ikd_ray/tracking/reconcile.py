"""Compare what MLflow has of a sweep with the trials' records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.records import SweepRecord, TrialRecord, metrics_on_test
from ikd_ray.tracking.models import logged_model_id
from ikd_ray.tracking.tracker import TRIAL, Tracker, run_status, sweep_status

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Difference:
    """Statement about something that the store lacks, or has otherwise than the records."""

    what: str
    broken_run: str = ""  # id of a run that cannot be completed: it must be deleted and logged anew


def find_differences(tracker: Tracker, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[Difference]:
    """Return how the store's runs of a sweep differ from the records of its ended trials."""
    parent = tracker.find_parent_run(sweep)
    if not parent:
        return [Difference("the sweep had no run")]
    records = {record.id: record for record in trials}
    on_front = {trial.id for trial in pareto_front(trials, sweep.objectives)}
    differences: list[Difference] = []
    seen: set[str] = set()
    for run in tracker.find_trial_runs(parent):
        trial = run.data.tags[TRIAL]
        if trial in seen:
            differences.append(Difference(f"{trial} had more than one run"))
        elif trial not in records:
            if run.info.status != "KILLED":
                differences.append(Difference(f"{trial} was {run.info.status}, and has no record"))
        elif run.info.status != run_status(records[trial]):
            differences.append(Difference(f"{trial} was {run.info.status}"))
        elif not _has_all_metrics(tracker, run, records[trial]):
            what = f"{trial} had not the metrics of its record, each once"
            differences.append(Difference(what, run.info.run_id))
        elif not _has_values(run, metrics_on_test(records[trial].metrics)):
            differences.append(Difference(f"{trial} had not its metrics on the test set"))
        elif trial in on_front and not logged_model_id(run):
            differences.append(Difference(f"{trial} is on the front, and its run had no model"))
        seen.add(trial)
    differences += [Difference(f"{trial} had no run") for trial in records if trial not in seen]
    status = tracker.client.get_run(parent).info.status
    if status != sweep_status(sweep, trials):
        differences.append(Difference(f"the sweep was {status}"))
    return differences


def repair(
    tracker: Tracker,
    folder: Path,
    sweep: SweepRecord,
    trials: Sequence[TrialRecord],
    differences: Sequence[Difference],
) -> None:
    """Log what the store lacks, after deleting runs that cannot be completed (only `mlflow gc` removes them)."""
    for difference in differences:
        if difference.broken_run:
            tracker.client.delete_run(difference.broken_run)
    tracker.start_sweep(sweep)
    tracker.finish_sweep(folder, sweep, trials)


def _has_all_metrics(tracker: Tracker, run: Run, record: TrialRecord) -> bool:
    later = metrics_on_test(record.metrics)  # measured when the run had ended
    if not _has_values(run, {name: value for name, value in record.metrics.items() if name not in later}):
        return False
    stages = tracker.client.get_metric_history(run.info.run_id, "stage") if record.history else []
    return sorted(stage.step for stage in stages) == list(range(1, len(record.history) + 1))


def _has_values(run: Run, metrics: Mapping[str, float]) -> bool:
    return all(run.data.metrics.get(name) == value for name, value in metrics.items())
