"""The search by expected improvement per cost, with made-up scores."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from optuna.trial import FixedTrial, TrialState

from ikd_ray.config import make_trial
from ikd_ray.search.candidates import draw
from ikd_ray.search.cost_aware import CostAwareSearch
from ikd_ray.search.planned_work import DataSize, PlannedWork, total_cost
from ikd_ray.search.study import Outcome

SIZE = DataSize(1000, 100)
OBJECTIVES = {"dev/mcc": "max", "student/params": "min"}
STAGED = """
params:
  regime: {choice: [kd, pid, sid]}
  student_layers: {int: [1, 5]}
  lambda: {float: [0.01, 1], log: true}
  learning_rate: {choice: [5.0e-5, 1.0e-4, 2.0e-4]}
  epochs_per_layer: {int: [1, 4], when: {regime: [pid, sid]}}
"""


def run_search(space, score, trials, objectives=OBJECTIVES, seed=0):
    """Run trials one by one; return all their parameters and the cost of each. `score` returns None where one fails."""
    search, work, chosen, costs = CostAwareSearch(space, objectives), PlannedWork(SIZE), [], []
    for number in range(trials):
        sample = search.suggest(number, 1000 * seed + number, lambda each: work.assess(make_trial(each)))
        trial = make_trial(sample.params | space.suggest(FixedTrial(sample.params)))
        costs.append(work.add(trial))
        values = score(trial)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        search.observe(number, Outcome(state, values))
        chosen.append(trial.params())
    return chosen, costs


def by_depth(trial):
    return [0.1 * trial.student_layers, trial.student_layers]


def test_the_first_configurations_are_cheap_ones_of_every_depth(load):
    space = load(STAGED)
    search, work = CostAwareSearch(space, OBJECTIVES), PlannedWork(SIZE)
    first = []
    for number in range(40):
        sample = search.suggest(number, number, lambda each: work.assess(make_trial(each)))
        first.append(make_trial(sample.params))
    assert Counter(trial.student_layers for trial in first) == dict.fromkeys(range(1, 6), 8)
    rng = np.random.default_rng(0)
    random = [make_trial(draw(space, rng)) for _ in range(400)]
    ratios = []
    for depth in range(1, 6):
        mean, at_random = (
            np.mean([total_cost(trial, SIZE) for trial in trials if trial.student_layers == depth])
            for trials in (first, random)
        )
        ratios.append(mean / at_random)
    assert np.mean(ratios) < 0.75


def test_all_depths_are_tried_and_the_good_values_found(load):
    """The score has its maximum at lambda 0.1 and the highest learning rate."""

    def score(trial):
        loss = abs(np.log10(trial.lambda_) + 1) + 3 * abs(np.log10(trial.learning_rate / 2e-4))
        return [trial.student_layers - 2 * loss, trial.student_layers]

    late = []
    for seed in range(3):
        chosen, _ = run_search(load(STAGED), score, 40, seed=seed)
        assert {row["student_layers"] for row in chosen} == {1, 2, 3, 4, 5}
        late += chosen[20:]
    assert np.mean([row["learning_rate"] == 2e-4 for row in late]) > 0.6
    assert np.mean([abs(np.log10(row["lambda"]) + 1) for row in late]) < 0.35  # 0.5 at random


def test_a_trained_beginning_is_used_for_several_endings(load):
    """No two random configurations have the same learning rate, and share anything."""
    space = load(
        "params: {regime: sid, student_layers: 5, lambda: {float: [0.01, 1], log: true}, "
        "learning_rate: {float: [5.0e-5, 2.0e-4]}, epochs_per_layer: 4}"
    )
    chosen, costs = run_search(space, lambda trial: [trial.lambda_ + 1e3 * trial.learning_rate, 5.0], 20)
    assert sum(costs) < 0.75 * sum(total_cost(make_trial(row), SIZE) for row in chosen)
    assert max(row["lambda"] for row in chosen) > 0.8


def test_configurations_like_failed_ones_are_left(load):
    chosen, _ = run_search(
        load(STAGED), lambda trial: None if trial.learning_rate > 1e-4 else by_depth(trial), 40
    )
    assert np.mean([row["learning_rate"] > 1e-4 for row in chosen[25:]]) < 0.2


@pytest.mark.parametrize(
    ("objectives", "values"),
    [
        ({"dev/mcc": "max"}, lambda trial: [trial.lambda_]),
        (
            {"dev/nll": "min", "student/latency_ms": "min"},
            lambda trial: [-trial.lambda_, trial.student_layers],
        ),
        (
            {"dev/mcc": "max", "dev/nll": "min", "student/params": "min"},
            lambda trial: [trial.lambda_, -trial.lambda_, trial.student_layers],
        ),
    ],
)
def test_any_objectives_guide_it(load, objectives, values):
    """The score rises with lambda, whatever the depth."""
    chosen, _ = run_search(load(STAGED), values, 30, objectives)
    assert np.mean([row["lambda"] for row in chosen[15:]]) > 0.4  # 0.21 at random


def test_sizes_alone_need_no_model(load):
    objectives = {"student/params": "min", "student/latency_ms": "min"}
    chosen, _ = run_search(load(STAGED), lambda trial: [trial.student_layers] * 2, 12, objectives)
    assert len({tuple(row.values()) for row in chosen}) == 12


def test_no_configuration_comes_twice_while_others_are_left(load):
    space = load("params: {temperature: {choice: [1, 2, 3]}, student_layers: {int: [1, 4]}}")
    chosen, _ = run_search(space, by_depth, 14)
    assert len({tuple(row.values()) for row in chosen[:12]}) == 12
    assert len(chosen) == 14, "then they come again"


def test_what_an_earlier_trial_trains_comes_no_more(load):
    """With one layer pid and sid are the same, and the temperature means nothing to hard labels."""
    space = load(
        "params: {regime: {choice: [hard, pid, sid]}, student_layers: 1, temperature: {float: [1, 10]}, epochs: 1}"
    )
    chosen, costs = run_search(space, lambda trial: [trial.temperature, 1.0], 12)
    assert sum(row["regime"] == "hard" for row in chosen) <= 1
    assert min(costs) > 0.05 * max(costs)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_result_that_is_no_number_is_a_failure(load, bad):
    chosen, _ = run_search(
        load(STAGED), lambda trial: [bad, 1] if trial.learning_rate > 1e-4 else by_depth(trial), 20
    )
    assert len(chosen) == 20


def test_an_outlier_does_not_hide_the_differences_of_others(load):
    def score(trial):
        return [-1e5 if trial.learning_rate > 1e-4 else trial.lambda_, trial.student_layers]

    chosen, _ = run_search(load(STAGED), score, 40)
    assert np.mean([row["lambda"] for row in chosen[25:]]) > 0.4  # 0.21 at random


def test_everything_that_always_fails_ends_as_well(load):
    chosen, _ = run_search(load(STAGED), lambda trial: None, 12)
    assert len({tuple(row.values()) for row in chosen}) == 12


def test_a_space_with_nothing_to_search_gives_what_it_has(load):
    chosen, _ = run_search(load("params: {regime: id}"), by_depth, 6)
    assert [row["regime"] for row in chosen] == ["id"] * 6


def test_the_seed_decides(load):
    first, again, other = (run_search(load(STAGED), by_depth, 12, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again != other
