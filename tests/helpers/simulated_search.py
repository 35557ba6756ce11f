"""A queue of trials that is played with made-up results, in whatever order trials end."""

from __future__ import annotations

from ikd_ray.config import make_trial
from ikd_ray.records import TrialRecord
from ikd_ray.search.budget import Budget
from ikd_ray.search.sampler import SearchSettings
from ikd_ray.search.study import load_study, open_storage
from ikd_ray.search.trial_queue import TrialQueue

OBJECTIVES = {"dev/mcc": "max", "student/params": "min"}


def refuse(reason):
    raise AssertionError(reason)


def open_queue(space, folder, concurrent=2, seed=0, ended=(), trials=100, configurations=100, stop=refuse):
    folder.mkdir(exist_ok=True)
    budget = Budget(space, None if space.sampler == "grid" else configurations)
    settings = SearchSettings(OBJECTIVES, seed, concurrent)
    return TrialQueue(folder, budget, settings, dict(ended), trials, stop)


def read_study(folder):
    """Return the trials of the study on disk."""
    return load_study(folder.name, open_storage(folder)).trials


def read_states(folder):
    return [trial.state.name for trial in read_study(folder)]


def metrics_of(configuration):
    """Return metrics that depend on the parameters alone."""
    params = make_trial(configuration["params"]).params()
    score = params["temperature"] / 10 + params["student_layers"]
    return {"dev/mcc": score, "student/params": float(params["student_layers"])}


def make_records(configurations):
    """Return the records of finished trials by number, with all parameters."""
    return {
        each["number"]: TrialRecord(
            f"t{each['number']:03d}",
            each["number"],
            make_trial(each["params"]).params(),
            [],
            "finished",
            metrics=metrics_of(each),
        )
        for each in configurations
    }


def play(queue, order, most=None, slots=2, metrics=metrics_of, pause=lambda configuration: None):
    """Run trials until the queue is finished, or `most` have ended.

    Args:
        queue: the queue.
        order: `min` or `max`: whether the oldest or the newest of the running trials ends next.
        most: number of trials to end; the others stay running.
        slots: trials that run at once.
        metrics: of a configuration; None: it fails.
        pause: the pending epoch that a configuration waits for in place of ending; None: it ends.

    Returns:
        The configurations of the ended trials by number.
    """
    running, ended = {}, {}
    while not queue.is_finished and (most is None or len(ended) < most):
        configuration = queue.next() if len(running) < slots else None
        if configuration is not None:
            running[configuration["number"]] = configuration
            continue
        number = order(running)
        configuration = running.pop(number)
        if (pending := pause(configuration)) is not None:
            queue.retry(number, [], pending)
            continue
        ended[number] = configuration
        if (values := metrics(configuration)) is None:
            queue.fail(number)
        else:
            queue.finish(number, values)
    return ended
