"""Task files and tables that a command line must refuse, and words of its error message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ikd_ray.storage.store import digest
from tests.helpers.invalid_folders import SWEEP, sweep
from tests.helpers.invalid_inputs import MakeInput, file, folder, named_pipe, symlink_loop

TASK = "name: own\ntext: text\nlabel: label\nlabels: {0: no, 1: yes}\nmetric: mcc\n"


def task(text: str | bytes = TASK) -> MakeInput:
    return file(text, "own.yaml")


TASK_FILES: dict[str, tuple[MakeInput | str, tuple[str, ...]]] = {
    "missing": ("nowhere.yaml", ("nowhere.yaml", "no such file", "task file")),
    "a folder": (lambda here: folder(here, "x.yaml"), ("x.yaml", "is a directory")),
    "a pipe": (lambda here: named_pipe(here, "x.yaml"), ("x.yaml", "no ordinary file")),
    "a circle": (lambda here: symlink_loop(here, "x.yaml"), ("x.yaml", "levels of symbolic links")),
    "with a NUL": ("a\0.yaml", ("--task", r"a\x00.yaml")),
    "of another ending": (file(TASK, "own.txt"), ("own.txt", "is not known", "FILE.yaml")),
    "every mistake": (
        task("name: x y\ntext: a\nlabel: a\nlabels: [a]\nmetric: f2\nfiles: {dev: /a.csv}\n"),
        ("own.yaml:1", "own.yaml:3", "own.yaml:4", "own.yaml:5", "own.yaml:6"),
    ),
}


def tables(here: Path) -> Path:
    data = folder(here, "tables")
    file("text,label\na,2\n", "train.csv")(data)
    return data


# Further mistakes are in tests/data/test_task_file.py and tests/data/test_readers.py.
TABLES: dict[str, tuple[MakeInput | str | None, tuple[str, ...]]] = {
    "not given": (None, ("--data-dir is missing", "train.csv, dev.csv", "own")),
    "missing": ("nowhere", ("--data-dir", "nowhere: there is no such folder", "train.csv, dev.csv")),
    "unknown label": (tables, ("train.csv line 2", "'2'", "0, 1")),
}


def begun(definition: str | None, **changes: Any) -> MakeInput:
    """Write an output folder with the sweep `begun` of the task `own`, and its copy of the task file."""
    identity = '["own", 1, ["no", "yes"], ["mcc"], "mcc"]'
    record = {"task": "own", "data": SWEEP["data"] | {"task": digest(identity)}}

    def make(here: Path) -> Path:
        output = sweep(**(record | changes))(here)
        if definition is not None:
            file(definition, "task.yaml")(output / "begun")
        return output

    return make


# Refused by `run.py --resume begun`, `report.py --check begun` and `export.py --task own --name begun`.
TASK_DEFINITIONS: dict[str, tuple[MakeInput, tuple[str, ...]]] = {
    "missing": (begun(None), ("task.yaml", "missing", "'own'")),
    "another's": (begun(TASK.replace("own", "others")), ("task.yaml", "others", "'own'")),
    "other classes": (begun(TASK.replace("0: no, 1: yes", "0: yes, 1: no")), ("task.yaml", "bring back")),
    "another metric": (begun(TASK.replace("mcc", "accuracy")), ("task.yaml", "bring back")),
    "truncated": (begun(TASK[:30]), ("task.yaml:1", "labels: missing")),
    "a name that leaves its folder": (begun(TASK, task="../own"), ("own'",)),
}
