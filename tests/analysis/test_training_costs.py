from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.analysis.training_costs import Savings, compute_savings
from ikd_ray.records import TrialRecord

LAYERWISE = [1, 1, 2, 2, 3, 3, 4, 4, 4]  # stage of each epoch: three layers, two epochs each, then three


def trial(regime: str, stages: list[int], reused: set[int] = frozenset(), **params) -> TrialRecord:
    """Return a finished trial that reused the epochs with these indices; each epoch takes 10 s."""
    history, count = [], 0
    for index, stage in enumerate(stages):
        count += index in reused
        history.append(
            {
                "stage": float(stage),
                "reused_epochs": float(count),
                "trained_epochs": float(index + 1 - count),
                "time/reused_s": 10.0 * (index in reused),
            }
        )
    times = {"time/spent_s": 10.0 * (len(stages) - count), "time/saved_s": 10.0 * count}
    params = {"regime": regime, "student_layers": 3} | params
    metrics = history[-1] | times
    return TrialRecord("t000", 0, params, [2, 4, 6], "finished", metrics=metrics, history=history)


@pytest.mark.parametrize(
    ("regime", "params", "internal", "classification"),
    [
        ("pid", {}, 6, 3),
        ("pid", {"train": "upto"}, 12, 3),
        ("pid", {"soft_labels": "always"}, 6, 3),
        ("sid", {}, 12, 3),
        ("sid", {"top_trains": "head"}, 12, 3),
    ],
)
def test_a_layer_through_an_epoch_is_the_unit_of_internal_stages(regime, params, internal, classification):
    saved = compute_savings([trial(regime, LAYERWISE, **params)])
    assert (saved.internal_trained, saved.internal_total) == (internal, internal)
    assert (saved.classification_trained, saved.classification_total) == (classification, classification)


@pytest.mark.parametrize("regime", ["hard", "kd", "id"])
def test_regimes_of_one_stage_have_no_internal_stages(regime):
    """ID has internal losses, but its learning rate falls with the classification's."""
    assert compute_savings([trial(regime, [1, 1, 1])]) == Savings(0, 0, 3, 3, 30.0, 0.0)


def test_reused_epochs_are_counted_by_kind_of_stage():
    trials = [
        trial("sid", LAYERWISE),
        trial("sid", LAYERWISE, {0, 1, 2, 3}),  # the third layer's 2 epochs of 3 layers are its own
        trial("sid", LAYERWISE, set(range(9))),
        trial("pid", [1, 2, 2, 3, 4], {0}),  # a threshold ended two of its stages
        trial("kd", [1, 1]),
    ]
    saved = compute_savings(trials)
    assert (saved.internal_trained, saved.internal_total) == (12 + 6 + 0 + 3, 12 + 12 + 12 + 4)
    assert (saved.classification_trained, saved.classification_total) == (
        3 + 3 + 0 + 1 + 2,
        3 + 3 + 3 + 1 + 2,
    )
    assert (saved.spent_s, saved.saved_s) == (90.0 + 50.0 + 40.0 + 20.0, 40.0 + 90.0 + 10.0)
    assert saved.internal_ratio == 40 / 21
    assert saved.classification_ratio == 12 / 9
    assert saved.reused


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_reused_and_trained_epochs_in_any_order(reused):
    """A trial may have to train an epoch after one that it reused, and the other way round."""
    indices = {index for index, flag in enumerate(reused) if flag}
    saved = compute_savings([trial("kd", [1] * len(reused), indices)])
    assert (saved.classification_trained, saved.classification_total) == (reused.count(False), len(reused))
    assert saved.reused == any(reused)


def test_only_finished_trials_count():
    failed = TrialRecord("t001", 1, {"regime": "kd"}, [2], "failed", reason="loss became nan", duration_s=9.0)
    assert compute_savings([failed]) == compute_savings([]) == Savings()
    assert Savings().internal_ratio is None
    assert Savings().classification_ratio is None


def test_records_of_versions_without_sharing_count_as_trained():
    history = [{"stage": float(stage)} for stage in LAYERWISE]
    params = {"regime": "sid", "student_layers": 3}
    old = TrialRecord("t000", 0, params, [2, 4, 6], "finished", history[-1], history, duration_s=50.0)
    saved = compute_savings([old])
    assert saved == Savings(12, 12, 3, 3, 50.0, 0.0)
    assert not saved.reused


def test_metrics_of_the_sweeps_mlflow_run():
    assert compute_savings([trial("sid", LAYERWISE, {0, 1})]).metrics() == {
        "sharing/internal_layer_epochs": 12.0,
        "sharing/internal_layer_epochs_trained": 10.0,
        "sharing/classification_epochs": 3.0,
        "sharing/classification_epochs_trained": 3.0,
        "time/spent_s": 70.0,
        "time/saved_s": 20.0,
    }


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        (
            Savings(72, 380, 60, 60, 840.0, 725.0),
            "internal stages: 72 of 380 layer-epochs trained (5.3x fewer); classification: 60 of 60 epochs "
            "trained; 12 m 05 s of work saved, 14 m 00 s spent",
        ),
        (
            Savings(0, 12, 2, 3, 4.0, 30.0),
            "internal stages: 0 of 12 layer-epochs trained; classification: 2 of 3 epochs trained (1.5x fewer); "
            "30 s of work saved, 4.0 s spent",
        ),
        (
            Savings(0, 0, 0, 3, 0.2, 30.0),
            "classification: 0 of 3 epochs trained; 30 s of work saved, 0.2 s spent",
        ),
    ],
)
def test_savings_as_text(saved, text):
    assert str(saved) == text
