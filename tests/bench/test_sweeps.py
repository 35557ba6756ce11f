"""Sweeps whose trials train nothing: their synthetic epochs, and that the machinery loses none of them."""

from __future__ import annotations

import math

import optuna
import pytest
from mlflow import MlflowClient

from ikd_ray.bench.sweeps import SyntheticDistillation, measure_overhead
from ikd_ray.config import Trial
from ikd_ray.distill.loop import Distillation
from ikd_ray.records import read_trials
from tests.helpers.tiny_models import make_data, make_encoder, make_targets

STUDENT_METRICS = {"student/params", "student/encoder_params", "student/size_mb", "student/latency_ms"}
TRIALS = 20


@pytest.fixture(scope="module")
def data_and_targets(tmp_path_factory):
    root = tmp_path_factory.mktemp("opened")
    data = make_data(root, train=16, dev=8)
    return data, make_targets(root / "targets", data, make_encoder())


@pytest.mark.parametrize("internal_losses", ["both", "kl", "cos"])
@pytest.mark.parametrize("regime", ["hard", "kd", "id", "pid", "sid"])
def test_synthetic_epochs_have_the_metrics_of_real_ones(data_and_targets, regime, internal_losses):
    trial = Trial(
        regime=regime, internal_losses=internal_losses, student_layers=2, epochs=1, epochs_per_layer=1
    )
    real = {name for epoch in Distillation(trial, *data_and_targets) for name in epoch.metrics}
    for epoch in SyntheticDistillation(trial, *data_and_targets):
        assert set(epoch.metrics) == real
    assert epoch.remaining == 0


def test_synthetic_values_depend_on_the_parameters_alone(data_and_targets):
    one, same, other = (
        list(SyntheticDistillation(Trial(seed=seed), *data_and_targets)) for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


@pytest.mark.slow
def test_every_trial_goes_through_the_whole_machinery(tmp_path):
    """Run the measured sweep for real: Ray, MLflow, the study and all summary files, without training."""
    overhead = measure_overhead(TRIALS, tmp_path)
    assert overhead["trials"] == TRIALS
    assert 0 < overhead["driver_cpu_seconds_a_trial"] < overhead["seconds_a_trial"] < 2
    assert overhead["driver_mb_at_end"] - overhead["driver_mb_at_start"] < 50
    sweep = tmp_path / "outputs" / "overhead"
    trials = read_trials(sweep)
    assert [trial.status for trial in trials] == ["finished"] * TRIALS
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = client.search_runs([experiment], "tags.`ikd.kind` = 'trial'")
    by_trial = {run.data.tags["ikd.trial"]: run for run in runs}
    assert len(runs) == len(by_trial) == TRIALS
    for trial in trials:
        run = by_trial[trial.id]
        assert run.info.status == "FINISHED"
        assert run.data.metrics == trial.metrics
        assert set(trial.metrics) >= STUDENT_METRICS
        assert all(map(math.isfinite, trial.metrics.values()))
        assert set(trial.params) <= set(run.data.params)
    study = optuna.load_study(study_name=sweep.name, storage=f"sqlite:///{sweep / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * TRIALS
    assert {"pareto.json", "pareto.png", "trials.csv"} <= {path.name for path in sweep.iterdir()}
