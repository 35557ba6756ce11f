"""Export students of a sweep as Hugging Face folders."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ikd_ray import records
from ikd_ray.config import Regime, latency_tokens
from ikd_ray.errors import UsageError
from ikd_ray.export.code_examples import example_texts, onnx_code, pipeline_code
from ikd_ray.export.model_card import WEIGHTS, ExportedFiles, model_card, student_name
from ikd_ray.formatting import null_nonfinite, portable_command
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.storage import store
from ikd_ray.tasks import Task
from ikd_ray.version import code_version

CONFIG, TOKENIZER_CONFIG, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"
LOADING_OPTIONS = ("is_local", "local_files_only")
"""Entries of a tokenizer's configuration that say how transformers had loaded it."""
CARD, FACTS = "README.md", "ikd.json"
# Files that tokenizers of the supported families save; the teacher's folder holds others, too.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)

Convert = Callable[[Path, TrialRecord], ExportedFiles]
"""Writes further files of weights beside the student's in a folder; raises ExportError."""


class ExportError(UsageError):
    """One student cannot be exported; others can."""


@dataclass(frozen=True)
class ExportedStudent:
    """A student's new folder, Python code that loads it, and a description of its files if it was converted."""

    trial: TrialRecord
    folder: Path
    usage: str
    files: ExportedFiles | None = None


def export_student(
    sweep_folder: Path,
    trial: TrialRecord,
    target: Path,
    convert: Convert | None = None,
    repository: str | None = None,
) -> ExportedStudent:
    """Write a finished trial's student to `target`, atomically; an existing folder is replaced.

    The folder holds model.safetensors, config.json with named labels, the teacher's tokenizer, which truncates at the
    sweep's maximum length, README.md (a model card), ikd.json (its facts, and the checksums of the other files) and
    what `convert` writes. `repository` is the repository of the hub that the card is for, if it is for one.

    Raises:
        ExportError: the trial is damaged or cannot be converted.
        UsageError: the sweep's records or the teacher's tokenizer cannot be read.
        OSError: the folder cannot be written.
    """
    sweep, task = records.read_sweep(sweep_folder), records.read_task(sweep_folder)
    tokenizer = tokenizer_files(records.teacher_folder(sweep_folder, sweep))
    source = records.trial_folder(sweep_folder, trial.id)
    student = source / records.STUDENT
    if not (store.is_intact(source) and all((student / name).is_file() for name in (CONFIG, WEIGHTS))):
        raise ExportError(f"{source}: damaged (its checksums do not match)")
    return write_student(sweep, task, trial, student, tokenizer, target, convert, repository)


def write_student(
    sweep: SweepRecord,
    task: Task,
    trial: TrialRecord,
    student: Path,
    tokenizer: Sequence[Path],
    target: Path,
    convert: Convert | None = None,
    repository: str | None = None,
) -> ExportedStudent:
    """Write a student to `target` as `export_student` does; records are given, and need not be on disk.

    Args:
        sweep: the record of its sweep; a student that was trained by itself has one without a name.
        task: its task.
        trial: the record of its trial.
        student: folder with its weights and configuration.
        tokenizer: the `tokenizer_files` of its teacher.
        target: the new folder.
        convert: writes further files of weights.
        repository: the hub's repository that its card is for, if it is for one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        for file in tokenizer:
            shutil.copyfile(file, folder / file.name)
        if task.is_regression and task.score_range != task.training_range:
            _write_in_task_units(student, folder, task)
        else:
            shutil.copyfile(student / WEIGHTS, folder / WEIGHTS)
        _set_max_length(folder, sweep.data["max_length"])
        config = _config(student / CONFIG, task)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        files = convert(folder, trial) if convert else None
        tokens = latency_tokens(config["max_position_embeddings"])
        card = model_card(sweep, trial, task, tokens, files, repository)
        (folder / CARD).write_text(card, encoding="utf-8")
        records.write_json(folder / FACTS, _facts(sweep, trial, files) | {"sha256": _checksums(folder)})
        store.fsync_tree(folder)
        store.swap_dir(folder, target)
    return ExportedStudent(trial, target, _usage(target, sweep, task, files), files)


def export_students(
    sweep_folder: Path,
    to: Path,
    trials: Sequence[TrialRecord],
    *,
    force: bool = False,
    make_convert: Callable[[], Convert] | None = None,
    repository: str | None = None,
) -> tuple[list[ExportedStudent], list[str]]:
    """Export each finished trial's student to `to/<task>-<regime>-<depth>L-<trial id>/`; see `export_student`.

    `force` replaces folders that exist. `make_convert` makes the conversion, after the other arguments are checked.
    `repository` is that of `export_student`.

    Returns:
        The exported students, and a message for each student that could not be exported.

    Raises:
        UsageError: a record or the tokenizer cannot be read, a target exists, or `to` cannot be written.
    """
    sweep = records.read_sweep(sweep_folder)
    targets = [to / folder_name(sweep, trial) for trial in trials]
    tokenizer_files(records.teacher_folder(sweep_folder, sweep))
    check_targets(to, targets, force)
    convert = make_convert() if make_convert else None
    students, problems = [], []
    for trial, target in zip(trials, targets, strict=True):
        try:
            students.append(export_student(sweep_folder, trial, target, convert, repository))
        except ExportError as error:
            problems.append(f"{trial.id}: not exported: {error}")
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--to {to}: cannot write {target.name} there ({reason})") from None
    return students, problems


def folder_name(sweep: SweepRecord, trial: TrialRecord) -> str:
    """Return the name of the folder that a trial's student is exported to.

    Raises:
        UsageError: the trial's record is wrong.
    """
    regime = trial.params.get("regime")
    if regime not in get_args(Regime):
        raise UsageError(
            f"{sweep.name}: {records.TRIAL_FILE} of {trial.id}: regime: unknown (got {regime!r})"
        )
    return student_name(sweep, trial)


def tokenizer_files(teacher: Path) -> list[Path]:
    """Return the files of the tokenizer in a teacher's folder.

    Raises:
        UsageError: the teacher is missing or damaged.
    """
    files = sorted({file for pattern in TOKENIZER_FILES for file in teacher.glob(pattern)})
    if not files or not store.is_intact(teacher):
        raise UsageError(
            f"{teacher}: the teacher, whose tokenizer its students share, is missing or damaged; "
            "resume the sweep to make it again"
        )
    return files


def check_targets(to: Path, targets: Sequence[Path], force: bool) -> None:
    """Check that folders can be written in `to`, with `force` in place of those that exist.

    Raises:
        UsageError: they cannot.
    """
    existing = next(path for path in (to, *to.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UsageError(f"--to {to}: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--to {to}: no permission to write in {existing}")
    taken = [target for target in targets if os.path.lexists(target)]
    if taken and not force:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise UsageError(f"{taken[0]}{more} exists already; --force replaces it")


def is_export(folder: Path) -> bool:
    """Return whether a folder is empty or an exported student, also one of an earlier version."""
    return folder.is_dir() and (
        not any(folder.iterdir()) or all((folder / name).is_file() for name in (FACTS, CARD))
    )


def _write_in_task_units(student: Path, folder: Path, task: Task) -> None:
    """Write a student's weights, its last layer changed so that it answers in the task's units."""
    # Imported late: it takes seconds, and few tasks need it.
    from transformers import AutoModelForSequenceClassification

    from ikd_ray.distill.encoder import Encoder
    from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
    from ikd_ray.distill.teacher_head import output_layer, scale_output

    model = AutoModelForSequenceClassification.from_pretrained(
        student, use_safetensors=True, dtype="auto", **NO_REMOTE_CODE
    )
    offset = task.score_range[0] - task.training_range[0] * task.score_scale
    scale_output(output_layer(Encoder(model)), task.score_scale, offset)
    model.save_pretrained(folder)


def _set_max_length(folder: Path, max_length: int) -> None:
    """Have the tokenizer in a folder truncate texts where the student's were, not where the teacher's positions end."""
    path = folder / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    config = {key: value for key, value in config.items() if key not in LOADING_OPTIONS}
    path.write_text(
        json.dumps(config | {"model_max_length": max_length}, indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    path = folder / TOKENIZER
    if not path.exists():
        return
    # transformers reads the file above, servers in other languages this one.
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["truncation"] = {
        "direction": config.get("truncation_side", "right").capitalize(),
        "max_length": max_length,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False), encoding="utf-8")


def _config(path: Path, task: Task) -> dict[str, Any]:
    """Return the student's configuration with the task's label names, which a fine-tuned teacher may lack."""
    names = list(task.labels) or ["score"]
    config = json.loads(path.read_text(encoding="utf-8"))
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    config["problem_type"] = "regression" if task.is_regression else "single_label_classification"
    return config


def _usage(folder: Path, sweep: SweepRecord, task: Task, files: ExportedFiles | None) -> str:
    """Return code that loads the file that was asked for last: an ONNX model, or else PyTorch's weights."""
    texts = example_texts(sweep, task)
    if files:
        return onnx_code(str(folder), files.files[-1].file, texts)
    return pipeline_code(str(folder), texts)


def _checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): store.file_sha256(path) for path in files}


def _facts(sweep: SweepRecord, trial: TrialRecord, files: ExportedFiles | None) -> dict[str, Any]:
    """Return the content of ikd.json."""
    teacher = {name: value for name, value in sweep.teacher.items() if name != "assistants"}
    assistant = sweep.assistant_of(trial.params)
    facts = {
        "task": sweep.task,
        # The card quotes the example, unless it is for the hub and the example not public.
        "data": {name: value for name, value in sweep.data.items() if name != "example"},
        "generated": sweep.data["generated"],
        "teacher": teacher | {"metrics": null_nonfinite(teacher["metrics"])},
        "assistant": assistant | {"metrics": null_nonfinite(assistant.get("metrics", {}))}
        if assistant
        else None,
        "sweep": {"name": sweep.name, "seed": sweep.seed, "objectives": sweep.objectives}
        if sweep.name
        else None,
        "trial": {"id": trial.id, "number": trial.number, "duration_s": trial.duration_s},
        "params": trial.params,
        "layer_map": trial.layer_map,
        "precision": trial.precision,
        "metrics": null_nonfinite(trial.metrics),
        "command": portable_command(sweep.command),
        "code_version": sweep.code_version,
        "exported_by": code_version(),
        "onnx": files.to_json() if files else None,
    }
    optional = {"assistant", "onnx", "sweep"}
    return {name: value for name, value in facts.items() if name not in optional or value is not None}
