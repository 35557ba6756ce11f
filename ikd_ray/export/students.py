"""Students of a sweep as Hugging Face folders."""

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
from ikd_ray.analysis.pick import select_students
from ikd_ray.config import Regime
from ikd_ray.errors import UsageError
from ikd_ray.export.exported_files import WEIGHTS, ExportedFiles, ExportError
from ikd_ray.export.model_card import model_card
from ikd_ray.formatting import null_nonfinite
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.storage import store
from ikd_ray.tasks import Task
from ikd_ray.version import code_version

CONFIG = "config.json"
# What tokenizers of the supported families save; the teacher's folder holds other files, too.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


Convert = Callable[[Path, TrialRecord], ExportedFiles]
"""Writes other forms of a student beside its files in a folder; raises ExportError."""


@dataclass(frozen=True)
class Exported:
    """A student: the folder it is in now and, if it was converted, its forms; or why there is none."""

    trial: TrialRecord
    folder: Path | None
    problem: str = ""
    forms: ExportedFiles | None = None


def export_students(
    sweep_folder: Path,
    to: Path,
    trials: Sequence[TrialRecord] | None = None,
    *,
    force: bool = False,
    converter: Callable[[], Convert] | None = None,
) -> list[Exported]:
    """Write each student to `to/<task>-<regime>-<depth>L-<trial id>/`, whole or not at all.

    A folder holds model.safetensors, config.json with named labels, the teacher's tokenizer (from the cache
    beside the sweep), README.md (a model card), ikd.json (the same facts), manifest.json (checksums) and what
    a conversion adds. A damaged trial, and one that cannot be converted, is left out and said to be.

    Args:
        trials: finished ones; by default the front.
        force: replace folders that exist; each stays until its successor is complete.
        converter: gives the conversion; called when all else is checked.

    Raises:
        UsageError: no sweep, no finished trial, no tokenizer, a target exists, or `to` cannot be written.
    """
    sweep, task = records.read_sweep(sweep_folder), records.read_task(sweep_folder)
    members = select_students(sweep, records.read_trials(sweep_folder), None) if trials is None else trials
    tokenizer = _tokenizer_files(records.teacher_folder(sweep_folder, sweep))
    targets = [to / _folder_name(sweep, trial) for trial in members]
    _check_targets(to, targets, force)
    convert = converter() if converter else None
    made = []
    for trial, target in zip(members, targets, strict=True):
        source = records.trial_folder(sweep_folder, trial.id)
        if not _is_whole(source):
            problem = f"{source}: damaged, not exported (its checksums do not match)"
            made.append(Exported(trial, None, problem))
            continue
        try:
            forms = _write(target, source / records.STUDENT, tokenizer, sweep, trial, task, convert)
            made.append(Exported(trial, target, forms=forms))
        except ExportError as error:
            made.append(Exported(trial, None, f"{trial.id}: not exported: {error}"))
        except OSError as error:
            raise UsageError(
                f"--to {to}: cannot write {target.name} there ({error.strerror or error})"
            ) from None
    return made


def export_student(sweep_folder: Path, sweep: SweepRecord, trial: TrialRecord, target: Path) -> None:
    """Write one finished trial's student to `target`, as `export_students` does.

    Raises:
        UsageError: the trial is damaged, or there is no tokenizer.
        OSError: it cannot be written.
    """
    source = records.trial_folder(sweep_folder, trial.id)
    if not _is_whole(source):
        raise UsageError(f"{source}: damaged, not exported (its checksums do not match)")
    tokenizer, task = (
        _tokenizer_files(records.teacher_folder(sweep_folder, sweep)),
        records.read_task(sweep_folder),
    )
    _write(target, source / records.STUDENT, tokenizer, sweep, trial, task, None)


def _folder_name(sweep: SweepRecord, trial: TrialRecord) -> str:
    regime = trial.params.get("regime")
    if regime not in get_args(Regime):
        raise UsageError(
            f"{sweep.name}: {records.TRIAL_FILE} of {trial.id}: regime: unknown (got {regime!r})"
        )
    return f"{sweep.task}-{regime}-{len(trial.layer_map)}L-{trial.id}"


def _is_whole(trial_folder: Path) -> bool:
    student = trial_folder / records.STUDENT
    return store.is_intact(trial_folder) and all((student / name).is_file() for name in (CONFIG, WEIGHTS))


def _tokenizer_files(teacher: Path) -> list[Path]:
    files = sorted({file for pattern in TOKENIZER_FILES for file in teacher.glob(pattern)})
    if not files or not store.is_intact(teacher):
        raise UsageError(
            f"{teacher}: the teacher, whose tokenizer its students share, is missing or damaged; "
            "sweeps/run.py --resume makes it again"
        )
    return files


def _check_targets(to: Path, targets: Sequence[Path], force: bool) -> None:
    existing = next(path for path in (to, *to.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UsageError(f"--to {to}: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--to {to}: no permission to write in {existing}")
    taken = [target for target in targets if os.path.lexists(target)]
    if taken and not force:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise UsageError(f"{taken[0]}{more} exists already; --force replaces it")


def _write(
    target: Path,
    student: Path,
    tokenizer: Sequence[Path],
    sweep: SweepRecord,
    trial: TrialRecord,
    task: Task,
    convert: Convert | None,
) -> ExportedFiles | None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as room:
        new = Path(room) / "new"
        with store.staging_dir(new) as folder:
            shutil.copyfile(student / WEIGHTS, folder / WEIGHTS)
            for file in tokenizer:
                shutil.copyfile(file, folder / file.name)
            (folder / CONFIG).write_text(_config(student / CONFIG, task))
            forms = convert(folder, trial) if convert else None
            (folder / "README.md").write_text(model_card(sweep, trial, task, forms), encoding="utf-8")
            converted = {"onnx": forms.facts()} if forms else {}
            records.write_json(folder / "ikd.json", _facts(sweep, trial) | converted)
        store.swap_dir(new, target)
    return forms


def _config(path: Path, task: Task) -> str:
    """The student's configuration with the task's label names, which a ready-made teacher may lack."""
    names = list(task.labels) or ["score"]
    config = json.loads(path.read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    config["problem_type"] = "regression" if task.is_regression else "single_label_classification"
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _ready(assistant: dict[str, Any]) -> dict[str, Any]:
    return assistant | {"metrics": null_nonfinite(assistant.get("metrics", {}))}


def _facts(sweep: SweepRecord, trial: TrialRecord) -> dict[str, Any]:
    teacher = {name: value for name, value in sweep.teacher.items() if name != "assistants"}
    assistant = sweep.assistant_of(trial.params)
    return {
        "task": sweep.task,
        "data": sweep.data,
        "generated": sweep.data["generated"],
        "teacher": teacher | {"metrics": null_nonfinite(teacher["metrics"])},
        **({"assistant": _ready(assistant)} if assistant else {}),
        "sweep": {"name": sweep.name, "seed": sweep.seed, "objectives": sweep.objectives},
        "trial": {"id": trial.id, "number": trial.number, "duration_s": trial.duration_s},
        "params": trial.params,
        "layer_map": trial.layer_map,
        "metrics": null_nonfinite(trial.metrics),
        "command": sweep.command,
        "code_version": sweep.code_version,
        "exported_by": code_version(),
    }
