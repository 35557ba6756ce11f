"""Made-up sweeps, and MLflow's own SQLite store to tell them to."""

from __future__ import annotations

from ikd_ray.records import SweepRecord, TrialRecord

PARAMS = {"regime": "kd", "student_layers": 2, "lambda": 0.2}


def epoch(number: int, mcc: float) -> dict[str, float]:
    return {"dev/mcc": mcc, "stage": 1.0, "trained_epochs": float(number - 1), "reused_epochs": 1.0}


def sweep(identity: str, run_id: str = "") -> SweepRecord:
    return SweepRecord(
        name="sweep",
        task="cola",
        seed=0,
        trials=3,
        command="",
        code_version="1",
        data={
            "source": "folder",
            "description": "a [folder]",
            "fingerprint": "f00d",
            "generated": False,
            "max_length": 48,
        },
        teacher={"name": "MiniLM", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}},
        objectives={"dev/mcc": "max"},
        settings={"id": identity, "run_id": run_id, "space": "spaces/space.yaml"},
    )


def record(number: int, status: str = "finished") -> TrialRecord:
    history = [epoch(1, 0.1), epoch(2, 0.2)]
    whole = status == "finished"
    return TrialRecord(
        id=f"t{number:03d}",
        number=number,
        params=PARAMS,
        layer_map=[2, 4],
        status=status,
        metrics=history[-1] | {"student/params": 5.0} if whole else {},
        history=history if whole else [],
        times=[1001.5, 1002.5] if whole else [],
        reason="" if whole else "loss became nan",
    )


def settle(tracker, *records):
    for trial in records:
        tracker.log_trial(trial)


def children(tracker):
    client = tracker.client
    experiment = client.get_experiment_by_name(tracker.experiment_name).experiment_id
    runs = client.search_runs([experiment], "tags.`ikd.kind` = 'trial'")
    return {run.data.tags["ikd.trial"]: run for run in runs}


def values(tracker, run, metric):
    return [(m.step, m.value) for m in tracker.client.get_metric_history(run.info.run_id, metric)]
