"""What the readers of tables share: a file's lines, the values of its cells, and a split made of its rows."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ikd_ray.data.dataset import Split
from ikd_ray.errors import UsageError
from ikd_ray.tasks import Task

MAX_LINE = 2**20  # bytes: bounds memory where a file has no line ends


class Rows:
    """The examples of a file, one after the other."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._texts: tuple[list[str], ...] = tuple([] for _ in task.text_columns)
        self._labels: list[float] = []

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, texts: list[str], label: str, where: str) -> None:
        """Takes an example with its label as the file writes it.

        Raises:
            UsageError: the label is none of the task's; the message begins with `where`.
        """
        self._labels.append(label_of(label, self._task, where))
        for column, text in zip(self._texts, texts, strict=True):
            column.append(text)

    def split(self) -> Split:
        """All of them; there must be one."""
        dtype = np.float32 if self._task.is_regression else np.int64
        second = self._texts[1] if self._task.is_pair else None
        return Split(self._texts[0], second, np.array(self._labels, dtype))


def label_of(value: str, task: Task, where: str) -> float:
    """The class's index, or the score.

    Raises:
        UsageError: the value is none of the task's.
    """
    if task.is_regression:
        low, high = task.score_range
        try:
            score = float(value)
        except ValueError:
            score = float("nan")
        if not low <= score <= high:
            raise UsageError(
                f"{where}: {task.file_label} {shown(value)} is not a number from {low:g} to {high:g}"
            )
        return score
    if value not in task.file_labels:
        allowed = shortened(", ".join(task.file_labels), 200)
        raise UsageError(f"{where}: {task.file_label} {shown(value)} is not one of: {allowed}")
    return task.file_labels.index(value)


def refuse_what_is_no_file(path: Path, needed: str, files: str) -> None:
    """Before a file is opened: a pipe would be waited for until somebody writes to it; a device may have no end.

    Args:
        needed: what the file should be: `a tab-separated file`.
        files: what is read of its folder, for who lacks it.

    Raises:
        UsageError: it is a folder, something of that kind, or not there.
    """
    if os.path.isdir(path):
        raise UsageError(f"{path}: is a folder where {needed} is needed")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path}: no ordinary file where {needed} is needed")
    if not os.path.lexists(path):
        raise UsageError(f"{path}: there is no such file; {files}")


def read_lines(path: Path) -> Iterator[str]:
    """A text file's lines with their ends, read one at a time; a line ends at a line feed and nowhere else.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 or has a line of over `MAX_LINE` bytes.
    """
    try:
        with path.open("rb") as file:
            for number, data in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
                if number == 1:
                    data = data.removeprefix(codecs.BOM_UTF8)
                if len(data) > MAX_LINE:
                    raise UsageError(f"{path} line {number}: over 1 MiB; one example a line is needed")
                try:
                    yield data.decode()
                except UnicodeDecodeError as error:
                    raise UsageError(
                        f"{path} line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                    ) from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); mend that or pass another --data-dir"
        ) from None


def shown(value: object) -> str:
    """A file's content for the terminal: control characters escaped, and short."""
    return shortened(repr(value), 60)


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
