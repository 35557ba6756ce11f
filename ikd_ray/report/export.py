"""The students of a sweep's front as Hugging Face folders."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from ikd_ray.config import Regime
from ikd_ray.data import store
from ikd_ray.errors import UsageError
from ikd_ray.report import pareto, records
from ikd_ray.report.records import SweepRecord, TrialRecord
from ikd_ray.report.version import code_version
from ikd_ray.tasks import Task

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# What tokenizers of the supported families save; the teacher's folder holds other files, too.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)

WARNING = f"""\
> [!WARNING]
> **{pareto.GENERATED}.** This student learned from, and was measured on, sentences that a grammar generated.
> Its metrics say nothing about the real task and compare with no published number."""


@dataclass(frozen=True)
class Exported:
    """A student of the front: the folder it is in now, or why there is none."""

    trial: TrialRecord
    folder: Path | None
    problem: str = ""


def choose_sweep(output: Path, task: Task, name: str | None = None) -> Path:
    """The folder of the sweep with that name; without one, of the task's newest that has a finished trial.

    Raises:
        UsageError: there is none, it is another task's, or the name is not one of a folder in `output`.
    """
    if name is None:
        try:
            sweeps = records.find_sweeps(output, task.name)
        except OSError as error:
            raise UsageError(f"--output {output}: cannot be read ({error.strerror})") from None
        if not sweeps:
            raise UsageError(f"--output {output}: no sweep of {task.name} there; sweeps/run.py makes one")
        finished = (folder for folder in reversed(sweeps) if _finished(_read_trials(folder)))
        folder = next(finished, None)
        if folder is None:
            raise UsageError(f"--output {output}: no sweep of {task.name} there has a finished trial")
        return folder
    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(f"--name {name!r}: give a sweep's name, not a path")
    folder = output / name
    found = records.read_sweep(folder).task
    if found != task.name:
        raise UsageError(f"--name {name!r}: that is a sweep of {found}, not of {task.name}")
    return folder


def export_front(sweep_folder: Path, to: Path, *, force: bool = False) -> list[Exported]:
    """Write each student of the front to `to/<task>-<regime>-<depth>L-<trial id>/`, whole or not at all.

    A folder holds model.safetensors, config.json with named labels, the teacher's tokenizer (from the cache
    beside the sweep), README.md (a model card), ikd.json (the same facts) and manifest.json (checksums). A
    damaged trial is left out and said to be.

    Args:
        force: replace folders that exist; each stays until its successor is complete.

    Raises:
        UsageError: no sweep, no finished trial, no tokenizer, a target exists, or `to` cannot be written.
    """
    sweep, task = records.read_sweep(sweep_folder), records.read_task(sweep_folder)
    members = pareto.front(_read_trials(sweep_folder), sweep.objectives)
    if not members:
        raise UsageError(f"{sweep_folder}: no finished trial to export, or none whose objectives are finite")
    tokenizer = _tokenizer_files(sweep_folder, sweep)
    targets = [to / _folder_name(sweep, trial) for trial in members]
    _check_targets(to, targets, force)
    made = []
    for trial, target in zip(members, targets, strict=True):
        source = records.trial_folder(sweep_folder, trial.id)
        if not _is_whole(source):
            made.append(
                Exported(trial, None, f"{source}: damaged, not exported (its checksums do not match)")
            )
            continue
        try:
            _write(target, source / records.STUDENT, tokenizer, sweep, trial, task)
        except OSError as error:
            raise UsageError(
                f"--to {to}: cannot write {target.name} there ({error.strerror or error})"
            ) from None
        made.append(Exported(trial, target))
    return made


def export_student(sweep_folder: Path, sweep: SweepRecord, trial: TrialRecord, target: Path) -> None:
    """Write one finished trial's student to `target`, as `export_front` does.

    Raises:
        UsageError: the trial is damaged, or there is no tokenizer.
        OSError: it cannot be written.
    """
    source = records.trial_folder(sweep_folder, trial.id)
    if not _is_whole(source):
        raise UsageError(f"{source}: damaged, not exported (its checksums do not match)")
    tokenizer, task = _tokenizer_files(sweep_folder, sweep), records.read_task(sweep_folder)
    _write(target, source / records.STUDENT, tokenizer, sweep, trial, task)


def _read_trials(sweep_folder: Path) -> list[TrialRecord]:
    try:
        trials = records.read_trials(sweep_folder)
        for trial in trials:  # names of folders are made of these
            if trial.params.get("regime") not in get_args(Regime):
                raise ValueError(f"{trial.id}: regime: unknown (got {trial.params.get('regime')!r})")
    except (OSError, ValueError) as error:
        raise UsageError(f"{sweep_folder}: a {records.TRIAL_FILE} in it cannot be read ({error})") from None
    return trials


def _finished(trials: Sequence[TrialRecord]) -> bool:
    return any(trial.status == "finished" for trial in trials)


def _folder_name(sweep: SweepRecord, trial: TrialRecord) -> str:
    return f"{sweep.task}-{trial.params['regime']}-{len(trial.layer_map)}L-{trial.id}"


def _is_whole(trial_folder: Path) -> bool:
    student = trial_folder / records.STUDENT
    return store.is_intact(trial_folder) and all((student / name).is_file() for name in (CONFIG, WEIGHTS))


def _tokenizer_files(sweep_folder: Path, sweep: SweepRecord) -> list[Path]:
    key = sweep.teacher.get("key")
    if not isinstance(key, str) or key in ("", ".", "..") or Path(key).name != key:
        raise UsageError(f"{sweep_folder}: its {records.SWEEP_FILE} names no teacher (got {key!r})")
    teacher = sweep_folder.parent / "cache" / "teachers" / key
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
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as room:
        new, old = Path(room) / "new", Path(room) / "old"
        with store.aside(new) as folder:
            shutil.copyfile(student / WEIGHTS, folder / WEIGHTS)
            for file in tokenizer:
                shutil.copyfile(file, folder / file.name)
            (folder / CONFIG).write_text(_config(student / CONFIG, task))
            (folder / "README.md").write_text(_model_card(sweep, trial, task), encoding="utf-8")
            records.write_json(folder / "ikd.json", _facts(sweep, trial))
        # A folder cannot be renamed onto one that has files: the old one steps aside, and goes with the room.
        if os.path.lexists(target):
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if os.path.lexists(old):
                os.rename(old, target)
            raise


def _config(path: Path, task: Task) -> str:
    """The student's configuration with the task's label names, which a ready-made teacher may lack."""
    names = list(task.labels) or ["score"]
    config = json.loads(path.read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    config["problem_type"] = "regression" if task.is_regression else "single_label_classification"
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _facts(sweep: SweepRecord, trial: TrialRecord) -> dict[str, Any]:
    return {
        "task": sweep.task,
        "data": sweep.data,
        "generated": sweep.data["generated"],
        "teacher": sweep.teacher | {"metrics": pareto.json_ready(sweep.teacher["metrics"])},
        "sweep": {"name": sweep.name, "seed": sweep.seed, "objectives": sweep.objectives},
        "trial": {"id": trial.id, "number": trial.number, "duration_s": trial.duration_s},
        "params": trial.params,
        "layer_map": trial.layer_map,
        "metrics": pareto.json_ready(trial.metrics),
        "command": sweep.command,
        "code_version": sweep.code_version,
        "exported_by": code_version(),
    }


def _model_card(sweep: SweepRecord, trial: TrialRecord, task: Task) -> str:
    """The text of README.md: YAML front matter, then everything that made this student. Values are exact."""
    depth = len(trial.layer_map)
    alone = trial.params["regime"] == "hard"
    made = "trained on gold labels alone, its weights initially from" if alone else "distilled from"
    parts = [
        _front_matter(sweep),
        f"# {task.name}: {depth}-layer student ({trial.params['regime']})",
        WARNING if sweep.data["generated"] else "",
        f"A {depth}-layer encoder {made} `{_inline(sweep.teacher['name'])}` "
        f"({sweep.teacher['layers']} layers) for the {task.title}. "
        f"Trial `{trial.id}` of sweep `{_inline(sweep.name)}`, on its Pareto front "
        f"({', '.join(f'{name} {direction}' for name, direction in sweep.objectives.items())}).",
        "## Use",
        _usage(sweep, task),
        "## Results",
        _results(sweep, trial),
        _size(trial),
        "## Training",
        _table(("", ""), _provenance(sweep, trial)),
        "### Layer map",
        _table(("student layer", "teacher layer"), enumerate(trial.layer_map, start=1)),
        "### Hyperparameters",
        _table(("name", "value"), trial.params.items()),
        "## Made with",
        f"    {_inline(sweep.command)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(sweep: SweepRecord) -> str:
    tags = ["knowledge-distillation", "internal-distillation", "ikd-ray", sweep.task]
    if sweep.data["generated"]:
        tags.append("generated-data")
    head = {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": tags}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _usage(sweep: SweepRecord, task: Task) -> str:
    example = '{"text": "One.", "text_pair": "Another."}' if task.is_pair else '"A sentence."'
    labels = "A score, not a class" if task.is_regression else f"Labels: {', '.join(task.labels)}"
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'classify = pipeline("text-classification", "PATH/OF/THIS/FOLDER")\n'
        f"print(classify({example}))\n```\n\n"
        f"{labels}. In training, inputs were cut at {sweep.data['max_length']} tokens."
    )


def _results(sweep: SweepRecord, trial: TrialRecord) -> str:
    taught = sweep.teacher["metrics"]
    names = sorted({*trial.metrics, *taught})
    return _table(
        ("metric", "student", "teacher"),
        ((name, trial.metrics.get(name, ""), taught.get(name, "")) for name in names),
    )


def _size(trial: TrialRecord) -> str:
    def shown(metric: str, form: str) -> str:
        value = trial.metrics.get(metric, math.nan)
        return form.format(value) if math.isfinite(value) else "unknown"

    return (
        f"Parameters: {shown('student/params', '{:,.0f}')}, "
        f"without embeddings {shown('student/encoder_params', '{:,.0f}')}. "
        f"Weights: {shown('student/size_mb', '{:,.1f} MB')}. "
        f"Latency of one sequence, 128 tokens, one CPU thread: {shown('student/latency_ms', '{:,.1f} ms')}."
    )


def _provenance(sweep: SweepRecord, trial: TrialRecord) -> list[tuple[str, Any]]:
    source = f"{sweep.data['source']}: {sweep.data['description']}"
    return [
        ("task", sweep.task),
        ("data", f"**{pareto.GENERATED}.** {source}" if sweep.data["generated"] else source),
        ("data fingerprint", sweep.data["fingerprint"]),
        ("teacher", f"{sweep.teacher['name']}, {sweep.teacher['layers']} layers ({sweep.teacher['key']})"),
        ("regime", trial.params["regime"]),
        ("sweep", f"{sweep.name}, seed {sweep.seed}"),
        ("trial", f"{trial.id}, number {trial.number}, {trial.duration_s:.1f} s"),
        ("code version", sweep.code_version),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return _inline(str(value)).replace("|", "\\|")


def _inline(text: str) -> str:
    """The text on one line, so that it cannot end its table row, quote or code span."""
    return " ".join(text.split()).replace("`", "'")
