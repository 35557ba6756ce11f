"""The students that `--pick` selects; without it, the Pareto front."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ikd_ray.analysis.objectives import LATENCY, SELECTION_SPLITS, SIZE, direction, main_metric
from ikd_ray.analysis.pareto import candidates, pareto_front
from ikd_ray.analysis.recommendation import recommend
from ikd_ray.errors import UsageError
from ikd_ray.records import SweepRecord, TrialRecord

BEST, RECOMMENDED = "best", "recommended"
LEAST = {"smallest-within": SIZE, "fastest-within": LATENCY}
"""Rules that take the student with the least of a metric, of those within a distance of the best one."""
_RULES = ", ".join(f"{rule} 0.02" for rule in LEAST)
ADVICE = f"give {BEST}, {RECOMMENDED}, {_RULES} or a finished trial's id (--list shows the front's)"
ROUNDING = 1e-9  # 0.30 and 0.28 are 0.02 apart


@dataclass(frozen=True)
class Pick:
    """One student: that of the trial `id`, `RECOMMENDED`, or the least one `by` a metric within some of the best."""

    id: str | None = None
    within: float = 0.0
    by: str = SIZE


def parse_pick(words: Sequence[str]) -> Pick:
    """Parse the words after `--pick`: `best`, `recommended`, a rule such as `smallest-within 0.02`, or a trial's id.

    A rule and its number are one word or two, or have a `=` between them.

    Raises:
        UsageError: they are none of these.
    """
    parts = re.sub(rf"^({'|'.join(LEAST)})=", r"\1 ", " ".join(words)).split()
    if parts and parts[0] in LEAST:
        return Pick(within=_parse_tolerance(*parts), by=LEAST[parts[0]])
    if len(parts) != 1:
        raise UsageError(f"--pick {' '.join(parts)!r}: {ADVICE}")
    return Pick() if parts == [BEST] else Pick(parts[0])


def _parse_tolerance(rule: str, *words: str) -> float:
    try:
        (word,) = words
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        given = f" (got {' '.join(words)!r})" if words else ""
        raise UsageError(
            f"--pick {rule}: needs a number of at least 0, in the metric's units, e.g. 0.02{given}"
        )
    return value


def select_students(
    sweep: SweepRecord, trials: Sequence[TrialRecord], pick: Pick | None
) -> list[TrialRecord]:
    """Return the Pareto front, or the one student picked, which may be any finished trial's.

    `best` and the rules of `LEAST` compare all finished trials by the main metric, as `pareto_front` does: a
    configuration with several seeds by its mean. Of students of equal size (or latency) the better one is taken, of
    those equal in both the one suggested first.

    Raises:
        UsageError: there is no such student.
    """
    if pick is None:
        members = pareto_front(trials, sweep.objectives)
        if not members:
            raise UsageError(
                f"{sweep.name}: no finished trial to export, or none whose objectives are finite"
            )
        return members
    if pick.id == RECOMMENDED:
        found = recommend(sweep, trials)
        if found is None:
            raise UsageError(
                f"--pick {RECOMMENDED}: no student of {sweep.name} has a metric on dev or holdout; {ADVICE}"
            )
        return [found.trial]
    if pick.id is not None:
        return [_find_trial(sweep, trials, pick.id)]
    return [_least_within(sweep, trials, pick)]


def _find_trial(sweep: SweepRecord, trials: Sequence[TrialRecord], id: str) -> TrialRecord:
    trial = next((trial for trial in trials if trial.id == id), None)
    if trial is None:
        raise UsageError(f"--pick {id!r}: no trial of sweep {sweep.name} has this id; {ADVICE}")
    if trial.status != "finished":
        raise UsageError(f"--pick {id}: that trial has failed and left no student; {ADVICE}")
    return trial


def _least_within(sweep: SweepRecord, trials: Sequence[TrialRecord], pick: Pick) -> TrialRecord:
    metric = main_metric(sweep.objectives)
    if not metric.startswith(SELECTION_SPLITS):
        raise UsageError(
            f"--pick: sweep {sweep.name} has no objective on the dev split or a held-out one to compare students by "
            f"({', '.join(sweep.objectives)}); give a trial's id"
        )
    sign = 1 if direction(metric, sweep.objectives) == "min" else -1
    compared = candidates(trials, {metric: sweep.objectives[metric]})
    costs = {trial.id: sign * values[metric] for trial, values in compared}
    if not costs:
        raise UsageError(f"{sweep.name}: no finished trial with a finite {metric} to pick from")
    limit = min(costs.values()) + pick.within + ROUNDING
    near = [trial for trial in trials if costs.get(trial.id, math.inf) <= limit]
    return min(near, key=lambda trial: (trial.metrics.get(pick.by, math.inf), costs[trial.id], trial.number))
