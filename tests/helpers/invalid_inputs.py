"""Flags and files that a command line must refuse, and words of its error message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

MakeInput = Callable[[Path], Any]
"""A function that writes files below a folder and returns the value of a flag."""

Cases = dict[str, tuple[dict[str, Any], tuple[str, ...]]]
"""Flags and words of the message, by the name of the case."""

GOOD = "x\t1\t\tw1 w2\n"


def file(content: str | bytes, name: str = "file") -> MakeInput:
    def make(here: Path) -> Path:
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return here / name

    return make


def named_pipe(here: Path, name: str = "pipe") -> Path:
    os.mkfifo(here / name)
    return here / name


def symlink_loop(here: Path, name: str = "circle") -> Path:
    (here / name).symlink_to(here / name)
    return here / name


def folder(here: Path, name: str = "folder") -> Path:
    (here / name).mkdir()
    return here / name


def locked_folder(here: Path) -> Path:
    (here / "locked").mkdir(mode=0o500)
    return here / "locked"


FLAGS: Cases = {
    "task unknown": ({"task": "colla"}, ("'colla'", "cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli")),
    "task with an escape": ({"task": "\x1b[31mcola"}, (r"\x1b[31mcola",)),
    "task missing": ({"task": None}, ("--task is missing",)),
    "trials 0": ({"trials": 0}, ("--trials 0",)),
    "trials below 0": ({"trials": -3}, ("--trials -3",)),
    "trials a word": ({"trials": "many"}, ("--trials", "valid integer")),
    "trials without end": ({"trials": 10**12}, ("--trials 1000000000000", "100000")),
    "trials of 5000 digits": ({"trials": "9" * 5000}, ("--trials",)),
    "concurrent 0": ({"concurrent": 0}, ("--concurrent 0",)),
    "concurrent below 0": ({"concurrent": -1}, ("--concurrent -1",)),
    "concurrent without end": ({"concurrent": 10**9}, ("--concurrent 1000000000", "10000")),
    "workers 0": ({"workers-per-trial": 0}, ("--workers-per-trial 0",)),
    "workers without end": ({"workers-per-trial": 10**9}, ("--workers-per-trial", "1024")),
    "GPUs below 0": ({"gpus-per-worker": -1}, ("--gpus-per-worker -1",)),
    "GPUs no number": ({"gpus-per-worker": "nan"}, ("--gpus-per-worker nan", "finite")),
    "GPUs without end": ({"gpus-per-worker": 1e9}, ("--gpus-per-worker", "16")),
    "step memory 0": ({"step-memory": 0}, ("--step-memory 0", "0.1")),
    "step memory no number": ({"step-memory": "nan"}, ("--step-memory nan", "finite")),
    "seed below 0": ({"seed": -1}, ("--seed -1",)),
    "seed too large": ({"seed": 2**31}, ("--seed",)),
    "flag unknown": ({"trails": 3}, ("--trails", "--trials")),
    "name above its folder": ({"name": "../elsewhere"}, ("--name", "letters, digits")),
    "name absolute": ({"name": "/tmp/elsewhere"}, ("--name", "letters, digits")),
    "name of two folders": ({"name": "a/b"}, ("--name", "letters, digits")),
    "name .": ({"name": "."}, ("--name", "no '.' first")),
    "name ..": ({"name": ".."}, ("--name", "no '.' first")),
    "name empty": ({"name": ""}, ("--name", "letters, digits")),
    "name with a NUL": ({"name": "a\0b"}, ("--name", r"'a\x00b'")),
    "name with a newline": ({"name": "a\n"}, ("--name", r"'a\n'")),
    "name too long": ({"name": "a" * 300}, ("--name", "at most 80")),
    "name that reads backwards": ({"name": "a\u202eb"}, ("--name", r"'a\u202eb'")),
    "name of the cache": ({"name": "cache"}, ("--name cache", "choose another")),
    "name that is taken": (
        {"name": "taken", "output": lambda here: folder(here, "taken").parent},
        ("--name taken: ", "exists already; choose another"),
    ),
    "resume nothing": ({"resume": "nothing"}, ("--resume nothing", "no sweep of that name")),
    "resume above": ({"resume": "../up"}, ("--resume", "letters, digits")),
    "output a file": ({"output": file("")}, ("--output", "folder")),
    "output below a file": ({"output": lambda here: file("")(here) / "below"}, ("--output", "folder")),
    "output in a circle": ({"output": symlink_loop}, ("--output",)),
    "output in /proc": ({"output": "/proc/nowhere"}, ("--output", "cannot write")),
    "a batch too small to split": (
        {"space": file("params: {student_layers: 2, batch_size: 3}\n"), "workers-per-trial": 2},
        ("batch_size", "2 workers"),
    ),
    "output a device": ({"output": "/dev/null"}, ("--output", "folder")),
    "output too long a name": ({"output": "a" * 300}, ("--output",)),
    "a cache that is no folder": (
        {"output": lambda here: file("", "cache")(here).parent},
        ("--output", "cannot write in", "cache"),
    ),
    "tracking below /proc": (
        {"tracking-uri": "sqlite:////proc/m.db"},
        ("--tracking-uri", "cannot write /proc"),
    ),
    "tracking in a folder": (
        {"tracking-uri": lambda here: f"sqlite:///{folder(here)}"},
        ("--tracking-uri", "no file that you may write"),
    ),
    "tracking in a text": (
        {"tracking-uri": lambda here: f"sqlite:///{file('some text that is no database')(here)}"},
        ("--tracking-uri", "not an SQLite database"),
    ),
    "output that is no text": (
        {"output": "out\udcff"},
        ("--output", r"out\udcff", "is not valid in", "rename the file or folder"),
    ),
    "data that is no text": (
        {"data-dir": "glue\udcff"},
        ("--data-dir", r"glue\udcff", "is not valid in", "rename the file or folder"),
    ),
}
if os.geteuid() != 0:  # root may write anywhere
    FLAGS["output without permission"] = ({"output": locked_folder}, ("--output",))

CLUSTERS: Cases = {
    f"RAY_ADDRESS {address}": ({}, (f"RAY_ADDRESS {address}", *words))
    for address, words in {
        "nonsense": ("no cluster there",),
        "127.0.0.1:1": ("no cluster there",),
        "127.0.0.1:99999": ("no cluster there",),
        "localhost:port": ("no cluster there",),
        "ray://127.0.0.1:1": ("run on a node",),
    }.items()
}
CHECKS: Cases = {
    "no name": ({}, ("--check",)),
    "nothing": ({"check": "nothing"}, ("--check nothing", "no sweep of that name")),
    "name above": ({"check": "../x"}, ("--check", "letters, digits")),
    "output a file": ({"check": "x", "output": file("")}, ("--check x", "no sweep of that name")),
}
EXPORT_FLAGS: Cases = {  # more are in tests/export/test_export_command.py
    "name absolute": ({"name": "/etc"}, ("--name", "not a path")),
    "no sweeps": ({}, ("--output", "no sweep of cola")),
    "output a file": ({"output": file("")}, ("--output", "no sweep")),
}


def space(text: str | bytes) -> MakeInput:
    return file(text, "other.yaml")


SPACES: dict[
    str, tuple[MakeInput | str, tuple[str, ...]]
] = {  # more are in tests/search/test_space_mistakes.py
    "missing": ("no-space.yaml", ("no-space.yaml", "no such file")),
    "a device": ("/dev/zero", ("/dev/zero", "no ordinary file")),
    "aliases that explode": (
        space("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50))),
        ("other.yaml:1", "an anchor", "an alias", "more mistakes"),
    ),
    "more layers than the teacher": (
        space("params: {student_layers: {int: [1, 5]}}\n"),
        ("up to 5", "has 4 layers"),
    ),
    "an assistant as deep as the teacher": (
        space("params: {student_layers: 2, assistant_layers: {choice: [0, 4]}}\n"),
        ("assistant_layers: 4 for a student of 2 layers", "which has 4 layers", "give 3, or 0"),
    ),
    "a grid smaller than --trials": (
        space("sampler: grid\nparams: {student_layers: 2, regime: {choice: [kd, id]}}\n"),
        ("--trials 3", "has 2"),
    ),
    "another task's metric": (
        space("objectives: {dev/f1: max}\nparams: {student_layers: 2}\n"),
        ("f1", "cola has no such metric"),
    ),
}


def cola(train: str | bytes, dev: str | bytes = GOOD) -> MakeInput:
    """Write a data folder with the given files."""

    def make(here: Path) -> Path:
        folder = here / "data" / "CoLA"
        folder.mkdir(parents=True)
        file(train, "train.tsv")(folder)
        file(dev, "dev.tsv")(folder)
        return here / "data"

    return make


def with_train(make_file: Callable[[Path, str], Path]) -> MakeInput:
    """Write a data folder whose train.tsv is what `make_file` makes."""

    def make(here: Path) -> Path:
        data = cola("")(here)
        (data / "CoLA" / "train.tsv").unlink()
        make_file(data / "CoLA", "train.tsv")
        return data

    return make


DATA: dict[str, tuple[MakeInput | str, tuple[str, ...]]] = {  # more are in tests/data/test_sources.py
    "a circle": (symlink_loop, ("circle", "no such folder")),
    "empty name": ("", ("--data-dir",)),
    "train.tsv a pipe": (with_train(named_pipe), ("train.tsv", "no ordinary file")),
    "train.tsv a circle": (with_train(symlink_loop), ("train.tsv", "cannot be read")),
    "only a BOM": (cola("\ufeff"), ("train.tsv line 1", "1 tab-separated columns")),
    "label with a NUL": (cola("x\t1\0\t\tw\n"), ("train.tsv line 1", r"'1\x00'")),
    "binary": (cola(b"\0" * 5000), ("train.tsv line 1", "1 tab-separated columns")),
    "a line of 100 MB": (cola("x" * 100_000_000), ("train.tsv line 1", "over 1 MiB")),
}
