"""A search played to its end with made-up results, in whatever order trials end."""

from __future__ import annotations

from ray.tune.search import Searcher

from ikd_ray.config import make_trial
from ikd_ray.distill.loop import Epoch
from ikd_ray.records import TrialRecord
from ikd_ray.search.budget import Budget
from ikd_ray.sweep.results import REPORT
from ikd_ray.sweep.searcher import OrderedSearch, open_study

OBJECTIVES = {"dev/mcc": "max", "student/params": "min"}


def refuse(reason):
    raise AssertionError(reason)


def make(space, folder, concurrent=2, seed=0, ended=(), trials=100, halt=refuse):
    folder.mkdir(exist_ok=True)
    budget = Budget(space, 100 if space.sampler == "tpe" else None)
    return OrderedSearch(budget, OBJECTIVES, seed, concurrent, open_study(folder), dict(ended), trials, halt)


def record(suggestion, metrics=None):
    """Of a trial that ended, as it is on disk: with all parameters, and without metrics where it failed."""
    number, params = suggestion["number"], make_trial(suggestion["params"]).params()
    status = "failed" if metrics is None else "finished"
    return TrialRecord(f"t{number:03d}", number, params, [], status, metrics=metrics or {})


def records(suggestions):
    return {each["number"]: record(each, result(each)[REPORT].metrics) for each in suggestions}


def result(suggestion):
    """Return an outcome that depends on the parameters alone."""
    params = suggestion["params"]
    value = params["temperature"] / 10 + params["student_layers"]
    return reported({"dev/mcc": value, "student/params": params["student_layers"]})


def reported(metrics, remaining=0):
    return {REPORT: Epoch(1, remaining, 1, 1, "C", metrics)}


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
    return [suggestions[number]["params"] for number in range(total)]


def oldest(running):
    return min(running, key=lambda name: int(name.split("-")[1]))


def newest(running):
    return max(running, key=lambda name: int(name.split("-")[1]))


def play_on(search, count):
    params = []
    for i in range(count):
        suggestion = search.suggest(f"again-{i}")
        params.append(suggestion["params"])
        search.on_trial_complete(f"again-{i}", result(suggestion))
    return params


def play_all(search, finish_first, suggestions=None):
    """Until it is over; suggestions by number."""
    running, count = {}, 0
    suggestions = {} if suggestions is None else suggestions
    while True:
        given = search.suggest(f"tune-{count}") if len(running) < 2 else None
        if given == Searcher.FINISHED:
            return suggestions
        if given is not None:
            running[f"tune-{count}"] = suggestions[given["number"]] = given
            count += 1
        else:
            name = finish_first(sorted(running))
            search.on_trial_complete(name, result(running.pop(name)))
