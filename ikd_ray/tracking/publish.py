"""Publish a sweep's results in MLflow: its description, its front with models, its report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.errors import UsageError
from ikd_ray.formatting import GENERATED_WARNING, clean
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.redaction import redact_uri
from ikd_ray.tracking import models
from ikd_ray.tracking.mlflow_internals import NOTE, VIEW
from ikd_ray.tracking.tracker import FRONT, TRIAL, Tracker

HOW_TO_READ = """\
#### How to read this

- [The table of students]({students}) (*Views > Students*) has every trial, the best `{metric}` first; `ikd.front` says
  which are on the Pareto front. Runs are named `regime-layers-trial`: sorted by name they group.
- [Their curves]({students}&compareRunsMode=CHART): `dev/layer_1/kl` ... are each layer's attention KL (nats, mean over
  heads) and `dev/layer_1/cos` its 1 - cos² of the [CLS] vectors, after every epoch; `stage` counts the regime's stages.
  What a stage does not train has no `train/` value there. Choose two trials and *Compare* to see all that differs.
- `student/params` counts all parameters, `student/encoder_params` those without embeddings; `student/latency_ms` is one
  sequence of 128 tokens on one CPU thread; `dev/teacher_agreement` the share of examples with the teacher's answer.
- The front's students are models of their runs: `mlflow.transformers.load_model("models:/ID")`. Artifacts:
  `pareto.png`, `trials.csv`, the search space, and `report/report.html` once `sweeps/report.py` has made it."""


def publish_front(tracker: Tracker, folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> None:
    """Describe the sweep, tag the runs on its front, and log the student of each as a model.

    Args:
        tracker: Its sweep is started.
        folder: Folder of the sweep.
        sweep: Record of the sweep.
        trials: Records of its ended trials.

    Raises:
        UsageError: a student, or the teacher whose tokenizer it shares, is damaged or missing.
    """
    client, parent = tracker.client, tracker.parent_run_id
    client.set_tag(parent, NOTE, description(sweep, trials, tracker.experiment_id))
    on_front = {trial.id: trial for trial in pareto_front(trials, sweep.objectives)}
    for run in tracker.find_trial_runs(parent):
        trial = run.data.tags[TRIAL]
        if (run.data.tags.get(FRONT) == "true") != (trial in on_front):
            client.set_tag(run.info.run_id, FRONT, str(trial in on_front).lower())
        if trial in on_front:
            models.log_student(client, run, folder, sweep, on_front[trial])


def register_students(
    tracker: Tracker, folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord], name: str
) -> dict[str, str]:
    """Make the trials' students versions of the registered model `name`; return the version of each trial id.

    Raises:
        UsageError: the store does not know the sweep or a trial, or refuses the name.
    """
    parent, versions = tracker.find_parent_run(sweep), {}
    runs = {run.data.tags[TRIAL]: run for run in tracker.find_trial_runs(parent)} if parent else {}
    for trial in trials:
        if trial.id not in runs:
            raise UsageError(
                f"--register {name}: {redact_uri(tracker.uri)} has no run of {trial.id}; "
                f"sweeps/report.py --check {sweep.name} delivers it"
            )
        try:
            model_id = models.log_student(tracker.client, runs[trial.id], folder, sweep, trial)
            versions[trial.id] = models.register_model(tracker.client, model_id, name, sweep, trial)
        except UsageError:
            raise
        except Exception as error:  # every store raises its own
            raise UsageError(f"--register {name}: {tracker.redact_error(error)}") from None
    return versions


def log_report(sweep: SweepRecord, files: Iterable[Path], uri: str | None) -> str:
    """Log a report's files as artifacts `report/...` of its sweep's run; return the problem, empty if there is none.

    Args:
        sweep: Record of the sweep.
        files: Files of the report.
        uri: URI of the store, as for `Tracker`.
    """
    try:
        tracker = Tracker(uri, sweep.task)
    except UsageError as error:
        return str(error)
    try:
        parent = tracker.find_parent_run(sweep)
        if not parent:
            return f"no run of sweep {sweep.name} there"
        for file in files:
            tracker.client.log_artifact(parent, str(file), "report")
    except Exception as error:  # every store raises its own
        return tracker.redact_error(error)
    return ""


def description(sweep: SweepRecord, trials: Sequence[TrialRecord], experiment_id: str) -> str:
    """Return the description of a sweep's run in Markdown: what was swept, its front, and how to read it."""
    front = pareto_front(trials, sweep.objectives)
    warning = f"**{GENERATED_WARNING}.** " if sweep.data["generated"] else ""
    # A list, as MLflow draws tables without any space between their columns.
    items = [
        f"- {_escape(trial.name)}: "
        + _escape(", ".join(f"{name} {trial.metrics[name]:,.6g}" for name in sweep.objectives))
        for trial in front
    ]
    parts = [
        f"Students of **{_escape(sweep.teacher['name'])}** for {_escape(sweep.task)}, by {len(trials)} of "
        f"{sweep.trials} trials. {warning}Data: {_escape(sweep.data['description'])}.",
        f"`{_escape(sweep.command)}`" if sweep.command else "",
        "#### The front" if front else "No trial on the front yet.",
        "\n".join(items),
        HOW_TO_READ.format(
            students=f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}",
            metric=main_metric(sweep.objectives),
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _escape(text: object) -> str:
    """Return text as Markdown that shows it literally."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", clean(text, 500))
