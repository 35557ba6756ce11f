"""Methods that are compared: as many trials of each, none learns of another's, the best come again."""

from __future__ import annotations

import optuna
import pytest
from ray.tune.search import Searcher

from ikd_ray.search.budget import Budget
from ikd_ray.search.space import load_space
from ikd_ray.sweep.results import FAILED, REPORT
from ikd_ray.sweep.searcher import STUDY, OrderedSearch, open_study
from tests.helpers.simulated_search import (
    OBJECTIVES,
    newest,
    oldest,
    play_all,
    records,
    refuse,
    reported,
    result,
)

COMPARED = """
methods:
  hard labels: {regime: hard}
  KD: {regime: kd}
  SID: {regime: sid, soft_labels: always}
seeds: 2
best_seeds: 3
params:
  student_layers: {int: [1, 5]}
  temperature: {float: [1, 10], log: true}
"""


@pytest.fixture
def compared(tmp_path):
    (tmp_path / "compared.yaml").write_text(COMPARED)
    return load_space(tmp_path / "compared.yaml")


def compare(space, folder, ended=(), trials=100, concurrent=2, most=14):
    folder.mkdir(exist_ok=True)
    budget = Budget(space, most)
    return OrderedSearch(budget, OBJECTIVES, 0, concurrent, open_study(folder), dict(ended), trials, refuse)


def test_methods_take_turns_and_each_has_as_many_trials(compared, tmp_path):
    given = play_all(compare(compared, tmp_path / "a", trials=14 * 3 * 2 + 9), oldest)
    assert sorted(given) == list(range(14 * 3 * 2 + 9))
    methods = [given[number]["method"] for number in range(12)]
    assert (
        methods
        == ["hard labels"] * 2 + ["KD"] * 2 + ["SID"] * 2 + ["hard labels"] * 2 + ["KD"] * 2 + ["SID"] * 2
    )
    for suggestion in given.values():
        fixed = compared.methods[suggestion["method"]]
        assert suggestion["params"].items() >= fixed.items()
    for first in range(0, 84, 2):
        one, two = given[first]["params"], given[first + 1]["params"]
        assert (one["seed"], two["seed"]) == (0, 1)
        assert one | {"seed": 1} == two, "a configuration's seeds differ in nothing else"


def test_the_best_of_each_method_comes_again_with_further_seeds(compared, tmp_path):
    given = play_all(compare(compared, tmp_path / "a", trials=93), newest)
    searched = {n: s for n, s in given.items() if n < 84}
    assert not any(s["retrained"] for s in searched.values())
    for method in compared.methods:
        own = [s for s in searched.values() if s["method"] == method]
        best = max(own, key=lambda s: (result(s)[REPORT].metrics["dev/mcc"], -s["number"]))["params"]
        again = [s for n, s in sorted(given.items()) if n >= 84 and s["method"] == method]
        assert [s["params"] for s in again] == [best | {"seed": seed} for seed in (2, 3, 4)]
        assert all(s["retrained"] for s in again)
        assert {s["seeds"] for s in own} == {2}
        assert {s["seeds"] for s in again} == {3}


def test_a_method_learns_of_its_own_trials_alone(compared, tmp_path):
    """What another method's trials give changes no suggestion of this one."""
    one = play_all(compare(compared, tmp_path / "a", trials=84), oldest)
    search, other = compare(compared, tmp_path / "b", trials=84), {}
    for count in range(84):
        given = other[count] = search.suggest(f"tune-{count}")
        bad = reported({"dev/mcc": -count, "student/params": count})
        search.on_trial_complete(f"tune-{count}", result(given) if given["method"] == "KD" else bad)
    of_kd = [number for number in one if one[number]["method"] == "KD"]
    assert [other[number] for number in of_kd] == [one[number] for number in of_kd]
    assert other != one


@pytest.mark.parametrize("cut", [3, 41, 85, 88])
@pytest.mark.parametrize("study", ["kept", "gone"])
def test_a_comparison_that_was_cut_off_goes_on_as_it_would_have(compared, tmp_path, cut, study):
    whole = play_all(compare(compared, tmp_path / "whole", trials=93), oldest)
    first, before = compare(compared, tmp_path / "cut", trials=93), {}
    running = {}
    while len(before) < cut:
        name = f"tune-{len(before) + len(running)}"
        running[name] = first.suggest(name)
        if len(running) == 2:
            name = oldest(running)
            given = running.pop(name)
            first.on_trial_complete(name, result(given))
            before[given["number"]] = given
    if study == "gone":
        (tmp_path / "cut" / "study.db").unlink()
    rest = compare(compared, tmp_path / "cut", ended=records(before.values()), trials=93 - len(before))
    after = play_all(rest, newest)
    assert before | after == whole
    trials = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "cut")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 93
    assert {trial.params["method"] for trial in trials} == set(compared.methods)


def test_of_a_method_that_always_fails_the_first_configuration_comes_again(compared, tmp_path):
    search, given = compare(compared, tmp_path / "a", trials=93), {}
    for count in range(93):
        one = given[count] = search.suggest(f"tune-{count}")
        if one["method"] == "KD":
            search.on_trial_complete(f"tune-{count}", {FAILED: "loss became nan"})
            search.fail(one["number"])
        else:
            search.on_trial_complete(f"tune-{count}", result(one))
    assert search.suggest("tune-93") == Searcher.FINISHED
    assert given[85]["method"] == "KD"
    assert given[85]["params"] == given[2]["params"] | {"seed": 2}


def test_what_began_again_stays_the_best_though_a_lost_trial_did_better_since(compared, tmp_path):
    """Its process died, and so it could not be chosen; the next run's first deed is to train it."""
    search, given = compare(compared, tmp_path / "a", trials=93), {}
    for count in range(85):
        one = given[count] = search.suggest(f"tune-{count}")
        if one["number"] == 2:  # of KD
            search.on_trial_complete(f"tune-{count}", None, error=True)
            search.fail(2, final=False)
        else:
            search.on_trial_complete(f"tune-{count}", result(one))
    begun = search.suggest("begun")
    assert (begun["method"], begun["retrained"]) == ("KD", True)
    ended = records(one for number, one in given.items() if number != 2)
    again = compare(compared, tmp_path / "a", ended=ended, trials=93 - len(ended))
    rest = {}
    while (one := again.suggest(f"again-{len(rest)}")) != Searcher.FINISHED:
        rest[one["number"]] = one
        told = {"dev/mcc": 99.0, "student/params": 1} if one["number"] == 2 else result(one)[REPORT].metrics
        again.on_trial_complete(f"again-{len(rest) - 1}", reported(told))
    of_kd = [
        one["params"] | {"seed": 0} for one in rest.values() if one["method"] == "KD" and one["retrained"]
    ]
    assert of_kd == [begun["params"] | {"seed": 0}] * 3


def test_a_shortened_comparison_has_as_many_of_each(compared, tmp_path):
    """What was begun beyond its new end is not gone on with in place of what lies before it."""
    text = COMPARED.replace("best_seeds: 3\n", "")
    (tmp_path / "plain.yaml").write_text(text)
    space = load_space(tmp_path / "plain.yaml")
    search = compare(space, tmp_path / "a", most=4)
    given = [search.suggest(f"tune-{number}") for number in range(20)]
    ended = records(given[number] for number in (*range(10), 19))
    shorter = compare(space, tmp_path / "a", ended=ended, trials=2, most=2)
    assert [shorter.suggest(f"again-{number}")["number"] for number in range(2)] == [10, 11]
