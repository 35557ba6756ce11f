"""Files of a sweep that follow from its records: the front, its plot and the table of trials."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ikd_ray.analysis.pareto import Members, front_candidates, pareto_content, trials_csv
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.storage import store

PLOT, FRONT, TABLE = SUMMARY_FILES = ("pareto.png", "pareto.json", "trials.csv")


def write_summary_files(folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Write them, each replaced at once; returns the front."""
    members = front_candidates(trials, sweep.objectives)
    for name, text in _texts(sweep, trials, members).items():
        store.write_atomic(folder / name, text)
    best = [trial for trial, _ in members]
    if best:
        from ikd_ray.report.front_plot import (
            pareto_png,  # imported late: until here nobody waits for matplotlib
        )

        store.write_atomic(folder / PLOT, pareto_png(sweep, trials, best))
    return best


def stale(folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """Which of them are not there, or not what the records say."""
    if not trials:
        return []
    members = front_candidates(trials, sweep.objectives)
    found = [name for name, text in _texts(sweep, trials, members).items() if _read(folder / name) != text]
    return found + [PLOT] * bool(members and not (folder / PLOT).is_file())


def _texts(sweep: SweepRecord, trials: Sequence[TrialRecord], members: Members) -> dict[str, str]:
    texts = {TABLE: trials_csv(trials, [trial for trial, _ in members])}
    if members:
        texts[FRONT] = json.dumps(pareto_content(sweep, members), indent=1) + "\n"
    return texts


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
