"""Which trials are one configuration with several seeds, and which of them count."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ikd_ray.config import Trial
from ikd_ray.records import TrialRecord

SEED = "seed"
DEFAULTS = Trial().params()  # of fields that records of earlier versions lack


def configuration(params: Mapping[str, Any]) -> str:
    """The same text for parameters that agree in everything but the seed."""
    named = {name: value for name, value in (DEFAULTS | dict(params)).items() if name != SEED}
    return json.dumps(named, sort_keys=True, default=str)


def by_configuration(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """The trials of each configuration, whatever method they were run for; in the order they came."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(configuration(trial.params), []).append(trial)
    return list(groups.values())


def contenders(trials: Iterable[TrialRecord], able: Callable[[TrialRecord], bool]) -> list[list[TrialRecord]]:
    """The configurations that may be chosen, each with the trials that say what it is worth; of these one at least.

    Of a method of which some were run again, with seeds of their own, these alone: the search's own runs were picked
    because they did well, so part of what they show is luck. Of a method's configurations those alone of which no
    seed was lost or is still to come, if there are any: the seeds that are left of the others are the lucky ones.

    Args:
        trials: all that have ended.
        able: whether a trial finished, with all that is asked of it.
    """
    methods: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        methods.setdefault(trial.method, []).append(trial)
    found = []
    for own in methods.values():
        again = any(trial.retrained and able(trial) for trial in own)
        groups = by_configuration(trial for trial in own if trial.retrained == again)
        whole = [group for group in groups if all(map(able, group)) and len(by_seed(group)) >= group[0].seeds]
        found += whole or [left for group in groups if (left := list(filter(able, group)))]
    return found


def by_seed(trials: Iterable[TrialRecord]) -> dict[Any, TrialRecord]:
    """A configuration's trial of each seed. Of trials of one seed, which are the same training, the first by number."""
    found: dict[Any, TrialRecord] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        found.setdefault(trial.params.get(SEED), trial)
    return found


def have_seeds(trials: Iterable[TrialRecord]) -> bool:
    """Whether a configuration among them was run with two seeds or more."""
    return any(len(by_seed(group)) > 1 for group in by_configuration(trials))
