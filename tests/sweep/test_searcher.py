"""The adapter between Ray Tune and the queue of trials."""

from __future__ import annotations

from ray.tune.search import Searcher

from ikd_ray.sweep.searcher import QueueSearcher
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
