"""Reading the GLUE release's folder layout: `CoLA/train.tsv` and so on.

The files are tab-separated UTF-8 without quoting: a quote is plain text. A line ends at a line feed and
nowhere else, since sentences hold characters such as U+0085 and U+2028 that `str.splitlines` breaks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ikd_ray.data.dataset import Split
from ikd_ray.data.table_rows import Rows, read_lines, refuse_what_is_no_file, shown
from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS, GlueTask


def find_folder(data_dir: Path, task: GlueTask) -> Path:
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


def read_split(path: Path, task: GlueTask) -> tuple[Split, int]:
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
                    f"(got {shown(names)})"
                )
    columns = [names.index(name) for name in task.file_text]
    label_column = names.index(task.file_label)

    rows, skipped = Rows(task), 0
    for number, line in enumerate(lines, start):
        where = f"{path} line {number}"
        fields = line.split("\t")
        problem = _malformed(fields, names, columns)
        if problem and task.skips_corrupted:
            skipped += 1
            continue
        if problem:
            raise UsageError(f"{where}: {problem}")
        rows.add([fields[column] for column in columns], fields[label_column], where)
    if not len(rows):
        corrupted = f" besides {skipped} corrupted ones" if skipped else ""
        raise UsageError(f"{path}: no rows{corrupted}; one example a line is needed")
    return rows.split(), skipped


def _malformed(fields: list[str], names: list[str], text_columns: list[int]) -> str | None:
    """What is wrong with a row before its label is looked at."""
    if len(fields) != len(names):
        return f"the row has {len(fields)} tab-separated columns where {len(names)} are right"
    for column in text_columns:
        if not fields[column].strip():
            return f"column {names[column]!r} is empty where a text is needed"
    return None


def _lines(path: Path, task: GlueTask) -> Iterator[str]:
    """The file's lines without their ends, read one at a time."""
    files = ", ".join(names.file for names in task.splits)
    refuse_what_is_no_file(path, "a tab-separated file", f"task {task.name} reads {files}")
    return (line.removesuffix("\n").removesuffix("\r") for line in read_lines(path))
