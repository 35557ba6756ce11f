"""The description of a sweep's run that MLflow shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.formatting import GENERATED_WARNING, clean, number
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.tracking.mlflow_internals import VIEW

TEMPLATE = Path(__file__).with_name("description.md.jinja")


def sweep_description(sweep: SweepRecord, trials: Sequence[TrialRecord], experiment_id: str) -> str:
    """Return the description in Markdown: what was swept, its front, and how to read it."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"literal": literal, "clean": clean}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        sweep=sweep,
        num_trials=len(trials),
        front={
            trial.name: ", ".join(f"{name} {number(trial.metrics[name])}" for name in sweep.objectives)
            for trial in pareto_front(trials, sweep.objectives)
        },
        generated_warning=GENERATED_WARNING,
        students=f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}",
        metric=main_metric(sweep.objectives),
    )


def literal(text: object) -> str:
    """Return text as Markdown that MLflow shows literally; it knows no backslash before `<`, `&` and `@`."""
    escaped = re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", clean(text, 500))
    return re.sub("[<>&@]", lambda character: f"&#{ord(character[0])};", escaped)
