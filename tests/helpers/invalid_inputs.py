"""Flags and files that a command line must refuse, and words of its error message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ikd_ray.yaml_file import MAX_BYTES

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
}

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
EXPORT_FLAGS: Cases = {
    "task unknown": ({"task": "colla"}, ("'colla'", "cola")),
    "task missing": ({"task": None}, ("--task",)),
    "name above": ({"name": "../x"}, ("--name", "not a path")),
    "name absolute": ({"name": "/etc"}, ("--name", "not a path")),
    "name with an escape": ({"name": "\x1b[2J"}, (r"x1b[2J", "no sweep there")),
    "no sweeps": ({}, ("--output", "no sweep of cola")),
    "output missing": ({"output": "nowhere"}, ("--output nowhere", "no sweep")),
    "output a file": ({"output": file("")}, ("--output", "no sweep")),
    "flag unknown": ({"too": "x"}, ("--too",)),
}


def space(text: str | bytes) -> MakeInput:
    return file(text, "other.yaml")


SPACES: dict[str, tuple[MakeInput | str, tuple[str, ...]]] = {
    "missing": ("no-space.yaml", ("no-space.yaml", "no such file")),
    "a folder": (lambda here: here, ("is a directory",)),
    "a pipe": (named_pipe, ("pipe", "no ordinary file")),
    "a device": ("/dev/zero", ("/dev/zero", "no ordinary file")),
    "a circle": (symlink_loop, ("circle",)),
    "empty": (space(""), ("other.yaml:1", "empty")),
    "binary": (space(bytes(range(256))), ("other.yaml:2", "not UTF-8")),
    "python object": (space("params: !!python/object/apply:os.system ['touch x']\n"), (":1", "a tag")),
    "anchor": (space("params: &a {}\n"), (":1", "an anchor")),
    "aliases that explode": (
        space("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50))),
        ("other.yaml:1", "an anchor", "an alias", "more mistakes"),
    ),
    "deep": (space("params: " + "[" * 60_000), (":1", "nested deeper than 10")),
    "10 MB": (space("params: {}\n" + "#" * 10_000_000), ("over",)),
    "as large as may be": (
        space(("params: {seed: {choice: [" + "1, " * MAX_BYTES)[: MAX_BYTES - 3] + "]}}"),
        ("given twice",),
    ),
    "unknown name": (
        space("params:\n  temprature: 2\n"),
        ("other.yaml:2", "temprature", "did you mean temperature"),
    ),
    "name with an escape": (space('params: {"\\e[31mx": 2}\n'), ("other.yaml:1", r"\x1b[31mx")),
    "more layers than the teacher": (
        space("params: {student_layers: {int: [1, 5]}}\n"),
        ("up to 5", "has 4 layers"),
    ),
    "an assistant as deep as the teacher": (
        space("params: {student_layers: 2, assistant_layers: {choice: [0, 4]}}\n"),
        ("assistant_layers: 4 for a student of 2 layers", "which has 4 layers", "give 3, or 0"),
    ),
    "no room for an assistant": (
        space("params: {student_layers: 3, assistant_layers: 2}\n"),
        ("assistant_layers: 2 for a student of 3 layers", "none fits between; leave it 0"),
    ),
    "an assistant of half the data": (
        space("params: {student_layers: 2}\nassistant: {train_fraction: 0.5}\n"),
        ("other.yaml:2", "assistant.train_fraction", "unknown name"),
    ),
    "an assistant's depth in its recipe": (
        space("params: {student_layers: 2}\nassistant: {student_layers: 3}\n"),
        ("other.yaml:2", "assistant.student_layers", "unknown name"),
    ),
    "an assistant that never learns": (
        space("params: {student_layers: 2}\nassistant: {epochs: 0}\n"),
        ("other.yaml:2", "assistant.epochs", "greater than or equal to 1"),
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


DATA: dict[str, tuple[MakeInput | str, tuple[str, ...]]] = {
    "missing": ("no-such-folder", ("--data-dir", "no-such-folder", "no such folder")),
    "a file": (file(""), ("is a file, not a folder",)),
    "a circle": (symlink_loop, ("circle", "no such folder")),
    "empty name": ("", ("--data-dir",)),
    "without the task": (lambda here: here, ("CoLA", "GLUE folders there: none")),
    "train.tsv a folder": (with_train(folder), ("is a folder",)),
    "train.tsv a pipe": (with_train(named_pipe), ("train.tsv", "no ordinary file")),
    "train.tsv a circle": (with_train(symlink_loop), ("train.tsv", "cannot be read")),
    "only a BOM": (cola("\ufeff"), ("train.tsv line 1", "1 tab-separated columns")),
    "no dev rows": (cola(GOOD, ""), ("dev.tsv", "no rows")),
    "unknown label": (cola(GOOD * 2 + "x\t2\t\tw3\n"), ("train.tsv line 3", "'2'", "0, 1")),
    "label with a NUL": (cola("x\t1\0\t\tw\n"), ("train.tsv line 1", r"'1\x00'")),
    "binary": (cola(b"\0" * 5000), ("train.tsv line 1", "1 tab-separated columns")),
    "a line of 100 MB": (cola("x" * 100_000_000), ("train.tsv line 1", "over 1 MiB")),
}
