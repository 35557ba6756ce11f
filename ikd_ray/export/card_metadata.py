"""The metadata of a student's model card, by which the Hugging Face hub lists the student and links its teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from huggingface_hub import EvalResult, ModelCardData

from ikd_ray.data.sources import HUB_NAME
from ikd_ray.data.task_file import CustomTask
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.tasks import TASKS, GlueTask, Task

TASK_TYPE = "text-classification"
METRICS: dict[str, tuple[str, str, dict[str, str] | None]] = {
    "accuracy": ("accuracy", "Accuracy", None),
    "f1": ("f1", "F1", None),
    "macro_f1": ("f1", "Macro F1", {"average": "macro"}),
    "mcc": ("matthews_correlation", "Matthews correlation", None),
    "pearson": ("pearsonr", "Pearson correlation", None),
    "spearman": ("spearmanr", "Spearman correlation", None),
}
"""A task's metrics: name on the hub, name for people, and arguments."""


def card_metadata(
    sweep: SweepRecord, trial: TrialRecord, task: Task, name: str, example: Sequence[str]
) -> ModelCardData:
    """Return the metadata of a student's model card.

    Args:
        sweep: the student's sweep.
        trial: the student's trial.
        task: the sweep's task.
        name: the student's name in its results.
        example: the texts of an example, for the hub's widget; empty where there is none.
    """
    teacher, dataset = sweep.teacher, hub_dataset(sweep)
    tags = ["knowledge-distillation", "internal-distillation", "ikd-ray", sweep.task]
    # On generated data they would be listed as results of the real task.
    results = [] if sweep.data["generated"] else list(_results(sweep, trial, task))
    return ModelCardData(
        language=_language(task),
        license=teacher.get("license"),
        license_name=teacher.get("license_name"),
        license_link=teacher.get("license_link"),
        library_name="transformers",
        pipeline_tag=TASK_TYPE,
        base_model=teacher.get("hub_name") or None,
        base_model_relation="finetune" if teacher.get("hub_name") else None,
        datasets=[dataset] if dataset else None,
        metrics=list(dict.fromkeys(METRICS[metric][0] for metric in task.metrics)),
        tags=[*tags, "generated-data"] if sweep.data["generated"] else tags,
        widget=[{"text": example[0]}] if len(example) == 1 else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def hub_dataset(sweep: SweepRecord) -> str | None:
    """Return the name on the hub of the data set that a sweep's data are, wherever they were read from."""
    if sweep.data["generated"]:
        return None
    return HUB_NAME if sweep.task in TASKS else sweep.data.get("dataset")


def _language(task: Task) -> str | None:
    if isinstance(task, CustomTask):
        return task.language or None
    return "en" if isinstance(task, GlueTask) else None


def _results(sweep: SweepRecord, trial: TrialRecord, task: Task) -> Iterator[EvalResult]:
    """Yield the task's metrics on dev and test splits; a part of train, held out for the search, is none of these."""
    splits, config = {}, None
    if isinstance(task, GlueTask):
        splits, config = {names.name: names.hub for names in task.splits}, sweep.task
    elif isinstance(task, CustomTask):
        splits, config = dict(task.hub_splits), task.config or None
    for name, value in trial.metrics.items():
        split, _, metric = name.rpartition("/")
        if metric in task.metrics and split.startswith(("dev", "test")) and math.isfinite(value):
            kind, title, arguments = METRICS[metric]
            yield EvalResult(
                task_type=TASK_TYPE,
                dataset_type=hub_dataset(sweep) or sweep.task,
                dataset_name=task.title,
                dataset_config=config,
                dataset_split=splits.get(split, split),
                metric_type=kind,
                metric_value=value,
                metric_name=title,
                metric_args=arguments,
            )
