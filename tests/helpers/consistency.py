"""Checks that a sweep's records, its saved epochs, its Optuna study and MLflow agree."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import optuna
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file

from ikd_ray.distill.epoch_cache import EPOCH_FILE, STAGES
from ikd_ray.records import TrialRecord, read_sweep, read_trials
from ikd_ray.storage.store import MANIFEST, is_intact

# In names of metrics that depend on when and by whom they were measured.
VARIES = ("time/", "latency", "_epochs")
SUMMARY_FILES = {"pareto.png", "pareto.json", "trials.csv", "space.yaml"}


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that depend on the configuration alone."""
    return {name: value for name, value in metrics.items() if not any(word in name for word in VARIES)}


def trial_metrics(sweep: Path) -> dict[str, dict[str, Any]]:
    """Return each trial's parameters and its lasting metrics, per epoch and at its end, by the trial's id."""
    return {
        trial.id: {
            "params": trial.params,
            "history": [lasting(epoch) for epoch in trial.history],
            "metrics": lasting(trial.metrics),
        }
        for trial in read_trials(sweep)
    }


def saved_epochs(output: Path) -> dict[Path, float]:
    """Return the folder of every saved epoch and the seconds that its training took."""
    cards = (output / "cache" / STAGES).glob("[!.]*/[!.]*/epoch.json")  # a dot: it is being written
    return {card.parent: json.loads(card.read_text())["metrics"]["time/epoch_s"] for card in cards}


def damaged_entries(output: Path) -> list[Path]:
    """Return the folders of the cache, which must not be empty, whose content is not what their manifest says."""
    folders = [manifest.parent for manifest in (output / "cache").rglob(MANIFEST)]
    assert folders
    return [folder for folder in folders if not is_intact(folder)]


def mlflow_runs(client: MlflowClient, sweep: str, task: str = "cola") -> dict[str, list[Run]]:
    """Return a task's runs by their kind: teachers and assistants of all sweeps, trials of one."""
    experiment = client.get_experiment_by_name(f"ikd-{task}").experiment_id
    runs: dict[str, list[Run]] = {"sweep": [], "teacher": [], "assistant": [], "trial": []}
    for run in client.search_runs([experiment], max_results=50_000):
        kind = run.data.tags["ikd.kind"]
        if kind in ("teacher", "assistant") or run.data.tags["ikd.sweep"] == sweep:
            runs[kind].append(run)
    return runs


def metric_history(client: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    """Return (step, value) of every entry of a metric."""
    return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))


def assert_consistent(
    sweep: Path,
    uri: str,
    trials: int,
    task: str = "cola",
    failed: Collection[int] = (),
    warned: bool = False,
) -> None:
    """Assert that an ended sweep's trials are on disk, in the study and in MLflow once, and equal.

    Args:
        sweep: the sweep's folder.
        uri: MLflow's store.
        trials: number of trials.
        task: name of the sweep's task.
        failed: numbers of the trials that must have failed; the others must have finished.
        warned: whether a trial may have warnings, of epochs that it could not save; MLflow may then have the times of
            an epoch's first training, and the record those of its second one.
    """
    records = _check_disk(sweep, trials, warned)
    assert [record.number for record in records if record.status != "finished"] == list(failed)
    _check_study(sweep, records)
    _check_mlflow(sweep, MlflowClient(uri), records, task, warned)


def _check_disk(sweep: Path, trials: int, warned: bool) -> list[TrialRecord]:
    records = read_trials(sweep)
    assert [record.number for record in records] == list(range(trials))
    for record in records:
        if record.status != "finished":
            continue
        assert (sweep / "trials" / record.id / "student" / "model.safetensors").is_file(), record.id
        last = record.history[-1]
        assert {key: record.metrics[key] for key in last} == last, record.id
        assert warned or not record.warnings, record.warnings
    left = [path for pattern in (".*", "trials/.*") for path in sweep.glob(pattern)]
    assert not left, f"left behind: {left}"
    assert SUMMARY_FILES | {"sweep.json"} <= {path.name for path in sweep.iterdir()}
    return records


def _check_study(sweep: Path, records: list[TrialRecord]) -> None:
    study = optuna.load_study(study_name=sweep.name, storage=f"sqlite:///{sweep / 'study.db'}")
    objectives = read_sweep(sweep).objectives
    assert study.metric_names == list(objectives)
    assert [direction.name[:3].lower() for direction in study.directions] == [*objectives.values()]
    assert len(study.trials) == len(records)
    for trial, record in zip(study.trials, records, strict=True):
        assert trial.number == record.number
        if record.status == "finished":
            assert trial.state.name == "COMPLETE"
            assert trial.values == [record.metrics[objective] for objective in objectives], record.id
        else:
            assert (trial.state.name, trial.values) == ("FAIL", None)
        assert trial.params == {key: record.params[key] for key in trial.params}, record.id


def _check_mlflow(
    sweep: Path, client: MlflowClient, records: list[TrialRecord], task: str, warned: bool
) -> None:
    runs = mlflow_runs(client, sweep.name, task)
    [parent], [teacher] = runs["sweep"], runs["teacher"]
    assert {run.info.status for run in (parent, teacher, *runs["assistant"])} == {"FINISHED"}
    assert parent.data.tags["ikd.sweep_id"] == read_sweep(sweep).settings["id"]
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == SUMMARY_FILES
    steps = [step for step, _ in metric_history(client, teacher, "train/loss")]
    assert steps == list(range(1, len(steps) + 1))
    by_trial = sorted(runs["trial"], key=lambda run: run.data.tags["ikd.trial"])
    assert [run.data.tags["ikd.trial"] for run in by_trial] == [record.id for record in records]
    for run, record in zip(by_trial, records, strict=True):
        assert run.info.status == record.status.upper()
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        params = record.params | {"layer_map": record.layer_map}
        if record.method:
            params |= {"method": record.method, "again": record.retrained}
        assert run.data.params == {key: str(value) for key, value in params.items()}, record.id
        assert run.data.tags.get("ikd.reused_from", "") == ", ".join(record.reused_from), record.id
        found = {key: metric_history(client, run, key) for key in run.data.metrics}
        expected = _expected_metrics(record)
        compared = [name for name in expected if not (warned and name.startswith("time/"))]
        assert found.keys() == expected.keys(), record.id
        assert [found[name] for name in compared] == [expected[name] for name in compared], record.id


def _expected_metrics(record: TrialRecord) -> dict[str, list[tuple[int, float]]]:
    """Return every metric of every epoch once; the last epoch also has those of the whole trial."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for step, epoch in enumerate([*record.history[:-1], record.metrics], start=1):
        for metric, value in epoch.items():
            expected.setdefault(metric, []).append((step, value))
    return expected


def assert_same_students(one: Path, other: Path, trials: int) -> None:
    """Assert that two sweeps have `trials` trials, whose lasting metrics and weights are equal."""
    assert trial_metrics(one) == trial_metrics(other)
    records = read_trials(one)
    assert len(records) == trials
    for record in records:
        if record.status == "finished":
            path = Path("trials", record.id, "student", "model.safetensors")
            first, second = load_file(one / path), load_file(other / path)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first), record.params


def assert_no_epoch_lost(sweep: Path, saved: dict[Path, float]) -> None:
    """Assert that epochs which were saved when something died are kept, and count as trained by their trial."""
    now = saved_epochs(sweep.parent)
    again = [path for path, seconds in saved.items() if now.get(path) != seconds]
    assert not again, f"trained again: {again}"
    trained = {
        record.id: {epoch["time/epoch_s"] for epoch in record.history if not epoch["time/reused_s"]}
        for record in read_trials(sweep)
    }
    for path, seconds in saved.items():
        trial = json.loads((path / EPOCH_FILE).read_text())["trial"].rpartition("/")[2]
        assert seconds in trained[trial], f"{trial} did not go on from {path}"
