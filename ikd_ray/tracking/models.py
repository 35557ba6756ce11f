"""Log the students of a sweep's front as MLflow models, and register students as versions of a model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ikd_ray.analysis.objectives import dev_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.errors import StoreError, UsageError
from ikd_ray.export.code_examples import example_texts
from ikd_ray.export.hf_export import export_student
from ikd_ray.formatting import number
from ikd_ray.program import shell_command
from ikd_ray.records import SweepRecord, TrialRecord, metrics_on_test, read_task
from ikd_ray.redaction import redact_uri
from ikd_ray.tracking.description import literal, sweep_description
from ikd_ray.tracking.mlflow_internals import NOTE, add_model_version
from ikd_ray.tracking.store_client import StoreClient
from ikd_ray.tracking.tracker import CHAMPION, FRONT, SWEEP_ID, TRIAL, Tracker

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

CHAMPION_ALIAS = "champion"  # of a version of a registered model
COLUMNS = ("text", "text_pair")  # of a model's input


def publish_front(tracker: Tracker, folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> None:
    """Describe a started sweep, tag the runs on its front, and log the student of each as a model.

    Raises:
        UsageError: a student, or the teacher whose tokenizer it shares, is damaged or missing.
    """
    client, parent = tracker.client, tracker.parent_run_id
    client.set_tag(parent, NOTE, sweep_description(sweep, trials, tracker.experiment_id))
    on_front = {trial.id: trial for trial in pareto_front(trials, sweep.objectives)}
    for run in tracker.find_trial_runs(parent):
        trial = run.data.tags[TRIAL]
        if (run.data.tags.get(FRONT) == "true") != (trial in on_front):
            client.set_tag(run.info.run_id, FRONT, str(trial in on_front).lower())
        if trial in on_front:
            log_student(client, run, folder, sweep, on_front[trial])


class Registration(NamedTuple):
    """Versions of a registered model by trial id, and the version with the alias `CHAMPION_ALIAS`, if there is one."""

    versions: dict[str, str]
    champion: str


def register_students(
    tracker: Tracker,
    folder: Path,
    sweep: SweepRecord,
    trials: Sequence[TrialRecord],
    name: str,
    champion: TrialRecord | None,
) -> Registration:
    """Make the trials' students versions of the registered model `name`, and give its alias to the sweep's champion.

    `champion` need not be one of `trials`; then the alias stays where it is.

    Raises:
        UsageError: the store does not know the sweep or a trial, or refuses the name.
    """
    parent, versions = tracker.find_parent_run(sweep), {}
    runs = {run.data.tags[TRIAL]: run for run in tracker.find_trial_runs(parent)} if parent else {}
    for trial in trials:
        if trial.id not in runs:
            output = sweep.settings.get("uri") or str(folder.parent)
            check = shell_command("report", f"--check {sweep.name}", output)
            raise UsageError(
                f"--register {name}: {redact_uri(tracker.uri)} has no run of {trial.id}; "
                f"`{check}` delivers it"
            )
    if not trials:
        return Registration({}, "")
    try:
        for trial in trials:
            model_id = log_student(tracker.client, runs[trial.id], folder, sweep, trial)
            versions[trial.id] = register_model(tracker.client, model_id, name, sweep, trial)
        best = versions.get(champion.id, "") if champion else ""
        return Registration(versions, set_champion(tracker.client, name, sweep, best))
    except UsageError:
        raise
    except Exception as error:  # every store raises its own
        raise UsageError(f"--register {name}: {tracker.redact_error(error)}") from None


def set_champion(client: StoreClient, name: str, sweep: SweepRecord, version: str) -> str:
    """Give a registered model's alias to a version, and return the version that has it then.

    The alias is given where no version has it, and moved where this function gave it to a version of the same sweep:
    where somebody else gave it, or another sweep's student has it, they may serve that version.
    """
    model = client.get_registered_model(name)
    current = str(model.aliases.get(CHAMPION_ALIAS, ""))
    if not version or current == version:
        return current
    if current:
        tags = client.get_model_version(name, current).tags
        if model.tags.get(CHAMPION) != current or tags.get(SWEEP_ID) != sweep.settings.get("id"):
            return current
    client.set_registered_model_alias(name, CHAMPION_ALIAS, version)
    client.set_registered_model_tag(name, CHAMPION, version)
    return version


def logged_model_id(run: Run) -> str:
    """Return the id of the model that a run has logged, or an empty string."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return outputs[-1].model_id if outputs else ""


def log_student(client: StoreClient, run: Run, folder: Path, sweep: SweepRecord, trial: TrialRecord) -> str:
    """Log a trial's student as a model of the transformers flavour, unless its run has one; return the model's id.

    `mlflow.transformers.log_model` would start the ended run again and change its end, so the client does it.

    Raises:
        UsageError: the student is damaged, or its tokenizer is missing.
        OSError: the student cannot be read or written.
        StoreError: the store refuses the model.
    """
    if model_id := logged_model_id(run):
        return model_id
    from mlflow.entities import LoggedModelOutput

    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as temporary:
        exported, saved = Path(temporary) / "exported", Path(temporary) / "saved"
        export_student(folder, trial, exported)
        model = _create_model(client, run, sweep, trial)
        try:
            texts = example_texts(sweep, read_task(folder))
            _save_model(exported, saved, trial.name, texts, model.model_id, run_id)
            for file in sorted(path for path in saved.rglob("*") if path.is_file()):
                # One by one, so that a server which refuses one is not sent all of them again.
                parent = file.parent.relative_to(saved).as_posix()
                client.log_model_artifact(model.model_id, str(file), None if parent == "." else parent)
        except BaseException:
            client.delete_logged_model(model.model_id)
            raise
        client.finalize_logged_model(model.model_id, "READY")
    metrics = [*sweep.objectives, *map(dev_metric, sweep.objectives), "student/params", "student/latency_ms"]
    metrics += metrics_on_test(trial.metrics)
    _link_metrics(client, run_id, model.model_id, [name for name in metrics if name in trial.metrics])
    # Last, because it marks the run as having its model.
    output = LoggedModelOutput(model.model_id, len(trial.history))

    def mark() -> None:
        if not logged_model_id(client.get_run(run_id)):  # an attempt without an answer may have done it
            client.log_outputs(run_id, models=[output])

    client.repeat(mark)
    return str(model.model_id)


def _create_model(client: StoreClient, run: Run, sweep: SweepRecord, trial: TrialRecord) -> LoggedModel:
    """Create the logged model of a trial's run, or return one that an attempt without an answer has created."""

    def create() -> LoggedModel:
        experiment, run_id = run.info.experiment_id, run.info.run_id
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            return model
        return client.create_logged_model(
            experiment,
            name=trial.name,
            source_run_id=run_id,
            tags={"ikd.sweep": sweep.name, "ikd.trial": trial.id},
            params={name: str(value) for name, value in trial.params.items()},
            model_type="transformers",
        )

    return client.repeat(create)


def register_model(
    client: StoreClient, model_id: str, name: str, sweep: SweepRecord, trial: TrialRecord
) -> str:
    """Make a logged student a version of the registered model `name`, unless it is one; return the version.

    Raises:
        StoreError: the registry refuses it.
    """
    model = client.get_logged_model(model_id)
    try:
        client.create_registered_model(
            name, {"ikd.task": sweep.task}, f"Students for {sweep.task}, by ikd-ray."
        )
    except StoreError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{model.source_run_id}'"):
        return str(version.version)
    metrics = ", ".join(f"{metric} {number(trial.metrics[metric])}" for metric in sweep.objectives)
    version = client.create_model_version(
        name,
        model.artifact_location,
        run_id=model.source_run_id,
        tags={
            "ikd.task": sweep.task,
            "ikd.sweep": sweep.name,
            SWEEP_ID: sweep.settings.get("id", ""),
            TRIAL: trial.id,
        },
        description=literal(
            f"{trial.name} of sweep {sweep.name}: {metrics}. Teacher: {sweep.teacher['name']}."
        ),
        model_id=model_id,
    )
    add_model_version(client, model, name, version.version)
    return str(version.version)


def _save_model(
    exported: Path, saved: Path, name: str, texts: Sequence[str], model_id: str, run_id: str
) -> None:
    """Save an exported student in MLflow's format, without asking any hub; `texts` are its input example."""
    import mlflow.transformers
    import pandas as pd
    import torch
    import transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME

    from ikd_ray.distill.teacher_files import NO_REMOTE_CODE

    card = (exported / "README.md").read_text(encoding="utf-8")
    saved_model = Model(model_id=model_id, run_id=run_id)
    with _quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            exported, use_safetensors=True, **NO_REMOTE_CODE
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(exported, **NO_REMOTE_CODE)
        mlflow.transformers.save_model(
            {"model": model, "tokenizer": tokenizer},
            path=saved,
            task="text-classification",
            signature=_signature(len(texts)),
            input_example=pd.DataFrame({name: [text] for name, text in zip(COLUMNS, texts, strict=False)}),
            # As the student was measured; by default a pipeline truncates nothing.
            model_config={"truncation": True},
            mlflow_model=saved_model,
            model_card=ModelCard(card, ignore_metadata_errors=True),
            pip_requirements=[
                f"torch=={torch.__version__.partition('+')[0]}",
                f"transformers=={transformers.__version__}",
            ],
        )
    (saved / "LICENSE.txt").unlink(missing_ok=True)  # it links to a page of the hub that does not exist
    # MLflow has written the path of the temporary folder.
    saved_model.flavors["transformers"]["source_model_name"] = name
    saved_model.save(saved / MLMODEL_FILE_NAME)


def _signature(num_texts: int) -> ModelSignature:
    """Return the signature of a model for texts or for pairs.

    With the one that MLflow infers for pairs it drops the second text. For single texts it is the one that MLflow has
    for every text classifier, which takes a list as well as a table.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    names = COLUMNS if num_texts == 2 else (None,)
    inputs = Schema([ColSpec("string", name) for name in names])
    return ModelSignature(inputs, Schema([ColSpec("string", "label"), ColSpec("double", "score")]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide MLflow's warning of a missing licence and transformers' progress bars."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("mlflow.transformers")
    level, has_bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def _link_metrics(client: StoreClient, run_id: str, model_id: str, names: Sequence[str]) -> None:
    """Link the last values of a run's metrics to its model: the same rows once more, with the model's id."""
    from mlflow.entities import Metric

    rows = []
    for name in dict.fromkeys(names):
        history = client.get_metric_history(run_id, name)
        if history:
            last = max(history, key=lambda metric: (metric.step, metric.timestamp))
            row = Metric(name, last.value, last.timestamp, last.step, model_id=model_id, run_id=run_id)
            rows.append(row)
    client.log_batch(run_id, metrics=rows)
