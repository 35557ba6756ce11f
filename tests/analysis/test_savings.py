"""What sharing saved, from records whose counts can be checked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.analysis.savings import Savings, compute_savings
from ikd_ray.records import TrialRecord

LAYERWISE = [1, 1, 2, 2, 3, 3, 4, 4, 4]  # stage of each epoch: three layers, two epochs each, then three


def trial(regime: str, stages: list[int], reused: set[int] = frozenset(), **params) -> TrialRecord:
    """A finished trial whose epochs with these indices are another's. Each takes, or took, 10 s."""
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
    found = compute_savings([trial(regime, LAYERWISE, **params)])
    assert (found.internal_trained, found.internal_total) == (internal, internal)
    assert (found.classification_trained, found.classification_total) == (classification, classification)


@pytest.mark.parametrize("regime", ["hard", "kd", "id"])
def test_regimes_of_one_stage_have_no_internal_stages(regime):
    """ID has internal losses, but its learning rate falls with the classification's."""
    assert compute_savings([trial(regime, [1, 1, 1])]) == Savings(0, 0, 3, 3, 30.0, 0.0)


def test_what_trials_reused_is_split_by_kind_of_stage():
    trials = [
        trial("sid", LAYERWISE),
        trial("sid", LAYERWISE, {0, 1, 2, 3}),  # the third layer's 2 epochs of 3 layers are its own
        trial("sid", LAYERWISE, set(range(9))),
        trial("pid", [1, 2, 2, 3, 4], {0}),  # a threshold ended two of its stages
        trial("kd", [1, 1]),
    ]
    found = compute_savings(trials)
    assert (found.internal_trained, found.internal_total) == (12 + 6 + 0 + 3, 12 + 12 + 12 + 4)
    assert (found.classification_trained, found.classification_total) == (
        3 + 3 + 0 + 1 + 2,
        3 + 3 + 3 + 1 + 2,
    )
    assert (found.spent_s, found.saved_s) == (90.0 + 50.0 + 40.0 + 20.0, 40.0 + 90.0 + 10.0)
    assert found.internal_ratio == 40 / 21
    assert found.classification_ratio == 12 / 9
    assert found.reused


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_reused_and_trained_epochs_in_any_order(reused):
    """A trial may have to train again what it could reuse before, and the other way round."""
    indices = {index for index, flag in enumerate(reused) if flag}
    found = compute_savings([trial("kd", [1] * len(reused), indices)])
    assert (found.classification_trained, found.classification_total) == (reused.count(False), len(reused))
    assert found.reused == any(reused)


def test_only_finished_trials_count():
    failed = TrialRecord("t001", 1, {"regime": "kd"}, [2], "failed", reason="loss became nan", duration_s=9.0)
    assert compute_savings([failed]) == compute_savings([]) == Savings()
    assert Savings().internal_ratio is None
    assert Savings().classification_ratio is None


def test_records_of_earlier_versions_trained_all():
    history = [{"stage": float(stage)} for stage in LAYERWISE]
    params = {"regime": "sid", "student_layers": 3}
    old = TrialRecord("t000", 0, params, [2, 4, 6], "finished", history[-1], history, duration_s=50.0)
    found = compute_savings([old])
    assert found == Savings(12, 12, 3, 3, 50.0, 0.0)
    assert not found.reused


def test_metrics_for_mlflow():
    assert compute_savings([trial("sid", LAYERWISE, {0, 1})]).metrics() == {
        "sharing/internal_layer_epochs": 12.0,
        "sharing/internal_layer_epochs_trained": 10.0,
        "sharing/classification_epochs": 3.0,
        "sharing/classification_epochs_trained": 3.0,
        "time/spent_s": 70.0,
        "time/saved_s": 20.0,
    }


@pytest.mark.parametrize(
    ("found", "text"),
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
def test_text(found, text):
    assert str(found) == text
