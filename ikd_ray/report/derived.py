"""Files of a sweep that follow from its records: the front, its plot and the table of trials."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ikd_ray.data import store
from ikd_ray.report.pareto import front, front_values, pareto_content, trials_csv
from ikd_ray.report.records import SweepRecord, TrialRecord

PLOT, FRONT, TABLE = DERIVED = ("pareto.png", "pareto.json", "trials.csv")


def write_derived(folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Write them, each replaced at once; returns the front."""
    best = front(trials, sweep.objectives)
    for name, text in _texts(sweep, trials, best).items():
        store.replace(folder / name, text)
    if best:
        from ikd_ray.report.plots import pareto_png  # imported late: until here nobody waits for matplotlib

        store.replace(folder / PLOT, pareto_png(sweep, trials, best))
    return best


def stale(folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """Which of them are not there, or not what the records say."""
    if not trials:
        return []
    best = front(trials, sweep.objectives)
    found = [name for name, text in _texts(sweep, trials, best).items() if _read(folder / name) != text]
    return found + [PLOT] * bool(best and not (folder / PLOT).is_file())


def _texts(sweep: SweepRecord, trials: Sequence[TrialRecord], best: list[TrialRecord]) -> dict[str, str]:
    texts = {TABLE: trials_csv(trials, best)}
    if best:
        texts[FRONT] = (
            json.dumps(pareto_content(sweep, front_values(trials, sweep.objectives)), indent=1) + "\n"
        )
    return texts


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
