"""Suggestions depend on the seed and on results, never on the order in which trials end."""

from __future__ import annotations

import optuna
import pytest

from ikd_ray.sweep.search import FAILED, STUDY, OrderedSearch, open_storage
from ikd_ray.sweep.space import load_space

OBJECTIVES = {"dev/mcc": "max", "student/params": "min"}
SPACE = """
params:
  regime: {choice: [kd, pid]}
  student_layers: {int: [1, 5]}
  temperature: {float: [1, 10], log: true}
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    return load_space(tmp_path / "space.yaml")


def make(space, folder, concurrent=2, seed=0, ended=()):
    folder.mkdir(exist_ok=True)
    return OrderedSearch(space, OBJECTIVES, seed, concurrent, open_storage(folder), dict(ended))


def result(suggestion):
    """A made-up outcome that depends on the parameters alone."""
    params = suggestion["params"]
    value = params["temperature"] / 10 + params["student_layers"]
    return {"dev/mcc": value, "student/params": params["student_layers"], "remaining": 0}


def play(search, total, finish_first):
    """Two slots; `finish_first(running)` chooses which of the running trials ends next."""
    running, suggestions = {}, {}
    while len(suggestions) < total or running:
        while len(running) < 2 and len(suggestions) < total:
            name = f"tune-{len(suggestions)}"
            suggestion = search.suggest(name)
            if suggestion is None:
                break
            running[name] = suggestions[suggestion["number"]] = suggestion
        name = finish_first(sorted(running))
        search.on_trial_complete(name, result(running.pop(name)))
    search.finish()
    return [suggestions[number]["params"] for number in range(total)]


def oldest(running):
    return min(running, key=lambda name: int(name.split("-")[1]))


def newest(running):
    return max(running, key=lambda name: int(name.split("-")[1]))


def test_the_order_of_endings_changes_nothing(space, tmp_path):
    one = play(make(space, tmp_path / "a"), 24, oldest)
    other = play(make(space, tmp_path / "b"), 24, newest)
    assert one == other


def test_another_seed_another_search(space, tmp_path):
    one = play(make(space, tmp_path / "a"), 12, oldest)
    assert one != play(make(space, tmp_path / "b", seed=1), 12, oldest)


def test_results_guide_the_search(space, tmp_path):
    """After the random start it prefers what did well: here few layers or many, both on the front."""
    params = play(make(space, tmp_path / "a", concurrent=1), 60, oldest)
    early, late = params[:10], params[30:]
    mean = [sum(p["temperature"] for p in part) / len(part) for part in (early, late)]
    assert mean[1] > mean[0]


def test_a_study_goes_on_where_it_was_cut_off(space, tmp_path):
    whole = play(make(space, tmp_path / "whole", concurrent=1), 14, oldest)
    cut = make(space, tmp_path / "cut", concurrent=1)
    ended = {}
    for number in range(12):
        suggestion = cut.suggest(f"tune-{number}")
        if number < 11:  # the last one is running when the driver dies
            ended[number] = result(suggestion)
            cut.on_trial_complete(f"tune-{number}", ended[number])
    again = make(space, tmp_path / "cut", concurrent=1, ended=ended)
    assert play_on(again, 3) == whole[11:]
    states = optuna.load_study(study_name=STUDY, storage=open_storage(tmp_path / "cut")).trials
    assert [trial.state.name for trial in states] == ["COMPLETE"] * 14


def play_on(search, count):
    params = []
    for i in range(count):
        suggestion = search.suggest(f"again-{i}")
        params.append(suggestion["params"])
        search.on_trial_complete(f"again-{i}", result(suggestion))
    search.finish()
    return params


def test_failed_and_unfinished_trials_are_told_apart(space, tmp_path):
    search = make(space, tmp_path / "a")
    for i in range(3):
        search.suggest(f"tune-{i}")
    search.on_trial_complete("tune-0", {FAILED: "loss became nan"})
    search.on_trial_complete("tune-1", None, error=True)
    search.on_trial_complete("tune-2", {"dev/mcc": 0.1, "remaining": 3})  # stopped by the user
    search.finish()
    states = optuna.load_study(study_name=STUDY, storage=open_storage(tmp_path / "a")).trials
    assert [trial.state.name for trial in states] == ["FAIL", "FAIL", "RUNNING"]


def test_a_grid_is_run_in_its_order(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "sampler: grid\nparams:\n  regime: {choice: [hard, kd]}\n  student_layers: {int: [1, 2]}\n"
    )
    space = load_space(tmp_path / "grid.yaml")
    search = make(space, tmp_path / "a")
    got = [search.suggest(f"tune-{i}")["params"] for i in range(4)]
    assert got == [{"seed": 0, **row} for row in space.grid()]


def test_every_trial_has_the_seed_of_the_sweep_unless_the_space_names_one(space, tmp_path):
    assert make(space, tmp_path / "a", seed=7).suggest("t")["params"]["seed"] == 7
    (tmp_path / "seeds.yaml").write_text("params:\n  seed: {choice: [3]}\n")
    named = load_space(tmp_path / "seeds.yaml")
    assert make(named, tmp_path / "b", seed=7).suggest("t")["params"]["seed"] == 3
