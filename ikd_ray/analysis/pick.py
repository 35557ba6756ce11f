"""Which students of a sweep are meant: its front, or what `--pick` says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ikd_ray.analysis.objectives import SELECTION_SPLITS, direction, main_metric
from ikd_ray.analysis.pareto import candidates, pareto_front
from ikd_ray.errors import UsageError
from ikd_ray.records import SweepRecord, TrialRecord

BEST, SMALLEST = "best", "smallest-within"
SIZE = "student/params"
RIGHT = f"give {BEST}, {SMALLEST} 0.02 or a finished trial's id (--list shows the front's)"
ROUNDING = 1e-9  # 0.30 and 0.28 are 0.02 apart


@dataclass(frozen=True)
class Pick:
    """One student: that of the trial `id`, or the smallest one within `within` of the best (0: the best)."""

    id: str | None = None
    within: float = 0.0


def parse_pick(given: Sequence[str]) -> Pick:
    """What the command line says: `best`, `smallest-within 0.02` (in one word or two, or with a `=`), or a trial's id.

    Raises:
        UsageError: it is none of these.
    """
    words = " ".join(given).replace(f"{SMALLEST}=", f"{SMALLEST} ", 1).split()
    if words[:1] == [SMALLEST]:
        return Pick(within=_amount(words[1:]))
    if len(words) != 1:
        raise UsageError(f"--pick {' '.join(words)!r}: {RIGHT}")
    return Pick() if words == [BEST] else Pick(words[0])


def _amount(words: Sequence[str]) -> float:
    try:
        (word,) = words
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        given = f" (got {' '.join(words)!r})" if words else ""
        raise UsageError(
            f"--pick {SMALLEST}: needs a number of at least 0, in the metric's units, e.g. 0.02{given}"
        )
    return value


def select_students(
    sweep: SweepRecord, trials: Sequence[TrialRecord], pick: Pick | None
) -> list[TrialRecord]:
    """The front, or the one student picked, which may be any finished trial's.

    `best` and `smallest-within` look at all finished trials and go by the first objective on the split that
    selects (dev, or the training set's held-out part); of a configuration with several seeds by their mean, and at the
    student that is nearest to it, as `pareto_front` does. Of students of equal size the better one is taken, of those
    equal in both the one suggested first.

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
    return [_by_id(sweep, trials, pick.id) if pick.id is not None else _smallest(sweep, trials, pick.within)]


def _by_id(sweep: SweepRecord, trials: Sequence[TrialRecord], id: str) -> TrialRecord:
    trial = next((trial for trial in trials if trial.id == id), None)
    if trial is None:
        raise UsageError(f"--pick {id!r}: sweep {sweep.name} has no such trial; {RIGHT}")
    if trial.status != "finished":
        raise UsageError(f"--pick {id}: that trial has failed and left no student; {RIGHT}")
    return trial


def _smallest(sweep: SweepRecord, trials: Sequence[TrialRecord], within: float) -> TrialRecord:
    metric = main_metric(sweep.objectives)
    if not metric.startswith(SELECTION_SPLITS):
        raise UsageError(
            f"--pick: sweep {sweep.name} has no objective on the dev split or a held-out one to compare students by "
            f"({', '.join(sweep.objectives)}); give a trial's id"
        )
    sign = 1 if direction(metric, sweep.objectives) == "min" else -1
    found = candidates(trials, {metric: sweep.objectives[metric]})
    costs = {trial.id: sign * values[metric] for trial, values in found}
    if not costs:
        raise UsageError(f"{sweep.name}: no finished trial with a finite {metric} to pick from")
    limit = min(costs.values()) + within + ROUNDING
    near = [trial for trial in trials if costs.get(trial.id, math.inf) <= limit]
    return min(near, key=lambda trial: (trial.metrics.get(SIZE, math.inf), costs[trial.id], trial.number))
