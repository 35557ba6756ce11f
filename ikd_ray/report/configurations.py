"""Which trials are one configuration with several seeds, and which of them count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ikd_ray.report.records import TrialRecord

SEED = "seed"


def configuration(params: Mapping[str, Any]) -> str:
    """The same text for parameters that agree in everything but the seed."""
    return json.dumps(
        {name: value for name, value in params.items() if name != SEED}, sort_keys=True, default=str
    )


def by_configuration(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """The trials of each configuration, whatever method they were run for; in the order they came."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(configuration(trial.params), []).append(trial)
    return list(groups.values())


def counted(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials of a method, or of all, that say what configurations are worth.

    Where some were run again, with seeds of their own, these alone: the search's own runs were picked because they
    did well, so part of what they show is luck.
    """
    return [trial for trial in trials if trial.again] or list(trials)


def by_seed(trials: Iterable[TrialRecord]) -> dict[Any, TrialRecord]:
    """A configuration's trial of each seed. Of trials of one seed, which are the same training, the first by number."""
    found: dict[Any, TrialRecord] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        found.setdefault(trial.params.get(SEED), trial)
    return found


def have_seeds(trials: Iterable[TrialRecord]) -> bool:
    """Whether a configuration among them was run with two seeds or more."""
    return any(len(by_seed(group)) > 1 for group in by_configuration(trials))
