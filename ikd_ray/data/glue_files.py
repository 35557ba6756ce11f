"""Reading the GLUE release's folder layout: `CoLA/train.tsv` and so on.

The files are tab-separated UTF-8 without quoting: a quote is plain text. A line ends at a line feed and
nowhere else, since sentences hold characters such as U+0085 and U+2028 that `str.splitlines` breaks at.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ikd_ray.data.dataset import Split
from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS, Task

MAX_LINE = 2**20  # bytes: bounds memory where a file has no line ends


def find_folder(data_dir: Path, task: Task) -> Path:
    """The task's folder: `data_dir / task.folder`, or `data_dir` where that holds `train.tsv` itself.

    Raises:
        UsageError: `data_dir` is no folder, or holds neither.
    """
    if not os.path.isdir(data_dir):  # Unlike Path.is_dir, it raises nothing where access is denied.
        what = "is a file, not a folder" if os.path.exists(data_dir) else "there is no such folder"
        raise UsageError(f"--data-dir {data_dir}: {what}; pass the folder that holds {task.folder}/train.tsv")
    if os.path.isdir(data_dir / task.folder):
        return data_dir / task.folder
    if os.path.exists(data_dir / "train.tsv"):
        return data_dir
    there = [known.folder for known in TASKS.values() if os.path.isdir(data_dir / known.folder)]
    raise UsageError(
        f"--data-dir {data_dir}: task {task.name} needs the folder {data_dir / task.folder}; "
        f"GLUE folders there: {', '.join(there) or 'none'}"
    )


def read_split(path: Path, task: Task) -> tuple[Split, int]:
    """The file's examples, and how many corrupted rows were left out (only where `task.skips_corrupted`).

    Raises:
        UsageError: the file cannot be read, or its content is not what the task's files hold. The message
            names the file, the line (from 1, the header counted) and what would be right.
    """
    lines = _lines(path, task)
    if task.headless:
        names, start = list(task.headless), 1
    else:
        names, start = next(lines, "").split("\t"), 2
        for name in (*task.file_text, task.file_label):
            if name not in names:
                wanted = ", ".join((*task.file_text, task.file_label))
                raise UsageError(
                    f"{path} line 1: the header has no column {name!r}; it must name {wanted} "
                    f"(got {_show(names)})"
                )
    columns = [names.index(name) for name in task.file_text]
    label_column = names.index(task.file_label)

    texts: list[list[str]] = [[] for _ in columns]
    labels: list[float] = []
    skipped = 0
    for number, line in enumerate(lines, start):
        where = f"{path} line {number}"
        fields = line.split("\t")
        problem = _malformed(fields, names, columns)
        if problem and task.skips_corrupted:
            skipped += 1
            continue
        if problem:
            raise UsageError(f"{where}: {problem}")
        labels.append(_label(fields[label_column], task, where))
        for column, index in zip(texts, columns, strict=True):
            column.append(fields[index])
    if not labels:
        corrupted = f" besides {skipped} corrupted ones" if skipped else ""
        raise UsageError(f"{path}: no rows{corrupted}; one example a line is needed")
    dtype = np.float32 if task.is_regression else np.int64
    return Split(texts[0], texts[1] if task.is_pair else None, np.array(labels, dtype)), skipped


def _malformed(fields: list[str], names: list[str], text_columns: list[int]) -> str | None:
    """What is wrong with a row before its label is looked at."""
    if len(fields) != len(names):
        return f"the row has {len(fields)} tab-separated columns where {len(names)} are right"
    for column in text_columns:
        if not fields[column].strip():
            return f"column {names[column]!r} is empty where a text is needed"
    return None


def _label(value: str, task: Task, where: str) -> float:
    """The class's index, or the score."""
    if task.is_regression:
        low, high = task.score_range
        try:
            score = float(value)
        except ValueError:
            score = float("nan")
        if not low <= score <= high:
            raise UsageError(
                f"{where}: {task.file_label} {_show(value)} is not a number from {low:g} to {high:g}"
            )
        return score
    if value not in task.file_labels:
        allowed = ", ".join(task.file_labels)
        raise UsageError(f"{where}: {task.file_label} {_show(value)} is not one of: {allowed}")
    return task.file_labels.index(value)


def _lines(path: Path, task: Task) -> Iterator[str]:
    """The file's lines without their ends, read one at a time."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        # A pipe would be waited for until somebody writes to it; a device may have no end.
        raise UsageError(f"{path}: no ordinary file where a tab-separated one is needed")
    try:
        with path.open("rb") as file:
            for number, data in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
                if number == 1:
                    data = data.removeprefix(codecs.BOM_UTF8)
                if len(data) > MAX_LINE:
                    raise UsageError(f"{path} line {number}: over 1 MiB; one example a line is needed")
                try:
                    line = data.decode()
                except UnicodeDecodeError as error:
                    raise UsageError(
                        f"{path} line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                    ) from None
                yield line.removesuffix("\n").removesuffix("\r")
    except FileNotFoundError:
        files = ", ".join(names.file for names in task.splits)
        raise UsageError(f"{path}: there is no such file; task {task.name} reads {files}") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder where a tab-separated file is needed") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); mend that or pass another --data-dir"
        ) from None


def _show(value: object) -> str:
    """A file's content for the terminal: control characters escaped, and short."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
