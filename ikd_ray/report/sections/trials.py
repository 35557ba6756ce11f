"""The table of all trials."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ikd_ray.analysis.objectives import LATENCY, SIZE
from ikd_ray.analysis.sweep_analysis import AGREEMENT, ATTENTION_KL, SweepAnalysis, used_params
from ikd_ray.formatting import MAX_REASON_CHARS, MISSING, clean, number, plural
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Section, Table, format_number, format_size, trial_title

MAX_FAILURES = 10
UNITS = {SIZE: ("params (M)", 1e6), "student/size_mb": ("size (MB)", 1.0), LATENCY: ("latency (ms)", 1.0)}


def trials_section(analysis: SweepAnalysis) -> Section:
    """Return the section with a row for each ended trial, the best first, and the reasons of those that failed."""
    sign = 1 if analysis.direction(analysis.metric) == "min" else -1

    finished = {trial.id for trial in analysis.finished}

    def rank(trial: TrialRecord) -> tuple[bool, float]:
        value = trial.metrics.get(analysis.metric, math.nan)
        return (trial.id not in finished, sign * value if math.isfinite(value) else math.inf)

    trials = sorted(analysis.trials, key=rank)
    columns = _columns(analysis)
    header = ["trial", "state", "regime", "layers", *(heading for heading, _ in columns.values())]
    header += [clean(name) for name in analysis.varied_params]
    header += ["epochs", "time (s)"]
    rows = [_row(analysis, trial, columns) for trial in trials]
    caption = (
        f"{plural(len(trials), 'trial')}, the best first; a click on a heading sorts by it. A parameter that a trial's "
        "regime does not use is left empty."
    )
    table = Table(
        caption, header, [("", rows)], sortable=True, row_ids=[f"trial-{trial.number}" for trial in trials]
    )
    return Section("trials", "All trials", _failures(analysis), [table])


def _columns(analysis: SweepAnalysis) -> dict[str, tuple[str, float]]:
    """Return heading and unit of the metrics that any finished trial has."""
    names = [analysis.selection_metric, analysis.metric, *(f"dev/{name}" for name in analysis.task.metrics)]
    columns = {name: (clean(name), 1.0) for name in dict.fromkeys(names)} | UNITS
    columns |= {ATTENTION_KL: ("attention KL (nats)", 1.0), AGREEMENT: ("agrees with teacher", 1.0)}
    if analysis.task.is_regression:
        columns |= {"dev/rmse": ("RMSE", 1.0), "dev/mae": ("MAE", 1.0)}
    else:
        columns |= {"dev/nll": ("nll", 1.0), "dev/teacher_kl": ("KL from teacher", 1.0)}
    known = {name for trial in analysis.finished for name in trial.metrics}
    return {name: column for name, column in columns.items() if name in known}


def _row(analysis: SweepAnalysis, trial: TrialRecord, columns: Mapping[str, tuple[str, float]]) -> list[str]:
    found, regime = analysis.recommendation, trial.params["regime"]
    state = "" if trial.status == "finished" else "failed"
    if trial in analysis.front:
        state = "recommended" if found and found.trial.id == trial.id else "front"

    params = used_params(trial)

    def cell(name: str, unit: float) -> str:
        value = trial.metrics.get(name, math.nan) / unit
        return format_size(value) if name in UNITS else format_number(value)

    def param(name: str) -> str:
        value = params.get(name)
        if value is None:
            return ""
        return number(value) if isinstance(value, float) else clean(value, 40)

    return [
        clean(trial.id),
        state,
        regime,
        str(len(trial.layer_map)),
        *(cell(name, unit) for name, (_, unit) in columns.items()),
        *(param(name) for name in analysis.varied_params),
        str(len(trial.history)),
        f"{trial.duration_s:,.0f}" if trial.duration_s else MISSING,
    ]


def _failures(analysis: SweepAnalysis) -> list[str]:
    failed = [trial for trial in analysis.trials if trial.status != "finished"]
    lines = [
        f"{trial_title(trial)} failed: {clean(trial.reason, MAX_REASON_CHARS) or 'no reason is recorded'}"
        for trial in failed[:MAX_FAILURES]
    ]
    if len(failed) > MAX_FAILURES:
        lines.append(f"{len(failed) - MAX_FAILURES} further trials failed; trials.csv has their reasons.")
    return lines
