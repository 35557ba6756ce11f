"""The adapter between Ray Tune and the queue of trials."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from ikd_ray.sweep.searcher import LiveTrialScheduler, QueueSearcher
from tests.helpers.simulated_search import open_queue

METRICS = {"dev/mcc": 0.5, "student/params": 2.0}


def test_the_last_trial_of_the_queue_ends_the_search(load, tmp_path):
    queue = open_queue(load("params:\n  temperature: {float: [1, 10]}\n"), tmp_path / "a", trials=2)
    searcher = QueueSearcher(queue)
    assert [searcher.suggest(f"tune-{number}")["number"] for number in range(2)] == [0, 1]
    assert searcher.suggest("tune-2") is None, "it waits for those that run"
    for number in range(2):
        searcher.on_trial_complete(f"tune-{number}", {"the callback": "gets it too"})
        queue.finish(number, METRICS)
    assert searcher.suggest("tune-2") == Searcher.FINISHED


class CountedTrial(SimpleNamespace):
    """A trial of Tune that counts how often its status is read."""

    reads = 0
    __hash__ = object.__hash__

    @property
    def status(self):
        CountedTrial.reads += 1
        return self.state


@pytest.fixture
def scheduler():
    return LiveTrialScheduler()


def test_trials_start_in_their_order(scheduler):
    trials = [
        CountedTrial(state=state) for state in (Trial.RUNNING, Trial.PAUSED, Trial.PENDING, Trial.PENDING)
    ]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    assert scheduler.choose_trial_to_run(None) is trials[2]
    scheduler.on_trial_error(None, trials[2])
    scheduler.on_trial_add(None, trials[2])  # its process died: it runs again
    assert scheduler.choose_trial_to_run(None) is trials[3]
    scheduler.on_trial_remove(None, trials[3])
    trials[2].state = Trial.RUNNING
    assert scheduler.choose_trial_to_run(None) is trials[1]
    scheduler.on_trial_complete(None, trials[1], {})
    assert scheduler.choose_trial_to_run(None) is None


def test_no_event_reads_a_trial_that_has_ended(scheduler):
    """Otherwise each of them takes longer, the more trials there are."""
    for _ in range(100):
        trial = CountedTrial(state=Trial.TERMINATED)
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_complete(None, trial, {})
    CountedTrial.reads = 0
    scheduler.choose_trial_to_run(None)
    assert CountedTrial.reads == 0
