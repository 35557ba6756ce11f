"""Task files and tables that a command line must refuse, and words of its error message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ikd_ray.storage.store import digest
from tests.helpers.invalid_folders import SWEEP, sweep
from tests.helpers.invalid_inputs import MakeInput, file, folder, named_pipe, symlink_loop

TASK = "name: own\ntext: text\nlabel: label\nlabels: {0: no, 1: yes}\nmetric: mcc\n"
GOOD = "text,label\nw1 w2,1\n"


def task(text: str | bytes = TASK) -> MakeInput:
    return file(text, "own.yaml")


TASK_FILES: dict[str, tuple[MakeInput | str, tuple[str, ...]]] = {
    "missing": ("nowhere.yaml", ("nowhere.yaml", "no such file", "task file")),
    "a folder": (lambda here: folder(here, "x.yaml"), ("x.yaml", "is a directory")),
    "a pipe": (lambda here: named_pipe(here, "x.yaml"), ("x.yaml", "no ordinary file")),
    "a circle": (lambda here: symlink_loop(here, "x.yaml"), ("x.yaml", "levels of symbolic links")),
    "with a NUL": ("a\0.yaml", ("--task", r"a\x00.yaml")),
    "of another ending": (file(TASK, "own.txt"), ("own.txt", "is not known", "FILE.yaml")),
    "empty": (task(""), ("own.yaml:1", "empty")),
    "binary": (task(bytes(range(256))), ("own.yaml:2", "not UTF-8")),
    "not YAML": (task("name: [own\n"), ("own.yaml:2", "not YAML")),
    "10 MB": (task(TASK + "#" * 10_000_000), ("own.yaml", "over 64 KiB", "task")),
    "python object": (task(TASK + "x: !!python/object/apply:os.system ['touch x']\n"), (":6", "a tag")),
    "aliases that explode": (
        task("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50))),
        ("own.yaml:1", "an anchor", "an alias", "mistakes more"),
    ),
    "a space file": (task("params: {}\n"), ("own.yaml:1", "params: unknown name", "name: missing")),
    "unknown name": (task(TASK + "metirc: f1\n"), ("own.yaml:6", "did you mean metric")),
    "a name that escapes": (
        task(TASK.replace("own", '"\\e[2J"')),
        ("own.yaml:1", "letters, digits", "x1b[2J"),
    ),
    "a name that leaves its folder": (task(TASK.replace("own", "../own")), (":1", "letters, digits")),
    "GLUE's name": (task(TASK.replace("own", "cola")), (":1", "cola is a GLUE task's name")),
    "f1 of three": (
        task(TASK.replace("mcc", "f1").replace("1: yes", "1: yes, 2: maybe")),
        ("own.yaml:5", "f1 is of two classes", "macro_f1"),
    ),
    "every mistake": (
        task("name: x y\ntext: a\nlabel: a\nlabels: [a]\nmetric: f2\nfiles: {dev: /a.csv}\n"),
        ("own.yaml:1", "own.yaml:3", "own.yaml:4", "own.yaml:5", "own.yaml:6"),
    ),
}


def tables(train: str | bytes, dev: str | bytes = GOOD) -> MakeInput:
    def make(here: Path) -> Path:
        data = folder(here, "tables")
        file(train, "train.csv")(data)
        file(dev, "dev.csv")(data)
        return data

    return make


TABLES: dict[str, tuple[MakeInput | str | None, tuple[str, ...]]] = {
    "not given": (None, ("--data-dir is missing", "train.csv, dev.csv", "own")),
    "missing": ("nowhere", ("--data-dir", "nowhere: there is no such folder", "train.csv, dev.csv")),
    "a file": (file(""), ("is a file, not a folder",)),
    "an empty folder": (folder, ("train.csv", "no such file")),
    "empty": (tables(""), ("train.csv", "no rows")),
    "no dev rows": (tables(GOOD, "text,label\n"), ("dev.csv", "no rows")),
    "a column missing": (tables("text,lable\na,1\n"), ("train.csv line 1", "no column 'label'")),
    "a column twice": (tables("text,text,label\na,b,1\n"), ("train.csv line 1", "2 columns")),
    "unknown label": (tables(GOOD + "a,2\n"), ("train.csv line 3", "'2'", "0, 1")),
    "a label that escapes": (tables(GOOD + "a,\x1b[2J\n"), ("train.csv line 3", r"\x1b[2J")),
    "no text": (tables(GOOD + " ,1\n"), ("train.csv line 3", "'text' is empty")),
    "a cell too few": (tables(GOOD + "a\n"), ("train.csv line 3", "1 columns where 2")),
    "a quote not closed": (tables(GOOD + '"a,1\n' * 3), ("train.csv line 3", '""')),
    "not UTF-8": (tables(GOOD.encode() + b"\xff,1\n"), ("train.csv line 3", "byte 1 is not UTF-8")),
    "a line of 100 MB": (tables(GOOD + "x" * 100_000_000), ("train.csv line 3", "over 1 MiB")),
    "tabs": (tables(GOOD.replace(",", "\t")), ("train.csv line 1", "no column 'text'")),
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
    "empty": (begun(""), ("task.yaml:1", "empty")),
    "a name that leaves its folder": (begun(TASK, task="../own"), ("own'",)),
}
