"""Whether a sweep's records on disk, its Optuna study and MLflow tell the same story."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run

from ikd_ray.analysis.savings import is_reused
from ikd_ray.distill.epoch_cache import EPOCH_FILE
from ikd_ray.records import TrialRecord, read_sweep, read_trials
from ikd_ray.tracking.tracker import SWEEP_ID
from tests.helpers.run_command import saved_epochs


def assert_consistent(home: Path, name: str, trials: int) -> None:
    """A finished sweep of `trials` finished trials, the only one in `home`: each is everywhere once, the same.

    Raises:
        AssertionError: it is not.
    """
    folder = home / "outputs" / name
    records = _check_disk(folder, trials)
    _check_study(folder, records)
    _check_mlflow(home, name, records)


def _check_disk(folder: Path, trials: int) -> list[TrialRecord]:
    records = read_trials(folder)
    assert [record.number for record in records] == list(range(trials))
    assert {record.status for record in records} == {"finished"}
    for record in records:
        assert (folder / "trials" / record.id / "student" / "model.safetensors").is_file(), record.id
        last = record.history[-1]
        assert {key: record.metrics[key] for key in last} == last, record.id
        assert not record.warnings, record.warnings
    left = [path for pattern in (".*", "trials/.*") for path in folder.glob(pattern)]
    assert not left, f"left behind: {left}"
    for file in ("sweep.json", "space.yaml", "pareto.json", "pareto.png", "trials.csv"):
        assert (folder / file).is_file(), file
    return records


def _check_study(folder: Path, records: list[TrialRecord]) -> None:
    study = optuna.load_study(study_name="ikd", storage=f"sqlite:///{folder / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * len(records)
    objectives = read_sweep(folder).objectives
    for trial, record in zip(study.trials, records, strict=True):
        assert trial.number == record.number
        assert trial.values == [record.metrics[objective] for objective in objectives], record.id
        assert trial.params == {key: record.params[key] for key in trial.params}, record.id


def _check_mlflow(home: Path, name: str, records: list[TrialRecord]) -> None:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs: dict[str, list[Run]] = {"sweep": [], "teacher": [], "trial": []}
    for run in client.search_runs([experiment]):
        runs[run.data.tags["ikd.kind"]].append(run)
        assert run.info.status == "FINISHED", f"{run.info.run_name} is {run.info.status}"
    assert len(runs["sweep"]) == len(runs["teacher"]) == 1
    identity = read_sweep(home / "outputs" / name).settings["id"]
    assert runs["sweep"][0].data.tags[SWEEP_ID] == identity
    by_trial = sorted(runs["trial"], key=lambda run: run.data.tags["ikd.trial"])
    assert [run.data.tags["ikd.trial"] for run in by_trial] == [record.id for record in records]
    for run, record in zip(by_trial, records, strict=True):
        assert run.data.tags["mlflow.parentRunId"] == runs["sweep"][0].info.run_id
        assert {key: run.data.params[key] for key in record.params} == {
            key: str(value) for key, value in record.params.items()
        }
        assert run.data.tags.get("ikd.reused_from", "") == ", ".join(record.reused_from), record.id
        told = {key: _history(client, run, key) for key in run.data.metrics}
        assert told == _expected(record), record.id


def _history(client: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))


def _expected(record: TrialRecord) -> dict[str, list[tuple[int, float]]]:
    """Every metric of every epoch once; the last epoch also has those of the trial as a whole."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for step, epoch in enumerate([*record.history[:-1], record.metrics], start=1):
        for metric, value in epoch.items():
            expected.setdefault(metric, []).append((step, value))
    return expected


def assert_no_epoch_lost(home: Path, name: str, kept: dict[Path, float]) -> None:
    """Every epoch that was saved when something was killed was kept, and counts as trained by whom it was.

    Raises:
        AssertionError: it was trained again.
    """
    now = saved_epochs(home / "outputs")
    again = [path for path, seconds in kept.items() if now.get(path) != seconds]
    assert not again, f"trained again: {again}"
    trained = {
        record.id: {epoch["time/epoch_s"] for epoch in record.history if not is_reused(epoch)}
        for record in read_trials(home / "outputs" / name)
    }
    for path, seconds in kept.items():
        trial = json.loads((path / EPOCH_FILE).read_text())["trial"].rpartition("/")[2]
        assert seconds in trained[trial], f"{trial} did not go on from {path}"
