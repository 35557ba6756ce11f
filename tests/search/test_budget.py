"""Every method gets as many trials, whichever are left when a sweep is cut off."""

from collections import Counter

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.search.budget import Budget, TrialSpec
from ikd_ray.search.space import load_space

TPE = (
    "methods: {a: {regime: kd}, b: {regime: id}}\nseeds: 2\nbest_seeds: 3\nparams: {epochs: {int: [1, 4]}}\n"
)
GRID = (
    "sampler: grid\nmethods: {a: {regime: kd}, b: {regime: pid}}\nparams:\n  epochs: {int: [1, 2]}\n"
    "  epochs_per_layer: {int: [1, 2], when: {regime: pid}}\n"
)


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "space.yaml").write_text(text)
        return load_space(tmp_path / "space.yaml")

    return load


def places(budget):
    return [budget.spec(number) for number in range(budget.total)]


def test_methods_take_turns_seeds_follow_one_another_and_the_best_come_last(load):
    budget = Budget(load(TPE), 2)
    assert (budget.search_trials, budget.total) == (8, 14)
    assert places(budget) == [
        *(TrialSpec(method, turn, seed) for turn in (0, 1) for method in "ab" for seed in (0, 1)),
        *(TrialSpec(method, 0, seed, retrain=True) for seed in (2, 3, 4) for method in "ab"),
    ]
    assert [list(numbers) for numbers in budget.configurations("b")] == [[2, 3], [6, 7]]
    assert [budget.first_trial(number) for number in range(4)] == [0, 0, 2, 2]
    assert [budget.position(number) for number in (2, 3, 6, 7)] == [0, 1, 2, 3]


def test_no_two_trials_are_the_same(load):
    found = Counter((place.method, place.configuration, place.seed) for place in places(Budget(load(TPE), 5)))
    assert max(found.values()) == 1


def test_a_search_has_as_many_trials_as_asked_for_and_eight_by_default(load):
    space = load("params: {}\n")
    assert Budget(space, None).total == 8
    assert places(Budget(space, 2)) == [TrialSpec("", 0, 0), TrialSpec("", 1, 0)]


def test_of_grids_each_method_has_its_own(load):
    space = load(GRID)
    assert [(place.method, place.configuration) for place in places(Budget(space, None))] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
        ("b", 2),
        ("b", 3),
    ]
    assert [(place.method, place.configuration) for place in places(Budget(space, 1))] == [("a", 0), ("b", 0)]
    with pytest.raises(UsageError, match="--trials 5: the grid has 4; give at most that"):
        Budget(space, 5)


def test_a_longer_search_begins_as_the_shorter_one(load):
    for text in (TPE.replace("best_seeds: 3\n", ""), GRID):
        space = load(text)
        short, long = places(Budget(space, 2)), places(Budget(space, 4))
        assert long[: len(short)] == short
