"""The one-standard-error rule."""

from __future__ import annotations

import numpy as np
import pytest

from ikd_ray.analysis.recommendation import recommend, standard_error
from tests.helpers.sample_records import sweep_record, trial_record

OBJECTIVES = {"dev/accuracy": "max", "student/params": "min"}


def recommended(values: dict[int, float], examples: int = 400, **fields):
    """Return the recommendation among students of some layers with an accuracy each."""
    sweep = sweep_record(objectives=fields.pop("objectives", OBJECTIVES))
    sweep.data["truncated"] = {"dev": {"truncated": 0, "examples": examples}}
    metric = next(iter(sweep.objectives))
    trials = [
        trial_record(layers, {metric: value, "student/params": layers}, layer_map=list(range(layers)))
        for layers, value in values.items()
    ]
    return recommend(sweep, trials)


def test_the_smallest_within_a_standard_error_is_taken():
    # sqrt(0.8 * 0.2 / 400) = 0.02
    found = recommended({1: 0.7, 2: 0.781, 3: 0.79, 5: 0.8})
    assert (found.trial.number, found.best.number) == (2, 5)
    assert found.standard_error == pytest.approx(0.02)
    assert found.reason == (
        "the smallest student whose accuracy (0.781) is within one standard error (0.020) of the best one's "
        "(0.800, 5 layers)"
    )


def test_with_more_examples_the_best_is_taken():
    found = recommended({1: 0.7, 2: 0.781, 5: 0.8}, examples=40_000)
    assert found.trial.number == found.best.number == 5
    assert "no smaller student" in found.reason


def test_without_a_number_of_examples_the_best_is_taken():
    assert recommended({1: 0.7, 2: 0.7999, 5: 0.8}, examples=0).trial.number == 5


def test_a_metric_to_minimise():
    found = recommended({1: 0.4, 3: 0.2}, objectives={"dev/rmse": "min", "student/params": "min"})
    assert found.trial.number == 3


def test_nothing_is_recommended_without_a_student_or_a_metric_of_a_split():
    assert recommended({}) is None
    assert recommended({1: 0.5}, objectives={"train/loss": "min", "student/params": "min"}) is None


def test_standard_errors_are_those_of_simulations():
    rng, examples = np.random.default_rng(0), 500
    right = rng.random((4000, examples)) < 0.7
    assert standard_error("dev/accuracy", 0.7, examples) == pytest.approx(right.mean(axis=1).std(), rel=0.05)
    gold = rng.normal(size=(4000, examples))
    scores = 0.6 * gold + 0.8 * rng.normal(size=gold.shape)
    found = [np.corrcoef(*pair)[0, 1] for pair in zip(gold, scores, strict=True)]
    assert standard_error("dev/pearson", 0.6, examples) == pytest.approx(np.std(found), rel=0.05)
    labels = rng.random((4000, examples)) < 0.5
    answers = labels ^ (rng.random(labels.shape) < 0.2)
    found = [np.corrcoef(*pair)[0, 1] for pair in zip(labels, answers, strict=True)]
    assert standard_error("dev/mcc", 0.6, examples) == pytest.approx(np.std(found), rel=0.35)


def test_the_reason_has_the_means_over_seeds_that_were_compared():
    values = {1: (0.74, 0.86), 3: (0.80, 0.82)}
    trials = [
        trial_record(
            10 * layers + seed,
            {"dev/accuracy": value, "student/params": layers},
            layer_map=list(range(layers)),
            params={"regime": "kd", "student_layers": layers, "seed": seed},
            seeds=2,
        )
        for layers, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    sweep = sweep_record(objectives=OBJECTIVES)
    sweep.data["truncated"] = {"dev": {"truncated": 0, "examples": 400}}
    found = recommend(sweep, trials)
    assert (found.value, found.best_value) == pytest.approx((0.80, 0.81))
    assert (
        "accuracy (0.800) is within one standard error (0.020) of the best one's (0.810, 3 layers)"
        in found.reason
    )
