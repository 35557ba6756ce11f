"""The files that sum up a sweep: pareto.json, pareto.png and trials.csv."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ikd_ray.analysis.pareto import Candidate, front_candidates, pareto_content, trials_csv
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.storage import store

PLOT, FRONT, TABLE = SUMMARY_FILES = ("pareto.png", "pareto.json", "trials.csv")


def write_summary_files(folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Write the files, each atomically, and return the front. Without a front there is only trials.csv."""
    members = front_candidates(trials, sweep.objectives)
    for name, text in _texts(sweep, trials, members).items():
        store.write_atomic(folder / name, text)
    front = [trial for trial, _ in members]
    if front:
        from ikd_ray.report.front_plot import pareto_png  # imported late: matplotlib takes a while to import

        store.write_atomic(folder / PLOT, pareto_png(sweep, trials, front))
    return front


def stale_summary_files(folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """Return the names of those files that are missing, or differ from the records."""
    if not trials:
        return []
    members = front_candidates(trials, sweep.objectives)
    stale = [name for name, text in _texts(sweep, trials, members).items() if _read(folder / name) != text]
    return stale + [PLOT] * bool(members and not (folder / PLOT).is_file())


def _texts(sweep: SweepRecord, trials: Sequence[TrialRecord], members: Sequence[Candidate]) -> dict[str, str]:
    texts = {TABLE: trials_csv(trials, [trial for trial, _ in members])}
    if members:
        texts[FRONT] = json.dumps(pareto_content(sweep, members), indent=1) + "\n"
    return texts


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
