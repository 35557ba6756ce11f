"""Every method gets equally many trials, also in a sweep that is interrupted."""

from collections import Counter

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.search.budget import Budget, TrialSpec, default_trials, recorded_trials

TPE = "methods: {a: {regime: kd}, b: {regime: id}}\nseeds: 2\nbest_seeds: 3\nparams: {epochs: {int: [1, 4]}}"
GRID = (
    "sampler: grid\nmethods: {a: {regime: kd}, b: {regime: pid}}\nparams:\n  epochs: {int: [1, 2]}\n"
    "  epochs_per_layer: {int: [1, 2], when: {regime: pid}}\n"
)


def specs(budget):
    return [budget.spec(number) for number in range(budget.total)]


def test_methods_take_turns_and_retrained_trials_come_last(load):
    budget = Budget(load(TPE), 2)
    assert (budget.search_trials, budget.total) == (8, 14)
    assert specs(budget) == [
        *(TrialSpec(method, turn, seed) for turn in (0, 1) for method in "ab" for seed in (0, 1)),
        *(TrialSpec(method, 0, seed, retrain=True) for seed in (2, 3, 4) for method in "ab"),
    ]
    assert [list(numbers) for numbers in budget.configurations("b")] == [[2, 3], [6, 7]]
    assert [budget.first_trial(number) for number in range(4)] == [0, 0, 2, 2]


def test_no_two_trials_are_the_same(load):
    found = Counter((spec.method, spec.configuration, spec.seed) for spec in specs(Budget(load(TPE), 5)))
    assert max(found.values()) == 1


def test_a_search_has_the_requested_number_of_trials_or_eight(load):
    space = load("params: {}\n")
    assert Budget(space, None).total == 8
    assert specs(Budget(space, 2)) == [TrialSpec("", 0, 0), TrialSpec("", 1, 0)]


def test_each_method_has_its_own_grid(load):
    space = load(GRID)
    found = [(spec.method, spec.configuration) for spec in specs(Budget(space, None))]
    assert found == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2), ("b", 3)]
    assert [(spec.method, spec.configuration) for spec in specs(Budget(space, 1))] == [("a", 0), ("b", 0)]
    with pytest.raises(UsageError, match="--trials 5: the grid has 4; give at most that"):
        Budget(space, 5)


def test_a_longer_search_begins_like_a_shorter_one(load):
    for text in (TPE.replace("best_seeds: 3\n", ""), GRID):
        space = load(text)
        short, long = specs(Budget(space, 2)), specs(Budget(space, 4))
        assert long[: len(short)] == short


START = "start: [{student_layers: {int: [1, 6]}}]\n"


@pytest.mark.parametrize(
    ("space", "trials"),
    [
        ("params: {}\n", 8),
        ("params: {student_layers: {int: [1, 3]}}\n", 8),
        ("params: {student_layers: {int: [1, 11]}}\n", 22),
        ("params: {student_layers: {int: [1, 6]}}\n" + START, 12),
        (
            "seeds: 3\nbest_seeds: 2\nmethods: {a: {regime: kd}, b: {regime: pid}}\nparams: {epochs: {int: [1, 9]}}\n",
            8,
        ),
    ],
)
def test_the_default_covers_every_depth_and_searches_as_long_again(load, space, trials):
    space = load(space)
    budget = Budget(space, None)
    assert default_trials(space) == trials
    assert budget.total == Budget(space, trials).total
    assert recorded_trials(space, None, budget.total) == trials


def test_a_sweep_keeps_the_number_that_was_the_default(load):
    space = load("params: {student_layers: {int: [1, 11]}}\n")
    assert recorded_trials(space, None, 8) == 8
    assert recorded_trials(space, 5, 8) == 5
    assert recorded_trials(load("sampler: grid\nparams: {epochs: {int: [1, 2]}}\n"), None, 2) is None
