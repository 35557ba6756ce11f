"""A sweep's data as a data set of MLflow's, which is an input of the sweep's run and of those of its trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikd_ray.data.sources import HUB_NAME
from ikd_ray.records import SweepRecord
from ikd_ray.tasks import TASKS
from ikd_ray.tracking.mlflow_internals import DATASET_CONTEXT

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

MAX_DIGEST = 36  # characters that MLflow stores


def dataset_input(sweep: SweepRecord) -> DatasetInput:
    """Return a sweep's data as an input of a run: name, source, digest, and numbers of examples.

    The source has no path of this machine: a folder is named by its last part.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind, source = _source(sweep)
    profile = {"description": sweep.data["description"], **(sweep.data.get("examples") or {})}
    dataset = Dataset(
        name=sweep.task,
        digest=str(sweep.data["fingerprint"])[:MAX_DIGEST],
        source_type=kind,
        source=json.dumps(source),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(DATASET_CONTEXT, "training")])


def _source(sweep: SweepRecord) -> tuple[str, dict[str, Any]]:
    """Return type and content of a source, as the classes of `mlflow.data` write and read them."""
    data = sweep.data
    hub_name = HUB_NAME if sweep.task in TASKS else data.get("dataset")
    if data["source"] == "hub" and hub_name:
        return "hugging_face", {
            "path": hub_name,
            "config_name": sweep.task if sweep.task in TASKS else data.get("config") or None,
            "revision": data.get("revision") or None,
        }
    if data["generated"]:
        return "code", {"tags": {"mlflow.source.name": "ikd_ray.data.corpus"}}
    return "local", {"uri": Path(sweep.settings.get("data_dir") or sweep.task).name}
