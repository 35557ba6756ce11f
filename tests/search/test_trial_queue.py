"""Suggestions depend on the seed and on results, not on the order in which trials end or on interruptions."""

from __future__ import annotations

from collections import Counter

import pytest
from filelock import FileLock

from ikd_ray.config import Trial
from ikd_ray.distill.epoch_cache import PendingEpoch
from ikd_ray.search import cost_aware, tpe, windowed_storage
from ikd_ray.search.planned_work import RELATIVE_COSTS, WHOLE_TOP_LAYER_COSTS, DataSize
from ikd_ray.search.sampler import SearchSettings
from ikd_ray.search.space_file import load_space
from ikd_ray.storage import store
from tests.helpers.sample_records import sweep_record
from tests.helpers.simulated_search import make_records, metrics_of, open_queue, play, read_states, read_study

SPACE = """
params:
  regime: {choice: [kd, pid]}
  student_layers: {int: [1, 5]}
  temperature: {float: [1, 10], log: true}
"""


@pytest.fixture(autouse=True)
def short_startup(monkeypatch):
    """Let searches model results after few trials."""
    monkeypatch.setattr(tpe, "NUM_STARTUP_TRIALS", 2)
    monkeypatch.setattr(cost_aware, "MIN_RESULTS", 2)
    for name in ("RANDOM_CANDIDATES", "MUTATED_CANDIDATES"):
        monkeypatch.setattr(cost_aware, name, 20)


@pytest.fixture(params=["cost_aware", "tpe"])
def space(load, request):
    return load(f"sampler: {request.param}{SPACE}")


def test_the_order_of_endings_changes_no_suggestion(space, tmp_path):
    queues = [open_queue(space, tmp_path / name, trials=24) for name in ("a", "b")]
    assert play(queues[0], min) == play(queues[1], max)


def test_a_slow_trial_holds_up_others_once_it_should_have_ended(load, tmp_path):
    """Trials of equal cost: by the virtual clock the first of three should have ended when the seventh starts."""
    queue = open_queue(
        load("params: {temperature: {float: [1, 10]}}"), tmp_path / "a", concurrent=3, trials=20
    )
    slow = queue.next()
    for number in range(1, 6):
        configuration = queue.next()
        assert configuration["number"] == number
        queue.finish(number, metrics_of(configuration))
    assert queue.next() is None, "the suggestion depends on the slow trial"
    queue.finish(slow["number"], metrics_of(slow))
    assert queue.next()["number"] == 6


def test_an_expensive_trial_holds_up_no_cheap_ones(load, tmp_path):
    space = load(
        "params: {regime: {choice: [kd, sid]}, student_layers: {int: [1, 5]}, epochs_per_layer: {choice: [2, 1000]}}\n"
        "start: [{regime: sid, student_layers: 5, epochs_per_layer: 1000}, {regime: kd, student_layers: 1}]\n"
    )
    queue = open_queue(space, tmp_path / "a", trials=12)
    assert queue.next()["params"]["epochs_per_layer"] == 1000
    for number in range(1, 12):
        configuration = queue.next()
        assert configuration["number"] == number
        queue.finish(number, metrics_of(configuration))


def test_a_late_result_changes_no_suggestion_past_the_window(space, tmp_path, monkeypatch):
    for module in (windowed_storage, cost_aware):
        monkeypatch.setattr(module, "WINDOW", 6)
    queues = [open_queue(space, tmp_path / name, concurrent=3, trials=34) for name in ("a", "b")]
    assert play(queues[0], min) == play(queues[1], max)


def test_the_start_comes_first_and_waits_for_nothing(load, tmp_path):
    space = load(
        SPACE + "start:\n- {regime: kd, student_layers: {int: [1, 4]}}\n- {regime: pid, temperature: 5}\n"
    )
    queue = open_queue(space, tmp_path / "a", concurrent=1, trials=12)
    first = [queue.next()["params"] for _ in range(5)]
    assert [(each["regime"], each["student_layers"], each["temperature"]) for each in first] == [
        *(("kd", layers, 2.0) for layers in (1, 2, 3, 4)),
        ("pid", 3, 5.0),
    ]
    plain = open_queue(load(SPACE), tmp_path / "b", concurrent=1, trials=12)
    assert queue.next() is None  # two results are enough to depend on them
    assert [plain.next() is None for _ in range(3)] == [False, False, True]


def test_another_seed_gives_other_suggestions(space, tmp_path):
    queues = [open_queue(space, tmp_path / str(seed), seed=seed, trials=6) for seed in (0, 1)]
    assert play(queues[0], min) != play(queues[1], min)


def test_results_guide_the_search(space, tmp_path):
    """High temperatures do well at any depth, so that later suggestions prefer them."""
    ended = play(open_queue(space, tmp_path / "a", concurrent=1, trials=40), min)
    temperatures = [ended[number]["params"]["temperature"] for number in range(40)]
    assert sum(temperatures[20:]) / 20 > sum(temperatures[:8]) / 8


@pytest.mark.parametrize(("concurrent", "study"), [(1, "kept"), (2, "kept"), (2, "deleted"), (1, "damaged")])
def test_an_interrupted_sweep_goes_on_as_if_it_had_not_been(space, tmp_path, concurrent, study):
    """All results are there when it goes on; yet suggestion n sees those of trials before n - lag alone."""
    whole = play(open_queue(space, tmp_path / "whole", concurrent, trials=16), max)
    cut = tmp_path / "cut"
    before = play(open_queue(space, cut, concurrent, trials=16), min, most=10)
    if study != "kept":
        (cut / "study.db").unlink()
    if study == "damaged":
        (cut / "study.db").write_bytes(b"not a database, but a text " * 100)
    resumed = open_queue(space, cut, concurrent, ended=make_records(before.values()), trials=6)
    assert before | play(resumed, min) == whole
    assert read_states(cut) == ["COMPLETE"] * 16
    searched = [{k: v for k, v in whole[number]["params"].items() if k != "seed"} for number in range(16)]
    assert [trial.params for trial in read_study(cut)] == searched
    assert (cut / "damaged" / "study.db").exists() == (study == "damaged")


def test_the_study_on_disk_is_complete_at_every_moment(space, tmp_path):
    queue = open_queue(space, tmp_path / "a")
    for number in range(4):
        params = queue.next()["params"]
        *_, last = trials = read_study(tmp_path / "a")
        assert (len(trials), last.state.name) == (number + 1, "RUNNING")
        assert {"seed": 0, **last.params} == params
    queue.finish(3, {"dev/mcc": 0.5, "student/params": 2.0})
    assert read_states(tmp_path / "a") == ["RUNNING"] * 3 + ["COMPLETE"]
    assert read_study(tmp_path / "a")[3].values == [0.5, 2.0]


def test_an_interrupted_trial_runs_again_as_it_was(space, tmp_path):
    queue = open_queue(space, tmp_path / "a")
    before = [queue.next() for _ in range(4)]
    queue.finish(1, metrics_of(before[1]))
    queue.release(3)  # stopped by the user; the driver of the others was killed
    assert read_states(tmp_path / "a") == ["RUNNING", "COMPLETE", "RUNNING", "RUNNING"]
    resumed = open_queue(space, tmp_path / "a", ended=make_records(before[1:2]))
    assert [resumed.next() for _ in range(3)] == [before[0], before[2], before[3]]
    for again in (before[0], before[2]):
        resumed.finish(again["number"], metrics_of(again))
    assert resumed.next()["number"] == 4


@pytest.mark.parametrize(
    "metrics", [{"dev/mcc": float("nan"), "student/params": 1.0}, {"student/params": 1.0}]
)
def test_a_trial_that_lacks_an_objective_failed(space, tmp_path, metrics):
    queue = open_queue(space, tmp_path / "a")
    queue.next()
    queue.finish(0, metrics)
    assert read_states(tmp_path / "a") == ["FAIL"]


def test_a_failure_is_final_only_once_it_is_recorded(space, tmp_path):
    """A driver that is killed before that finds the trial still running, and runs it again as it was."""
    queue = open_queue(space, tmp_path / "a")
    first = queue.next()
    assert open_queue(space, tmp_path / "a").next() == first
    queue.fail(0)
    assert read_states(tmp_path / "a") == ["FAIL"]
    queue.next()
    resumed = open_queue(space, tmp_path / "a", ended=make_records([first]))
    assert [resumed.next()["number"] for _ in range(2)] == [1, 2]
    assert read_states(tmp_path / "a")[0] == "FAIL"


def test_tpe_sees_a_bounded_part_of_a_long_study(load, tmp_path, monkeypatch):
    monkeypatch.setattr(windowed_storage, "WINDOW", 6)
    queue = open_queue(load("sampler: tpe" + SPACE), tmp_path / "a", concurrent=1)
    play(queue, min, most=30)
    [method] = queue._sampler._methods.values()
    visible = {trial.number for trial in method.search._study.get_trials(deepcopy=False)}
    assert len(visible) < 30 - 6
    assert set(range(24, 29)) <= visible
    assert len(queue._sampler.samples) == len(read_study(tmp_path / "a")) == 30


def test_settings_are_those_of_the_record():
    sweep = sweep_record(settings={"foreseen": 3, "no_share": True}, seed=4)
    sweep.data["examples"] = {"train": 100, "evaluation": 20}
    assert SearchSettings.of(sweep) == SearchSettings(sweep.objectives, 4, 3, DataSize(100, 20), shares=False)


@pytest.mark.parametrize(
    ("model_type", "costs"), [("bert", RELATIVE_COSTS), ("modernbert", WHOLE_TOP_LAYER_COSTS)]
)
def test_a_top_layer_costs_what_the_family_computes_of_it(model_type, costs):
    sweep = sweep_record()
    sweep.teacher["model_type"] = model_type
    assert SearchSettings.of(sweep).costs == costs
    one, five = (Trial(regime="kd", student_layers=layers, epochs=1) for layers in (1, 5))
    works = [SearchSettings.of(sweep).planned_work().assess(trial).cost for trial in (one, five)]
    assert works[0] / works[1] == pytest.approx({"bert": 0.1, "modernbert": 0.2}[model_type], rel=0.15)


@pytest.mark.parametrize("examples", [None, 5, {}, {"train": 3}, {"train": "x", "evaluation": []}])
def test_damaged_settings_have_their_defaults(examples):
    sweep = sweep_record(settings={"foreseen": "many"})
    sweep.data["examples"] = examples
    assert SearchSettings.of(sweep) == SearchSettings(sweep.objectives, sweep.seed)


def test_a_grid_is_run_in_its_order(load, tmp_path):
    grid = load("sampler: grid\nparams:\n  regime: {choice: [hard, kd]}\n  student_layers: {int: [1, 2]}\n")
    queue = open_queue(grid, tmp_path / "a")
    assert [queue.next()["params"] for _ in range(4)] == [{"seed": 0, **row} for row in grid.grid()]


def test_trials_have_the_seed_of_the_sweep_unless_the_space_names_one(space, load, tmp_path):
    assert open_queue(space, tmp_path / "a", seed=7).next()["params"]["seed"] == 7
    named = load("params:\n  seed: {choice: [3]}\n")
    assert open_queue(named, tmp_path / "b", seed=7).next()["params"]["seed"] == 3


@pytest.fixture
def pending(tmp_path):
    return PendingEpoch(tmp_path / "state", tmp_path / "lock")


def save_epoch(folder):
    with store.staging_dir(folder) as staging:
        (staging / "epoch.json").write_text("{}")


@pytest.mark.parametrize("reason", ["the epoch is saved", "nobody trains it any more"])
def test_a_paused_trial_leaves_its_slot_and_runs_again(space, tmp_path, pending, reason):
    queue = open_queue(space, tmp_path / "a", trials=4)
    given = [queue.next() for _ in range(2)]
    with FileLock(pending.lock):
        queue.retry(1, ["a warning"], pending)
        assert queue.next()["number"] == 2, "others go on meanwhile"
        if reason == "the epoch is saved":
            save_epoch(tmp_path / "state")
            assert queue.next() == given[1] | {"warnings": ["a warning"]}
    if reason != "the epoch is saved":
        assert queue.next() == given[1] | {"warnings": ["a warning"]}
    assert queue.next()["number"] == 3
    queue.finish(1, metrics_of(given[1]))
    assert queue.next() is None, "all are running"
    assert read_states(tmp_path / "a") == ["RUNNING", "COMPLETE", "RUNNING", "RUNNING"]


def test_the_queue_is_finished_when_no_trial_runs_or_waits(space, tmp_path, pending):
    queue = open_queue(space, tmp_path / "a", trials=2)
    given = [queue.next() for _ in range(2)]
    queue.finish(0, metrics_of(given[0]))
    with FileLock(pending.lock):
        queue.retry(1, [], pending)
        assert queue.next() is None
        assert not queue.is_finished
    assert queue.next()["number"] == 1
    assert queue.next() is None
    queue.finish(1, metrics_of(given[1]))
    assert queue.is_finished


@pytest.mark.parametrize("seed", [0, 5])
def test_shared_epochs_count_with_any_seed(load, tmp_path, seed):
    """The learning rate is continuous: without known beginnings no two trials would have the same."""
    space = load(
        "params: {regime: sid, student_layers: 4, lambda: {float: [0.01, 1]}, learning_rate: {float: [1.0e-4, 2.0e-4]}}"
    )
    given = play(open_queue(space, tmp_path / "a", concurrent=1, seed=seed, trials=16), min)
    assert len({each["params"]["learning_rate"] for each in given.values()}) < 14


def test_pauses_change_no_suggestion(space, tmp_path, pending):
    """Every third trial pauses once, in a queue that is compared with one where none does."""
    plain = play(open_queue(space, tmp_path / "plain", trials=20), min)
    save_epoch(tmp_path / "state")

    def pause(given):
        return pending if given["number"] % 3 == 0 and "warnings" not in given else None

    paused = play(open_queue(space, tmp_path / "a", trials=20), max, pause=pause)
    assert sum("warnings" in given for given in paused.values()) == 7
    assert [paused[number]["params"] for number in range(20)] == [
        plain[number]["params"] for number in range(20)
    ]


def test_a_trial_whose_process_died_runs_again_or_fails_for_now(space, tmp_path):
    queue = open_queue(space, tmp_path / "a", trials=2)
    given = queue.next()
    queue.retry(0, ["a warning"])
    assert queue.next() == given | {"warnings": ["a warning"]}
    queue.fail(0, final=False)
    last = queue.next()
    queue.finish(1, metrics_of(last))
    assert queue.is_finished
    resumed = open_queue(space, tmp_path / "a", trials=1, ended=make_records([last]))
    assert resumed.next() == given, "a later run tries again"


def test_a_study_that_cannot_be_written_stops_the_sweep(space, tmp_path):
    reasons = []
    queue = open_queue(space, tmp_path / "a", stop=reasons.append)
    given = queue.next()
    (tmp_path / "a" / "study.db").write_bytes(b"")
    queue.finish(0, metrics_of(given))
    assert queue.is_finished
    assert queue.next() is None
    [reason] = reasons
    assert reason.startswith("the study cannot be written: ")


# Methods that are compared: 5 configurations of each of 3 methods with 2 seeds, and 3 times the best of each.

COMPARED = """
methods:
  hard labels: {regime: hard}
  KD: {regime: kd}
  SID: {regime: sid, soft_labels: always}
seeds: 2
best_seeds: 3
params:
  student_layers: {int: [1, 2]}
  temperature: {float: [1, 10], log: true}
"""
SEARCHED, TOTAL = 30, 39


@pytest.fixture
def compared(load):
    return load(COMPARED)


def compare(space, folder, ended=(), trials=TOTAL, configurations=5):
    return open_queue(space, folder, ended=ended, trials=trials, configurations=configurations)


@pytest.fixture(scope="module")
def whole_comparison(tmp_path_factory):
    """Run a comparison without interruption; return its configurations by number."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "space.yaml").write_text(COMPARED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_aware, "MIN_RESULTS", 2)
        for name in ("RANDOM_CANDIDATES", "MUTATED_CANDIDATES"):
            patch.setattr(cost_aware, name, 20)
        return play(compare(load_space(folder / "space.yaml"), folder / "sweep"), min)


def of_method(configurations, method, retrained=False):
    """Return the parameters of a method's trials by number."""
    return {
        number: each["params"]
        for number, each in configurations.items()
        if (each["method"], each["retrained"]) == (method, retrained)
    }


def test_every_method_has_as_many_trials(compared, whole_comparison):
    given = whole_comparison
    assert sorted(given) == list(range(TOTAL))
    counts = Counter(given[number]["method"] for number in range(SEARCHED))
    assert counts == dict.fromkeys(compared.methods, 10)
    for each in given.values():
        assert each["params"].items() >= compared.methods[each["method"]].items()
    for first in range(0, SEARCHED, 2):
        one, two = given[first]["params"], given[first + 1]["params"]
        assert (one["seed"], two["seed"]) == (0, 1)
        assert one | {"seed": 1} == two, "a configuration's seeds differ in nothing else"


def test_the_best_configuration_of_each_method_is_retrained_with_further_seeds(compared, tmp_path):
    given = play(compare(compared, tmp_path / "a"), max)
    assert {each["seeds"] for each in given.values() if not each["retrained"]} == {2}
    assert {each["seeds"] for each in given.values() if each["retrained"]} == {3}
    for method in compared.methods:
        own = of_method(given, method)
        best = max(own, key=lambda number: (metrics_of(given[number])["dev/mcc"], -number))
        retrained = of_method(given, method, retrained=True)
        expected = [own[best] | {"seed": seed} for seed in (2, 3, 4)]
        assert [retrained[number] for number in sorted(retrained)] == expected
        assert min(retrained) >= SEARCHED


def test_results_of_another_method_change_no_suggestion(compared, whole_comparison, tmp_path):
    def bad_except_kd(each):
        bad = {"dev/mcc": -float(each["number"]), "student/params": float(each["number"])}
        return metrics_of(each) if each["method"] == "KD" else bad

    other = play(compare(compared, tmp_path / "b"), min, metrics=bad_except_kd)
    assert of_method(other, "KD") == of_method(whole_comparison, "KD")
    assert of_method(other, "SID") != of_method(whole_comparison, "SID")


@pytest.mark.parametrize(
    ("most", "study"), [(3, "kept"), (17, "kept"), (17, "deleted"), (31, "deleted"), (34, "kept")]
)
def test_an_interrupted_comparison_goes_on_as_if_it_had_not_been(
    compared, whole_comparison, tmp_path, most, study
):
    before = play(compare(compared, tmp_path / "cut"), min, most=most)
    if study == "deleted":
        (tmp_path / "cut" / "study.db").unlink()
    resumed = compare(compared, tmp_path / "cut", make_records(before.values()), TOTAL - most)
    assert before | play(resumed, max) == whole_comparison
    assert read_states(tmp_path / "cut") == ["COMPLETE"] * TOTAL
    assert {trial.params["method"] for trial in read_study(tmp_path / "cut")} == set(compared.methods)


def test_the_first_configuration_of_a_method_that_always_fails_is_retrained(compared, tmp_path):
    given = play(
        compare(compared, tmp_path / "a"),
        min,
        metrics=lambda each: None if each["method"] == "KD" else metrics_of(each),
    )
    retrained = of_method(given, "KD", retrained=True)
    assert retrained[SEARCHED + 1] == given[2]["params"] | {"seed": 2}


def test_a_configuration_that_is_being_retrained_stays_the_best(compared, tmp_path):
    """A trial whose process died could not be chosen; a later run trains it, and it does better."""
    queue, ended = compare(compared, tmp_path / "a"), {}
    for number in range(SEARCHED + 1):
        ended[number] = queue.next()
        if number == 2:  # of KD
            queue.fail(2, final=False)
        else:
            queue.finish(number, metrics_of(ended[number]))
    begun = queue.next()
    assert (begun["method"], begun["retrained"]) == ("KD", True)
    records = make_records(each for number, each in ended.items() if number != 2)
    rest = play(
        compare(compared, tmp_path / "a", records, TOTAL - len(records)),
        min,
        metrics=lambda each: (
            {"dev/mcc": 99.0, "student/params": 1.0} if each["number"] == 2 else metrics_of(each)
        ),
    )
    retrained = of_method(rest, "KD", retrained=True)
    assert [params | {"seed": 0} for params in retrained.values()] == [begun["params"] | {"seed": 0}] * 3


def test_a_shortened_comparison_ignores_trials_begun_beyond_its_new_end(load, tmp_path, monkeypatch):
    monkeypatch.setattr(cost_aware, "MIN_RESULTS", 10)  # none waits for results
    space = load(COMPARED.replace("best_seeds: 3\n", ""))
    queue = compare(space, tmp_path / "a", configurations=4)
    given = [queue.next() for _ in range(20)]
    ended = make_records(given[number] for number in (*range(10), 19))
    shorter = compare(space, tmp_path / "a", ended, trials=2, configurations=2)
    assert [shorter.next()["number"] for _ in range(2)] == [10, 11]
