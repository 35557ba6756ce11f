"""The front's students as MLflow models, each an output of its trial's run."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikd_ray.analysis.objectives import dev_metric
from ikd_ray.export.students import export_student
from ikd_ray.records import SweepRecord, TrialRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VERSIONS = "mlflow.modelVersions"


def model_of(run: Run) -> str:
    """The id of the student's model that a run has; none: an empty text."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return outputs[-1].model_id if outputs else ""


def log_student(client: MlflowClient, run: Run, folder: Path, sweep: SweepRecord, trial: TrialRecord) -> str:
    """Log a trial's student as a model of MLflow's transformers flavour, unless the run has it; returns its id.

    It is logged through the client: MLflow's `log_model` would start the run again, and change when it ended.

    Args:
        folder: the sweep's.

    Raises:
        UsageError, OSError: the student cannot be read.
        MlflowException: the store refuses it.
    """
    if known := model_of(run):
        return known
    from mlflow.entities import LoggedModelOutput

    with tempfile.TemporaryDirectory() as room:
        exported, saved = Path(room) / "exported", Path(room) / "saved"
        export_student(folder, sweep, trial, exported)
        model = client.create_logged_model(
            run.info.experiment_id,
            name=trial.name,
            source_run_id=run.info.run_id,
            tags={"ikd.sweep": sweep.name, "ikd.trial": trial.id},
            params={name: str(value) for name, value in trial.params.items()},
            model_type="transformers",
        )
        try:
            _save(exported, saved, model.model_id, run.info.run_id)
            client.log_model_artifacts(model.model_id, str(saved))
        except BaseException:
            client.delete_logged_model(model.model_id)
            raise
        client.finalize_logged_model(model.model_id, "READY")
    measured = dict.fromkeys((*sweep.objectives, *map(dev_metric, sweep.objectives)))
    told = [*measured, "student/params", "student/latency_ms"]
    _log_metrics(client, run, model.model_id, told, trial)
    # Last: it is what says that the run has its model.
    client.log_outputs(run.info.run_id, models=[LoggedModelOutput(model.model_id, len(trial.history))])
    return str(model.model_id)


def register(client: MlflowClient, model_id: str, name: str, sweep: SweepRecord, trial: TrialRecord) -> str:
    """Make a trial's student a version of the registered model `name`, unless it is one; returns the version.

    Args:
        model_id: see `log_student`.

    Raises:
        MlflowException: the registry refuses it.
    """
    import mlflow.exceptions

    model = client.get_logged_model(model_id)
    try:
        client.create_registered_model(name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{model.source_run_id}'"):
        return str(version.version)
    shown = ", ".join(f"{metric} {trial.metrics[metric]:.6g}" for metric in sweep.objectives)
    made = client.create_model_version(
        name,
        model.artifact_location,
        run_id=model.source_run_id,
        tags={"ikd.task": sweep.task, "ikd.sweep": sweep.name, "ikd.trial": trial.id},
        description=f"{trial.name} of sweep {sweep.name}: {shown}. Teacher: {sweep.teacher['name']}.",
        model_id=model_id,
    )
    # As mlflow.register_model does: the model's own page then names its versions.
    versions = json.loads(model.tags.get(VERSIONS, "[]"))
    versions.append({"name": name, "version": made.version})
    client.set_logged_model_tags(model_id, {VERSIONS: json.dumps(versions)})
    return str(made.version)


def _save(exported: Path, saved: Path, model_id: str, run_id: str) -> None:
    """Make MLflow's folder of a model from an exported one. Nothing is asked of any hub."""
    import mlflow.transformers
    import torch
    import transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model

    from ikd_ray.distill.teacher_files import NO_REMOTE_CODE

    with _quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            exported, use_safetensors=True, **NO_REMOTE_CODE
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(exported, **NO_REMOTE_CODE)
        mlflow.transformers.save_model(
            {"model": model, "tokenizer": tokenizer},
            path=saved,
            task="text-classification",
            mlflow_model=Model(model_id=model_id, run_id=run_id),
            model_card=ModelCard(
                (exported / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True
            ),
            pip_requirements=[
                f"torch=={torch.__version__.partition('+')[0]}",
                f"transformers=={transformers.__version__}",
            ],
        )
    (saved / "LICENSE.txt").unlink(missing_ok=True)  # it names a page of the hub, which has no such model


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow warns of a licence that it cannot find, and transformers draws bars."""
    from transformers.utils import logging as bars

    logger = logging.getLogger("mlflow.transformers")
    level, shown = logger.level, bars.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()


def _log_metrics(
    client: MlflowClient, run: Run, model_id: str, names: Sequence[str], trial: TrialRecord
) -> None:
    """Tie the run's last values to the model, which then shows them: the same rows, not new ones."""
    from mlflow.entities import Metric

    found: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        if name in trial.metrics and (history := client.get_metric_history(run.info.run_id, name)):
            found[name] = max(history, key=lambda metric: (metric.step, metric.timestamp))
    rows = [
        Metric(name, last.value, last.timestamp, last.step, model_id=model_id, run_id=run.info.run_id)
        for name, last in found.items()
    ]
    client.log_batch(run.info.run_id, metrics=rows)
