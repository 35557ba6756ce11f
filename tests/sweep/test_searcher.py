"""The adapter between Ray Tune and the queue of trials."""

from __future__ import annotations

import pytest
from filelock import FileLock
from ray.tune.search import Searcher

from ikd_ray.distill.epoch_cache import PendingEpoch
from ikd_ray.distill.loop import Epoch
from ikd_ray.sweep.searcher import QueueSearcher
from ikd_ray.sweep.trial_results import FAILED, PAUSED, REPORT, STOPPED, Paused
from tests.helpers.simulated_search import open_queue, read_states

METRICS = {"dev/mcc": 0.5, "student/params": 2.0}


@pytest.fixture
def queue(load, tmp_path):
    return open_queue(load("params:\n  temperature: {float: [1, 10]}\n"), tmp_path / "a", trials=2)


@pytest.fixture
def searcher(queue):
    return QueueSearcher(queue)


def epoch(remaining):
    return {REPORT: Epoch(1, remaining, 1, 1, "C", METRICS)}


def test_the_last_epoch_finishes_a_trial_and_the_last_trial_the_search(searcher, tmp_path):
    assert [searcher.suggest(f"tune-{number}")["number"] for number in range(2)] == [0, 1]
    assert searcher.suggest("tune-2") is None, "it waits for those that run"
    for number in range(2):
        searcher.on_trial_complete(f"tune-{number}", epoch(remaining=0))
    assert searcher.suggest("tune-2") == Searcher.FINISHED
    assert read_states(tmp_path / "a") == ["COMPLETE"] * 2


@pytest.mark.parametrize("ending", [({FAILED: "loss became nan"}, False), (None, True)])
def test_the_callback_decides_on_failures(searcher, queue, tmp_path, ending):
    given = searcher.suggest("tune-0")
    searcher.on_trial_complete("tune-0", *ending)
    queue.retry(0, ["a warning"])
    assert searcher.suggest("tune-1") == given | {"warnings": ["a warning"]}
    searcher.on_trial_complete("tune-1", *ending)
    queue.fail(0)
    assert read_states(tmp_path / "a") == ["FAIL"]


def test_a_trial_that_finished_before_its_process_died_is_no_failure(searcher, queue, tmp_path):
    searcher.suggest("tune-0")
    searcher.on_trial_complete("tune-0", None, error=True)
    queue.finish(0, METRICS)
    assert read_states(tmp_path / "a") == ["COMPLETE"]


def test_a_paused_trial_is_suggested_again_when_its_epoch_is_there(searcher, tmp_path):
    given = searcher.suggest("tune-0")
    pending = PendingEpoch(tmp_path / "state", tmp_path / "lock")
    with FileLock(pending.lock):
        searcher.on_trial_complete("tune-0", {PAUSED: Paused(pending, ["a warning"])})
        assert searcher.suggest("tune-1")["number"] == 1
        assert searcher.suggest("tune-2") is None
    assert searcher.suggest("tune-2") == given | {"warnings": ["a warning"]}


@pytest.mark.parametrize("result", [epoch(remaining=3), {STOPPED: "no space left"}, None])
def test_a_trial_that_was_stopped_before_its_end_stays_open(searcher, tmp_path, result):
    searcher.suggest("tune-0")
    searcher.on_trial_complete("tune-0", result)
    assert read_states(tmp_path / "a") == ["RUNNING"]
