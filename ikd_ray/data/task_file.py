"""Custom tasks: a YAML file that names the columns of texts and labels, and the metrics."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from ikd_ray.errors import UsageError
from ikd_ray.tasks import CLASS_METRICS, METRICS, SCORE_METRICS, TASKS, GlueTask, Task, get_task
from ikd_ray.yaml_file import AS_LIST, YamlFile, distinct, mapping, mistakes_at, quote

SPLITS = ("train", "dev", "test")
UNLABELLED_KEY = "unlabelled"  # its key in `files`
TASK_FILE = "task.yaml"  # in folders that keep a task's definition
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
_REQUIRED = {
    "name": "name: reviews",
    "text": "text: COLUMN, or [COLUMN, COLUMN] for pairs",
    "label": "label: COLUMN",
    "metric": "metric: accuracy",
}


@dataclass(frozen=True)
class CustomTask(Task):
    """A task that a file defines. `text_columns` are names of columns in its tables."""

    files: tuple[tuple[str, str], ...] = ()
    """Pairs of a split's name and its table, a path relative to the data folder; empty for a data set of the hub."""
    unlabelled_file: str = field(default="", compare=False)
    """Path, relative to the data folder, of a table of texts without labels; empty where there is none."""
    split: float = 0.0
    """Share of train that dev is drawn from; 0 where dev has a source of its own."""
    split_seed: int = 0
    dataset: str = ""
    """Name of a data set on the Hugging Face hub; empty for tables."""
    config: str = ""
    """Name of the data set's configuration; empty for its default."""
    revision: str = ""
    """Commit, tag or branch of the data set; empty for the newest."""
    hub_splits: tuple[tuple[str, str], ...] = ()
    """Pairs of a split's name and its name in the data set; empty for tables."""
    language: str = field(default="", compare=False)
    """Code of the texts' language, for model cards; empty if it is not known."""
    definition: str = field(default="", compare=False, repr=False)
    """The file as written."""


def nfc(text: str) -> str:
    """Return text in Unicode's composed form: programs write one name, such as `é`, in two ways."""
    return unicodedata.normalize("NFC", text)


def is_task_file(value: str) -> bool:
    """Return whether a flag's value is the path of a task file, not the name of a task."""
    return value.lower().endswith((".yaml", ".yml"))


def find_task(value: str) -> GlueTask | CustomTask:
    """Return the GLUE task of that name, or the task that the file at that path defines.

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
    """Write a custom task's definition to a folder, for `kept_task`; a GLUE task needs none."""
    if isinstance(task, CustomTask):
        (folder / TASK_FILE).write_bytes(task.definition.encode())


def kept_task(folder: Path, name: str) -> GlueTask | CustomTask:
    """Return the task of that name: a GLUE task, or the one that `keep_task` wrote to the folder.

    Raises:
        UsageError: it is neither.
    """
    if name in TASKS:
        return TASKS[name]
    path = folder / TASK_FILE
    if not os.path.lexists(path):
        raise UsageError(
            f"{path}: missing; it defines the task {name!r}, which is none of: {', '.join(TASKS)}; restore it"
        )
    task = load_task(path)
    if task.name != name:
        raise UsageError(
            f"{path}: defines the task {task.name}, but {name!r} is needed; restore the original file"
        )
    return task


def load_task(path: Path) -> CustomTask:
    """Read and check a task file.

    Raises:
        UsageError: `path:line: key: what is wrong; what would be right`, a line for each mistake.
    """
    file = YamlFile(path, "task", "at least name, text, label, labels and metric", text_fields=_TEXT_FIELDS)
    values = file.validate(_SCHEMA)
    for name, example in _REQUIRED.items():
        if name not in file.data:
            file.mistake((name,), f"missing; write `{example}`")
    _check_columns(file, values)
    _check_labels_or_range(file)
    _check_metrics(file, values)
    _check_positive(file, values)
    _check_sources(file, values)
    file.raise_mistakes()
    labels = values.get("labels", {})
    classes = tuple(labels.values())
    is_hub = "dataset" in values
    sources = tuple(_sources(values, is_hub).items())
    return CustomTask(
        name=values["name"],
        text_columns=values["text"],
        labels=classes,
        metrics=values.get("metrics", (values["metric"],)),
        metric=values["metric"],
        file_label=values["label"],
        file_labels=tuple(labels),
        score_range=values.get("range", (0.0, 0.0)),
        positive_index=classes.index(values["positive"]) if "positive" in values else 1,
        files=() if is_hub else sources,
        unlabelled_file=values.get("files", {}).get(UNLABELLED_KEY, ""),
        split=values.get("split", 0.0),
        split_seed=values.get("split_seed", 0),
        dataset=values.get("dataset", ""),
        config=values.get("config", ""),
        revision=values.get("revision", ""),
        hub_splits=sources if is_hub else (),
        language=values.get("language", ""),
        definition=file.text,
    )


def _check_name(name: str) -> str:
    # Folders, files, experiments and sweeps are named after it; a point would make it the name of a file.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        raise ValueError("use letters, digits, '_' and '-', at most 40, a letter or digit first")
    if name.lower() in TASKS:
        raise ValueError(f"{name} is a GLUE task's name; choose another")
    return name


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains a control character; remove it")
    return text


def _check_table(name: str) -> str:
    path = PurePosixPath(name)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"the ending tells the format: give one of {', '.join(ENDINGS)}")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("give a path below --data-dir")
    return name


def _check_text(columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(columns) > 2:
        raise ValueError("give one column, or two for pairs")
    return columns


def _check_labels(labels: list[str] | dict[str, str]) -> dict[str, str]:
    """Return the name of each class by its label in the tables."""
    entries: list[tuple[Any, str]] = list(labels.items() if isinstance(labels, dict) else enumerate(labels))
    names = [name for _, name in entries]
    written = [nfc(key) for key in labels]
    if len(names) < 2:
        raise ValueError("give at least two classes, as in [negative, positive]")
    mistakes: dict[str | int, str] = {
        key: f"{name} is given twice; classes need names of their own"
        for index, (key, name) in enumerate(entries)
        if name in names[:index]
    }
    mistakes |= {
        key: f"{written[index]} is given twice; keep one"
        for index, key in enumerate(labels if isinstance(labels, dict) else ())
        if written[index] in written[:index]
    }
    if "" in labels:
        mistakes[""] = "got '' as a label; give it as the tables write it"
    if mistakes:
        raise mistakes_at(mistakes)
    return dict(zip(written, names, strict=True))


def _check_range(bounds: list[float]) -> tuple[float, float]:
    if len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise ValueError("give the least and the greatest score, as in [0, 5]")
    return bounds[0], bounds[1]


def _check_dataset(name: str) -> str:
    # Imported late: it takes a while, and few tasks need it.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(
            "give a name on the hub, as in ORGANIZATION/NAME; a copy in a folder goes by --data-dir"
        ) from None
    return name


def _check_language(code: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
        raise ValueError("give the code of a language, as in en, de or pt-BR")
    return code


_TABLES = {"train": "train.csv", "dev": "dev.csv"}
_HUB_SPLITS = {"train": "train", "dev": "validation"}
_WORD = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_printable)]
_NAME = Annotated[_WORD, AfterValidator(nfc)]
_FILE = Annotated[_WORD, AfterValidator(_check_table)]
_METRIC: Any = Literal[METRICS]
_TEXT_FIELDS = (
    *("name", "text", "label", "labels", "positive", "metric", "metrics", "files"),
    *("dataset", "config", "revision", "splits", "language"),
)
_SCHEMA = mapping(
    {
        "name": Annotated[str, AfterValidator(_check_name)],
        "text": Annotated[distinct(_NAME), AfterValidator(_check_text), AS_LIST],
        "label": _NAME,
        "labels": Annotated[
            Annotated[list[_NAME], Tag("a list")] | Annotated[dict[str, _NAME], Tag("a mapping")],
            Discriminator(lambda labels: "a mapping" if isinstance(labels, dict) else "a list"),
            AfterValidator(_check_labels),
            AS_LIST,
        ],
        "positive": _NAME,
        "range": Annotated[list[float], AfterValidator(_check_range), AS_LIST],
        "metric": _METRIC,
        "metrics": Annotated[distinct(_METRIC), AS_LIST],
        "files": mapping(dict.fromkeys((*SPLITS, UNLABELLED_KEY), _FILE)),
        "split": Annotated[float, Field(gt=0, lt=1)],
        "split_seed": Annotated[int, Field(ge=0, lt=2**31)],
        "dataset": Annotated[_WORD, AfterValidator(_check_dataset)],
        "config": _WORD,
        "revision": _WORD,
        "splits": mapping(dict.fromkeys(SPLITS, _WORD)),
        "language": Annotated[_WORD, AfterValidator(_check_language)],
    }
)


def _check_columns(file: YamlFile, values: dict[str, Any]) -> None:
    if values.get("label") in values.get("text", ()):
        file.mistake(("label",), f"{values['label']} is given twice; a column has one use")


def _check_labels_or_range(file: YamlFile) -> None:
    advice = "or `range: [LEAST, GREATEST]` for scores"
    if "labels" not in file.data and "range" not in file.data:
        file.mistake(("labels",), f"missing; write `labels: [CLASS, CLASS]`, {advice}")
    elif "labels" in file.data and "range" in file.data:
        file.mistake(
            ("range",), "both labels and range are given; keep one: labels for classes, range for scores"
        )


def _check_metrics(file: YamlFile, values: dict[str, Any]) -> None:
    """Note metrics that do not suit the labels."""
    classes = 0 if "range" in file.data else len(values.get("labels", ("", "")))
    kind, suitable = ("classes", CLASS_METRICS) if classes else ("scores", SCORE_METRICS)
    main, metrics = values.get("metric"), values.get("metrics", ())
    given = [(("metric",), main)] * bool(main) + [
        (("metrics", index), name) for index, name in enumerate(metrics)
    ]
    for location, name in given:
        if name not in suitable:
            file.mistake(location, f"{name} does not measure {kind}; one of: {', '.join(suitable)}")
        elif name == "f1" and classes > 2:
            file.mistake(location, f"f1 is for two classes, here are {classes}; write macro_f1")
    if main and metrics and main not in metrics:
        file.mistake(("metrics",), f"{main} is missing, which trials are compared by; add it")


def _check_positive(file: YamlFile, values: dict[str, Any]) -> None:
    """Note a positive class that is none of the classes, or is given without f1."""
    if "positive" not in values:
        return
    classes, metrics = values.get("labels", {}).values(), (values.get("metric"), *values.get("metrics", ()))
    if "f1" not in metrics:
        # f1 is for two classes.
        advice = "add it, or leave positive out" if len(classes) == 2 else "leave positive out"
        file.mistake(
            ("positive",),
            f"names the class whose f1 is measured, but f1 is not among the metrics; {advice}",
        )
    elif classes and values["positive"] not in classes:
        shown = quote(values["positive"])
        file.mistake(
            ("positive",), f"{shown} is none of the classes; give one of: {', '.join(map(quote, classes))}"
        )


def _sources(values: dict[str, Any], is_hub: bool) -> dict[str, str]:
    """Return the table of each split with labels, or its name in a data set of the hub, in the order of `SPLITS`."""
    given = values.get("splits" if is_hub else "files", {})
    names = (_HUB_SPLITS if is_hub else _TABLES) | given
    if "split" in values and "dev" not in given:
        del names["dev"]
    return {split: names[split] for split in SPLITS if split in names}


def _check_sources(file: YamlFile, values: dict[str, Any]) -> None:
    """Note tables, splits and settings of a data set that contradict each other."""
    is_hub = "dataset" in file.data
    key, kind = ("splits", "split") if is_hub else ("files", "file")
    if is_hub and "files" in file.data:
        advice = "keep one: dataset for the hub, files for tables (texts without labels go by --unlabelled)"
        file.mistake(("files",), f"both dataset and files are given; {advice}")
    for name in ("config", "revision", "splits"):
        if name in file.data and not is_hub:
            file.mistake((name,), "is for a data set of the hub; write `dataset: NAME`, or leave it out")
    if "split" in values and "dev" in values.get(key, {}):
        file.mistake(
            ("split",), f"draws dev from train, but {key} has a {kind} for dev; leave out one of the two"
        )
    if "split_seed" in file.data and "split" not in file.data:
        file.mistake(("split_seed",), "nothing is drawn without split; write `split: 0.1`, or leave it out")
    if key not in values:
        return
    paths = {split: PurePosixPath(nfc(name)) for split, name in _sources(values, is_hub).items()}
    if paths["train"] == paths.get("dev"):
        file.mistake((key,), f"train and dev are one {kind}; students are compared on other examples")
    if "test" in paths and paths["test"] in (paths["train"], paths.get("dev")):
        other = "train" if paths["test"] == paths["train"] else "dev"
        file.mistake(
            (key,), f"test and {other} are one {kind}; give test examples of its own, or leave it out"
        )
    unlabelled = values[key].get(UNLABELLED_KEY)
    if unlabelled and PurePosixPath(nfc(unlabelled)) in paths.values():
        file.mistake(
            (key,), f"{UNLABELLED_KEY} is a file with labels; give one of other texts, or leave it out"
        )
