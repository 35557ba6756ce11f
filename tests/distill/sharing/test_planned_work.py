"""The work that a search plans is the work that trials do."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from ikd_ray.search.planned_work import TRIAL_COST, DataSize, PlannedWork, plan_epochs, total_cost
from tests.helpers.shared_trials import PID, with_fields

SIZE = DataSize(train=100, evaluation=20)
TRIALS = [
    PID,
    with_fields(PID, lambda_=0.9),
    with_fields(PID, temperature=4.0, top_trains="head"),
    with_fields(PID, epochs_per_layer=3),
    with_fields(PID, epochs_per_layer=3, epochs=1),
    with_fields(PID, regime="sid"),
    with_fields(PID, regime="sid", soft_labels="always", temperature=3.0),
    with_fields(PID, regime="sid", soft_labels="always", temperature=3.0, lambda_=0.9),
    with_fields(PID, student_init="first"),
    with_fields(PID, learning_rate=1e-3),
    with_fields(PID, embeddings="train"),
    with_fields(PID, student_layers=3),
    with_fields(PID, regime="kd"),
    with_fields(PID, regime="kd", epochs_per_layer=3),
    with_fields(PID, regime="kd", epochs=3),
    with_fields(PID, regime="id", internal_losses="kl"),
]


def test_trials_train_the_planned_epochs_that_no_earlier_one_planned(run):
    planned: set[Hashable] = set()
    for number, trial in enumerate(TRIALS):
        keys = {epoch.key for epoch in plan_epochs(trial, SIZE)}
        assert run(trial, f"trial {number}").trained == len(keys - planned), trial
        planned |= keys


def test_the_remaining_cost_is_that_of_epochs_which_are_not_planned():
    work = PlannedWork(SIZE)
    overhead = TRIAL_COST * SIZE.train
    assert work.add(PID) == pytest.approx(overhead + total_cost(PID, SIZE))
    again = work.assess(PID)
    assert again.cost == pytest.approx(overhead)
    assert not again.is_new
    other = with_fields(PID, lambda_=0.9)
    classification = sum(epoch.cost for epoch in plan_epochs(other, SIZE)[-other.epochs :])
    assert work.assess(other).cost == pytest.approx(overhead + classification)
    assert work.assess(other).is_new


def test_without_sharing_every_epoch_costs():
    work = PlannedWork(SIZE, shares=False)
    assert work.add(PID) == work.assess(PID).cost == work.add(PID)
    assert not work.assess(PID).is_new


def test_epochs_that_a_threshold_may_save_count_less():
    limited = with_fields(PID, cosine_threshold=0.1)
    internal = sum(epoch.cost for epoch in plan_epochs(PID, SIZE)[: -PID.epochs])
    shorter = sum(epoch.cost for epoch in plan_epochs(limited, SIZE)[: -PID.epochs])
    assert 0.5 < shorter / internal < 1
    assert total_cost(limited, SIZE) == total_cost(PID, SIZE), "at most"
