"""Names and formats that MLflow 3.17 uses without documenting them as an interface.

An MLflow that does not know a tag, or the format of the saved view, ignores it: its pages then show runs without
notes, nesting or the project's columns. All values stay where the client's public interface put them.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

# Read by MLflow when it is imported.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it prints passwords
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A repeated request whose first answer was lost creates a second run; `AsyncTracker` reads the store before it retries.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

RUN_NAME = "mlflow.runName"
PARENT_RUN_ID = "mlflow.parentRunId"
SOURCE_NAME, SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"
NOTE = "mlflow.note.content"  # description of a run or an experiment, in Markdown
DATASET_CONTEXT = "mlflow.data.context"  # what a run uses a data set for
MAX_METRICS = 1000  # of a call of `log_batch`
MAX_TAG = 1000  # characters of a tag whose text may grow; MLflow accepts 8000

FILE_STORE_ERROR, SCHEMA_ERROR = "filesystem tracking backend", "database schema"
"""Words of the errors with which MLflow refuses a folder `mlruns`, and the database of another version."""

VIEW = "ikd-students"  # id of the saved view in links
_EXPERIMENT_KIND = "mlflow.experimentKind"
_MODEL_VERSIONS = "mlflow.modelVersions"
_VIEW_CREATED = (
    1_790_000_000_000  # milliseconds since 1970; constant, so that saving the view again changes nothing
)
_LOGGERS = ("mlflow", "alembic", "mlflow.store.db.utils", "psycopg")


def students_page(experiment_id: str) -> str:
    """Return the part of a link, after the server's address, that opens the saved view of an experiment.

    Without `workflowType` MLflow opens pages for language models, whatever the experiment's kind is, until the user
    switches them once in the browser.
    """
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def import_mlflow() -> Any:
    """Import MLflow, which takes seconds, and silence its loggers: what they print of errors is raised, too."""
    import mlflow

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


class SavedView(NamedTuple):
    """Table of runs in MLflow's page of an experiment."""

    query: str  # which runs it shows, as for `MlflowClient.search_runs`
    columns: Sequence[str]  # such as "metrics.`dev/mcc`"
    order_by: str  # a column
    ascending: bool


def experiment_tags(view: SavedView) -> dict[str, str]:
    """Return the tags of an experiment of model training that has a saved view `Students`."""
    state = {
        "searchFilter": view.query,
        "orderByKey": view.order_by,
        "orderByAsc": view.ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": view.columns,
        "columnOrder": view.columns,
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
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    saved = {"name": "Students", "createdAt": _VIEW_CREATED, "updatedAt": _VIEW_CREATED, "state": packed}
    return {
        _EXPERIMENT_KIND: "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(saved),
    }


def add_model_version(client: Any, model: LoggedModel, name: str, version: str) -> None:
    """Show a registered version on the model's own page, as `mlflow.register_model` does."""
    versions = [*json.loads(model.tags.get(_MODEL_VERSIONS, "[]")), {"name": name, "version": version}]
    client.set_logged_model_tags(model.model_id, {_MODEL_VERSIONS: json.dumps(versions)})
