"""Sample records of a sweep and its trials, and what MLflow's store has of them."""

from __future__ import annotations

from ikd_ray.records import SweepRecord, TrialRecord
from tests.helpers import sample_records

PARAMS = {"regime": "kd", "student_layers": 2, "lambda": 0.2}


def epoch_metrics(epoch: int, mcc: float) -> dict[str, float]:
    return {"dev/mcc": mcc, "stage": 1.0, "trained_epochs": float(epoch - 1), "reused_epochs": 1.0}


def sweep_record(sweep_id: str, run_id: str = "", **changes) -> SweepRecord:
    teacher = {"name": "MiniLM", "key": "key", "source_key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
    settings = {"id": sweep_id, "run_id": run_id, "space": "spaces/space.yaml"}
    fields = {"name": "sweep", "seed": 0, "command": "", "description": "a [folder]", "teacher": teacher}
    fields |= {"objectives": {"dev/mcc": "max"}, "settings": settings}
    return sample_records.sweep_record(**(fields | changes))


def trial_record(number: int, status: str = "finished") -> TrialRecord:
    about = {"params": PARAMS, "layer_map": [2, 4], "status": status}
    if status == "failed":
        return sample_records.trial_record(number, {}, reason="loss became nan", **about)
    history = [epoch_metrics(1, 0.1), epoch_metrics(2, 0.2)]
    metrics = history[-1] | {"student/params": 5.0}
    return sample_records.trial_record(number, metrics, history=history, times=[1001.5, 1002.5], **about)


def trial_runs(tracker):
    """Return the runs of a tracker's sweep, by trial id."""
    return {run.data.tags["ikd.trial"]: run for run in tracker.find_trial_runs(tracker.parent_run_id)}
