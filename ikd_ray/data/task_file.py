"""Tasks of a user's own: a YAML file that says which columns hold texts and labels, and what is measured."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml
from pydantic import AfterValidator, Field

from ikd_ray.errors import UsageError
from ikd_ray.tasks import CLASS_METRICS, METRICS, SCORE_METRICS, TASKS, GlueTask, Task, get_task
from ikd_ray.yaml_file import Knob, YamlFile

TASK_FILE = "task.yaml"  # in folders that keep what a task is
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")

_NAMES = ("name", "text", "label", "labels", "range", "metric", "metrics", "files")
_SPLITS = ("train", "dev")
_EXAMPLES = {
    "name": "name: reviews",
    "text": "text: COLUMN, or [COLUMN, COLUMN] for pairs",
    "label": "label: COLUMN",
    "metric": "metric: accuracy",
}


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        raise ValueError("use letters, digits, '_' and '-', at most 40, a letter or digit first")
    if name.lower() in TASKS:
        raise ValueError(f"{name} is a GLUE task's name; choose another")
    return name


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds a control character; leave that out")
    return text


def _table(name: str) -> str:
    path = PurePosixPath(name)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"the ending tells the format: give one of {', '.join(ENDINGS)}")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("give a path below --data-dir")
    return name


# What folders, files, experiments and sweeps are called after; it has no point, which would make it a file's name.
_NAME = Knob(str, AfterValidator(_name))
_WORD = Knob(str, Field(min_length=1, max_length=200), AfterValidator(_printable))
_FILE = Knob(str, Field(min_length=1, max_length=200), AfterValidator(_printable), AfterValidator(_table))
_NUMBER = Knob(float)
_METRIC = Knob(Literal[METRICS])


@dataclass(frozen=True)
class CustomTask(Task):
    """A task that a file defines. `text_columns` are the names of its tables' columns."""

    files: tuple[tuple[str, str], ...] = ()
    """Each split's name and its table, a path below the data folder."""
    definition: str = field(default="", compare=False, repr=False)
    """The file as written."""


def is_task_file(value: str) -> bool:
    """Whether a flag's value is a task file's path, and no task's name."""
    return value.lower().endswith((".yaml", ".yml"))


def find_task(value: str) -> GlueTask | CustomTask:
    """The task that `--task` names: GLUE's of that name, or the one that the file at that path defines.

    Raises:
        UsageError: there is no such task, or the file is wrong.
    """
    if is_task_file(value):
        return load_task(Path(value))
    try:
        return get_task(value)
    except UsageError as error:
        raise UsageError(f"{error}; or a task file, FILE.yaml") from None


def keep_task(folder: Path, task: Task) -> None:
    """Leave in a folder what `kept_task` needs to make the same task of its name: nothing, for one of GLUE."""
    if isinstance(task, CustomTask):
        (folder / TASK_FILE).write_bytes(task.definition.encode())


def kept_task(folder: Path, name: str) -> GlueTask | CustomTask:
    """The task of that name: GLUE's, or the one whose definition `keep_task` left in the folder.

    Raises:
        UsageError: it is neither.
    """
    if name in TASKS:
        return TASKS[name]
    path = folder / TASK_FILE
    if not os.path.lexists(path):
        raise UsageError(
            f"{path}: missing; it defines the task {name!r}, which is none of: {', '.join(TASKS)}; bring it back"
        )
    task = load_task(path)
    if task.name != name:
        raise UsageError(
            f"{path}: defines the task {task.name}, but {name!r} is needed; bring back the file as it was"
        )
    return task


def load_task(path: Path) -> CustomTask:
    """Reads and validates a task file.

    Raises:
        UsageError: `path:line: key: what is wrong; what would be right`, a line for each mistake.
    """
    file = YamlFile(path, "task", "at least name, text, label, labels and metric")
    nodes = file.mapping(file.root, "", _NAMES)
    if isinstance(file.root, yaml.MappingNode):
        for name, example in _EXAMPLES.items():
            if name not in nodes:
                file.mistake(file.root, name, f"missing; write `{example}`")
    texts, label = _columns(file, nodes)
    written, names, score_range = _labels(file, nodes)
    metric, metrics = _metrics(file, nodes, len(names))
    task = CustomTask(
        name=file.value(nodes["name"], "name", _NAME, "") if "name" in nodes else "",
        text_columns=texts,
        labels=names,
        metrics=metrics,
        metric=metric,
        file_label=label,
        file_labels=written,
        score_range=score_range,
        files=_files(file, nodes),
        definition=file.text,
    )
    file.raise_mistakes()
    return task


def _listed(node: yaml.Node) -> list[yaml.Node]:
    """A list's nodes; one value is a list of it."""
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _columns(file: YamlFile, nodes: Mapping[str, yaml.Node]) -> tuple[tuple[str, ...], str]:
    """The texts' columns and the label's."""
    found = file.values(_listed(nodes["text"]), "text", _WORD) if "text" in nodes else []
    if "text" in nodes and len(_listed(nodes["text"])) not in (1, 2):
        file.mistake(nodes["text"], "text", "give one column, or two for pairs")
    if "label" in nodes:
        found += file.values([nodes["label"]], "label", _WORD)
    _refuse_twice(file, found, "text and label", "a column has one use")
    columns = [name for name, _ in found] or [""]
    return tuple(columns[:-1]), columns[-1]


def _refuse_twice(file: YamlFile, found: Collection[tuple[str, yaml.Node]], key: str, rule: str) -> None:
    seen: set[str] = set()
    for name, node in found:
        if name in seen:
            file.mistake(node, key, f"{name} is given twice; {rule}")
        seen.add(name)


def _labels(
    file: YamlFile, nodes: Mapping[str, yaml.Node]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[float, float]]:
    """Labels as the tables write them, the classes' names in the same order; and the range of scores."""
    if ("labels" in nodes) == ("range" in nodes):
        which = "both given; keep one" if "range" in nodes else "missing; write `labels: [CLASS, CLASS]`"
        file.mistake(
            nodes.get("range", file.root), "labels", f"{which}, or `range: [LEAST, GREATEST]` for scores"
        )
    if "range" in nodes:
        return (), (), _range(file, nodes["range"])
    if "labels" not in nodes:  # the metrics are looked at nevertheless
        return ("", ""), ("", ""), (0.0, 0.0)
    node = nodes["labels"]
    if isinstance(node, yaml.MappingNode):
        entries = file.mapping(node, "labels")
        for text, at in entries.items():
            if not text or not text.isprintable():
                file.mistake(at, "labels", f"got {text!r} as a label; give it as the tables write it")
        written = list(entries.items())
        names = file.values(entries.values(), "labels", _WORD)
    else:
        written = names = file.values(_listed(node), "labels", _WORD)
    if not isinstance(node, yaml.CollectionNode) or len(node.value) < 2:
        file.mistake(node, "labels", "give at least two classes, as in [negative, positive]")
    _refuse_twice(file, names, "labels", "classes need names of their own")
    return tuple(text for text, _ in written), tuple(name for name, _ in names), (0.0, 0.0)


def _range(file: YamlFile, node: yaml.Node) -> tuple[float, float]:
    bounds = [bound for bound, _ in file.values(_listed(node), "range", _NUMBER)]
    if len(bounds) == len(_listed(node)) and (len(bounds) != 2 or bounds[0] >= bounds[1]):
        file.mistake(node, "range", "give the least and the greatest score, as in [0, 5]")
    return (bounds[0], bounds[-1]) if bounds else (0.0, 0.0)


def _metrics(file: YamlFile, nodes: Mapping[str, yaml.Node], classes: int) -> tuple[str, tuple[str, ...]]:
    """The metric that trials are compared by, and all that are measured."""
    main = file.values([nodes["metric"]], "metric", _METRIC) if "metric" in nodes else []
    more = file.values(_listed(nodes["metrics"]), "metrics", _METRIC) if "metrics" in nodes else []
    _refuse_twice(file, more, "metrics", "keep one")
    suitable = CLASS_METRICS if classes else SCORE_METRICS
    for name, node in main + more:
        if name not in suitable:
            kind = "classes" if classes else "scores"
            file.mistake(node, "metric", f"{name} does not measure {kind}; one of: {', '.join(suitable)}")
        elif name == "f1" and classes > 2:
            file.mistake(node, "metric", f"f1 is of two classes, here are {classes}; write macro_f1")
    metrics = tuple(dict.fromkeys(name for name, _ in more or main))
    if main and main[0][0] not in metrics:
        file.mistake(nodes["metrics"], "metrics", f"{main[0][0]} is missing, by which trials are compared")
    return main[0][0] if main else "", metrics


def _files(file: YamlFile, nodes: Mapping[str, yaml.Node]) -> tuple[tuple[str, str], ...]:
    given = file.mapping(nodes["files"], "files", _SPLITS) if "files" in nodes else {}
    found = {split: f"{split}.csv" for split in _SPLITS}
    for split, node in given.items():
        found[split] = file.value(node, f"files.{split}", _FILE, found[split])
    if len({PurePosixPath(name) for name in found.values()}) < len(found):
        file.mistake(
            nodes["files"], "files", "train and dev are one file; students are compared on other examples"
        )
    return tuple(found.items())
