"""What a sweep has to show in MLflow once its trials have ended: its front, their models, its report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.errors import UsageError
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.redaction import redact_uri
from ikd_ray.tracking import models
from ikd_ray.tracking.pages import FRONT, NOTE, description
from ikd_ray.tracking.tracker import TRIAL, Tracker


def show_front(tracker: Tracker, folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> None:
    """Describe the sweep, mark the runs on its front, and give each of these its student as a model.

    Raises:
        UsageError: a student, or the teacher whose tokenizer it shares, is damaged or not here.
    """
    client = tracker.client
    client.set_tag(tracker.parent, NOTE, description(sweep, trials, tracker.experiment_id))
    best = {trial.id: trial for trial in pareto_front(trials, sweep.objectives)}
    for trial, run in _runs(tracker, tracker.parent).items():
        if (run.data.tags.get(FRONT) == "true") != (trial in best):
            client.set_tag(run.info.run_id, FRONT, str(trial in best).lower())
        if trial in best:
            models.log_student(client, run, folder, sweep, best[trial])


def register(
    tracker: Tracker, folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord], name: str
) -> dict[str, str]:
    """Make trials' students versions of the registered model `name`; returns the version of each trial.

    Raises:
        UsageError: the store does not know the sweep or a trial, or refuses the name.
    """
    parent, versions = tracker.parent_of(sweep), {}
    runs = _runs(tracker, parent) if parent else {}
    for trial in trials:
        if trial.id not in runs:
            raise UsageError(
                f"--register {name}: {redact_uri(tracker.uri)} has no run of {trial.id}; "
                f"sweeps/report.py --check {sweep.name} delivers it"
            )
        try:
            model = models.log_student(tracker.client, runs[trial.id], folder, sweep, trial)
            versions[trial.id] = models.register(tracker.client, model, name, sweep, trial)
        except UsageError:
            raise
        except Exception as error:  # every store raises its own
            raise UsageError(f"--register {name}: {tracker.redact_error(error)}") from None
    return versions


def log_report(sweep: SweepRecord, files: Iterable[Path], uri: str | None) -> str:
    """Leave a report's files with its sweep's run, as artifacts `report/...`; returns what was in the way, if anything.

    Args:
        uri: the store, as `Tracker` takes it.
    """
    try:
        tracker = Tracker(uri, sweep.task)
    except UsageError as error:
        return str(error)
    try:
        parent = tracker.parent_of(sweep)
        if not parent:
            return f"no run of sweep {sweep.name} there"
        for file in files:
            tracker.client.log_artifact(parent, str(file), "report")
    except Exception as error:  # every store raises its own
        return tracker.redact_error(error)
    return ""


def _runs(tracker: Tracker, parent: str) -> dict[str, Any]:
    """The run of each trial."""
    return {
        run.data.tags[TRIAL]: run for run in list(tracker.search(f"tags.`mlflow.parentRunId` = '{parent}'"))
    }
