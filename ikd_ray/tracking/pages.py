"""What people meet first in MLflow's own pages: a table of students with useful columns, and how to read a sweep."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ikd_ray.analysis.objectives import dev_metric, main_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.formatting import GENERATED_WARNING, clean
from ikd_ray.records import SweepRecord, TrialRecord

NOTE = "mlflow.note.content"  # a run's or an experiment's description, in Markdown
KIND = "mlflow.experimentKind"
VIEW = "ikd-students"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
VIEW_NAME = "Students"
FRONT = "ikd.front"
BORN = 1_790_000_000_000  # milliseconds; the view has no other age, so that writing it again changes nothing

METRICS = (
    "student/params",
    "student/latency_ms",
    "dev/attention_kl",
    "dev/teacher_agreement",
)
PARAMS = ("regime", "student_layers", "temperature", "lambda", "learning_rate", "soft_labels")


def experiment_tags(sweep: SweepRecord) -> dict[str, str]:
    """Of the experiment: it is about training models, and has the saved view `Students`.

    A view is a tag as MLflow's page writes it when somebody saves one (MLflow 3.17); versions that know no saved
    views open it by its link all the same, or show their own columns.
    """
    return {
        KIND: "custom_model_development",
        VIEW_TAG: json.dumps(
            {"name": VIEW_NAME, "createdAt": BORN, "updatedAt": BORN, "state": _packed(_state(sweep))}
        ),
    }


def _state(sweep: SweepRecord) -> dict[str, Any]:
    """All trials of all sweeps, the best first."""
    metric = main_metric(sweep.objectives)
    metrics = [f"metrics.`{name}`" for name in dict.fromkeys((metric, dev_metric(metric), *METRICS))]
    compared = ("method", "again") if sweep.settings.get("methods") else ()
    params = [f"params.`{name}`" for name in (*compared, *PARAMS)]
    columns = [*metrics, *params, f"tags.`{FRONT}`", "tags.`ikd.sweep`", "attributes.`Models`"]
    return {
        "searchFilter": "tags.`ikd.kind` = 'trial'",
        "orderByKey": metrics[0],
        "orderByAsc": sweep.objectives.get(metric) == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _packed(state: Mapping[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def description(sweep: SweepRecord, trials: Sequence[TrialRecord], experiment_id: str) -> str:
    """The parent run's, in Markdown: what was swept, how to read it, and the front as it is."""
    best = pareto_front(trials, sweep.objectives)
    students = f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
    warning = f"**{GENERATED_WARNING}.** " if sweep.data["generated"] else ""
    parts = [
        f"Students of **{_plain(sweep.teacher['name'])}** for {_plain(sweep.task)}, by {len(trials)} of {sweep.trials} "
        f"trials. {warning}Data: {_plain(sweep.data['description'])}.",
        f"`{_plain(sweep.command)}`" if sweep.command else "",
        "#### The front" if best else "No trial on the front yet.",
        _front_list(sweep, best) if best else "",
        HOW_TO_READ.format(students=students, metric=main_metric(sweep.objectives)),
    ]
    return "\n\n".join(part for part in parts if part)


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


def _front_list(sweep: SweepRecord, best: Sequence[TrialRecord]) -> str:
    """Not a table: MLflow shows those without any space between their columns."""
    lines = []
    for trial in best:
        shown = ", ".join(f"{name} {trial.metrics[name]:,.6g}" for name in sweep.objectives)
        lines.append(f"- {_plain(trial.name)}: {_plain(shown)}")
    return "\n".join(lines)


def _plain(text: object) -> str:
    """Outside text that stays text in Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", clean(text, 500))
