"""Suggestions depend on the seed and on results, never on the order in which trials end."""

from __future__ import annotations

import optuna
import pytest
from filelock import FileLock
from ray.tune.search import Searcher

from ikd_ray.distill.epoch_cache import PendingEpoch
from ikd_ray.search.space import load_space
from ikd_ray.search.windowed_storage import WindowedStorage
from ikd_ray.storage import store
from ikd_ray.sweep.results import FAILED, PAUSED, REPORT, Paused
from ikd_ray.sweep.searcher import STUDY, open_study
from tests.helpers.simulated_search import (
    make,
    newest,
    oldest,
    play,
    play_on,
    record,
    records,
    reported,
    result,
)

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
    suggestions = []
    for number in range(12):
        suggestions.append(cut.suggest(f"tune-{number}"))
        if number < 11:  # the last one is running when the driver dies
            cut.on_trial_complete(f"tune-{number}", result(suggestions[-1]))
    ended = records(suggestions[:11])
    again = make(space, tmp_path / "cut", concurrent=1, ended=ended)
    assert play_on(again, 3) == whole[11:]
    states = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "cut")).trials
    assert [trial.state.name for trial in states] == ["COMPLETE"] * 14


@pytest.mark.parametrize("concurrent", [1, 2])
def test_a_study_that_was_concluded_goes_on_as_if_it_never_stopped(space, tmp_path, concurrent):
    """All results are in when it goes on, and yet suggestion n sees those of trials before n - lag alone."""
    whole = play(make(space, tmp_path / "whole", concurrent), 40, newest)
    cut = make(space, tmp_path / "cut", concurrent)
    play(cut, 25, oldest)
    ended = records({"number": number, "params": params} for number, params in enumerate(whole[:25]))
    assert play_on(make(space, tmp_path / "cut", concurrent, ended=ended), 15) == whole[25:]


def test_what_is_on_disk_is_whole_at_every_moment(space, tmp_path):
    search = make(space, tmp_path / "a")
    for number in range(4):
        params = search.suggest(f"tune-{number}")["params"]
        [*_, last] = trials = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "a")).trials
        assert len(trials) == number + 1
        assert last.state.name == "RUNNING"
        assert {"seed": 0, **last.params} == params
    search.on_trial_complete("tune-3", reported({"dev/mcc": 0.5, "student/params": 2.0}))
    trials = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "a")).trials
    assert [trial.state.name for trial in trials] == ["RUNNING"] * 3 + ["COMPLETE"]
    assert trials[3].values == [0.5, 2.0]


def test_an_interrupted_trial_runs_again_as_it_was(space, tmp_path):
    search = make(space, tmp_path / "a")
    before = [search.suggest(f"tune-{number}") for number in range(3)]
    search.on_trial_complete("tune-1", result(before[1]))
    again = make(space, tmp_path / "a", ended=records(before[1:2]))
    assert [again.suggest(f"again-{number}") for number in range(2)] == [before[0], before[2]]
    assert again.suggest("again-2")["number"] == 3


@pytest.mark.parametrize("told", [{"dev/mcc": float("nan"), "student/params": 1.0}, {"student/params": 1.0}])
def test_a_trial_without_its_objectives_failed(space, tmp_path, told):
    search = make(space, tmp_path / "a")
    search.suggest("tune-0")
    search.on_trial_complete("tune-0", reported(told))
    [trial] = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "a")).trials
    assert trial.state.name == "FAIL"


def test_the_sampler_sees_the_newest_results_and_the_front(monkeypatch):
    monkeypatch.setattr("ikd_ray.search.windowed_storage.WINDOW", 3)
    study = optuna.create_study(storage=WindowedStorage([-1, 1]), directions=["maximize", "minimize"])
    points = [(9.0, 5.0), (1.0, 1.0), (9.0, 5.0), (8.0, 6.0), (7.0, 7.0), (9.0, 4.0), (1.0, 9.0), (1.0, 9.0)]
    shown = []
    for values in points:
        study.tell(study.ask(), values)
        shown.append([trial.number for trial in study.get_trials(deepcopy=False)])
    study.ask()
    assert shown[2] == [0, 1, 2]
    assert shown[3] == [0, 1, 2, 3]  # 0 is on the front, 2 is its equal
    assert shown[4] == [0, 1, 2, 3, 4]
    assert shown[5] == [1, 3, 4, 5]  # 5 dominates 0
    assert shown[7] == [1, 5, 6, 7]
    assert [trial.number for trial in study.get_trials(deepcopy=False)] == [1, 5, 6, 7, 8]


def test_a_long_study_stays_as_quick_as_a_short_one(space, tmp_path, monkeypatch):
    """What the sampler reads for a suggestion is bounded, and numbers go on past what it no longer sees."""
    monkeypatch.setattr("ikd_ray.search.windowed_storage.WINDOW", 12)
    search = make(space, tmp_path / "a", concurrent=1)
    play(search, 60, oldest)
    seen = [trial.number for trial in search._seen[""].get_trials(deepcopy=False)]
    assert len(seen) < 60 - 12
    assert set(range(48, 60)) <= set(seen)
    assert search.suggest("next")["number"] == 60


def test_a_failure_is_on_disk_only_when_it_had_the_time_to_be_recorded(space, tmp_path):
    """A driver killed before that finds the trial still running, and runs it again as it was."""
    search = make(space, tmp_path / "a")
    first = search.suggest("tune-0")
    search.on_trial_complete("tune-0", None, error=True)
    assert make(space, tmp_path / "a").suggest("again-0") == first
    search.fail(0)
    search.suggest("tune-1")
    again = make(space, tmp_path / "a", ended={0: record(first)})
    assert [again.suggest(f"again-{number}")["number"] for number in range(2)] == [1, 2]
    [failed, *_] = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "a")).trials
    assert failed.state.name == "FAIL"


def test_a_late_early_trial_changes_nothing_past_the_window(space, tmp_path, monkeypatch):
    """What the sampler no longer sees is the oldest by number, not by when it ended."""
    monkeypatch.setattr("ikd_ray.search.windowed_storage.WINDOW", 12)
    orders = [
        play(make(space, tmp_path / name, concurrent=3), 40, order)
        for name, order in (("a", oldest), ("b", newest))
    ]
    assert orders[0] == orders[1]


def test_failed_and_unfinished_trials_are_told_apart(space, tmp_path):
    search = make(space, tmp_path / "a")
    for i in range(3):
        search.suggest(f"tune-{i}")
    search.on_trial_complete("tune-0", {FAILED: "loss became nan"})
    search.on_trial_complete("tune-1", None, error=True)
    search.fail(0)
    search.fail(1)
    search.on_trial_complete("tune-2", reported({"dev/mcc": 0.1}, remaining=3))  # stopped by the user
    states = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "a")).trials
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


def save(state):
    with store.staging_dir(state) as folder:
        (folder / "epoch.json").write_text("{}")


def waiting(tmp_path):
    """A result that says so, and the state that is waited for."""
    pending = PendingEpoch(tmp_path / "state", tmp_path / "lock")
    return {PAUSED: Paused(pending, ["a warning"])}, FileLock(pending.lock)


@pytest.mark.parametrize("reason", ["it is there", "nobody trains it any more"])
def test_a_trial_that_waits_leaves_its_place_and_comes_again(space, tmp_path, reason):
    search = make(space, tmp_path / "a", trials=4)
    given = [search.suggest(f"tune-{i}") for i in range(2)]
    waits, lock = waiting(tmp_path)
    with lock:
        search.on_trial_complete("tune-1", waits)
        assert search.suggest("tune-2")["number"] == 2, "others go on meanwhile"
        if reason == "it is there":
            save(tmp_path / "state")
            assert search.suggest("again") == given[1] | {"warnings": ["a warning"]}
    if reason != "it is there":
        assert search.suggest("again") == given[1] | {"warnings": ["a warning"]}
    assert search.suggest("tune-3")["number"] == 3
    search.on_trial_complete("again", result(given[1]))
    assert search.suggest("tune-4") is None, "all are on their way"
    study = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "a"))
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "COMPLETE", "RUNNING", "RUNNING"]


def test_the_search_is_over_when_no_trial_runs_or_waits(space, tmp_path):
    search = make(space, tmp_path / "a", trials=2)
    given = [search.suggest(f"tune-{i}") for i in range(2)]
    search.on_trial_complete("tune-0", result(given[0]))
    waits, lock = waiting(tmp_path)
    with lock:
        search.on_trial_complete("tune-1", waits)
        assert search.suggest("tune-2") is None
    assert search.suggest("tune-2")["number"] == 1
    assert search.suggest("tune-3") is None
    search.on_trial_complete("tune-2", result(given[1]))
    assert search.suggest("tune-4") == Searcher.FINISHED


def test_waiting_changes_no_suggestion(space, tmp_path):
    """Trials that wait now and then, against a search where none does."""
    plain = play(make(space, tmp_path / "plain"), 20, oldest)
    search = make(space, tmp_path / "a", trials=20)
    waits, _ = waiting(tmp_path)
    save(tmp_path / "state")
    params, running, count = {}, {}, 0
    while (suggestion := search.suggest(f"tune-{count}")) != Searcher.FINISHED:
        if suggestion is not None and len(running) < 2:
            running[f"tune-{count}"], count = suggestion, count + 1
        if len(running) == 2 or suggestion is None:
            name = newest(running)
            given = running.pop(name)
            params[given["number"]] = given["params"]
            waited = given["number"] % 3 or "warnings" in given
            search.on_trial_complete(name, result(given) if waited else waits)
    assert [params[number] for number in range(20)] == plain


def test_a_trial_whose_process_died_comes_again_or_fails_for_now(space, tmp_path):
    search = make(space, tmp_path / "a", trials=2)
    given = search.suggest("tune-0")
    search.on_trial_complete("tune-0", None, error=True)
    search.retry(0, ["a warning"])
    assert search.suggest("tune-1") == given | {"warnings": ["a warning"]}
    search.on_trial_complete("tune-1", None, error=True)
    search.fail(0, final=False)
    last = search.suggest("tune-2")
    search.on_trial_complete("tune-2", result(last))
    assert search.suggest("tune-3") == Searcher.FINISHED
    again = make(space, tmp_path / "a", trials=1, ended=records([last]))
    assert again.suggest("again-0") == given, "another run tries once more"


def test_a_trial_that_finished_before_its_process_died_is_no_failure(space, tmp_path):
    search = make(space, tmp_path / "a")
    given = search.suggest("tune-0")
    search.on_trial_complete("tune-0", None, error=True)
    search.finished(0, result(given)[REPORT].metrics)
    [trial] = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "a")).trials
    assert trial.state.name == "COMPLETE"


@pytest.mark.parametrize("damage", [None, b"not a database, but a text " * 100])
def test_a_study_that_is_gone_or_damaged_is_made_again_from_the_records(space, tmp_path, damage):
    whole = play(make(space, tmp_path / "whole", concurrent=1), 20, oldest)
    cut = make(space, tmp_path / "cut", concurrent=1)
    suggestions = []
    for number in range(16):
        suggestions.append(cut.suggest(f"tune-{number}"))
        if number < 15:
            cut.on_trial_complete(f"tune-{number}", result(suggestions[-1]))
    del cut
    (tmp_path / "cut" / "study.db").unlink()
    if damage:
        (tmp_path / "cut" / "study.db").write_bytes(damage)
    again = make(space, tmp_path / "cut", concurrent=1, ended=records(suggestions[:15]))
    assert play_on(again, 5) == whole[15:]
    states = optuna.load_study(study_name=STUDY, storage=open_study(tmp_path / "cut")).trials
    assert [trial.state.name for trial in states] == ["COMPLETE"] * 20
    assert [trial.params for trial in states] == [{k: v for k, v in p.items() if k != "seed"} for p in whole]
    assert (tmp_path / "cut" / "damaged" / "study.db").exists() == bool(damage)


def test_a_study_that_cannot_be_written_halts_the_sweep(space, tmp_path):
    reasons = []
    search = make(space, tmp_path / "a", halt=reasons.append)
    given = search.suggest("tune-0")
    (tmp_path / "a" / "study.db").write_bytes(b"")
    search.on_trial_complete("tune-0", result(given))
    assert search.suggest("tune-1") == Searcher.FINISHED
    [reason] = reasons
    assert reason.startswith("the study cannot be written: ")
