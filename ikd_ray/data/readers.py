"""Readers of the files that hold examples: the GLUE release's folders and a custom task's tables.

GLUE's files are tab-separated UTF-8 without quoting: a quote is plain text. A line ends at a line feed and
nowhere else, since sentences hold characters such as U+0085 and U+2028 that `str.splitlines` breaks at.

Of tables (CSV, TSV, JSON lines and Parquet, told apart by their ending) nothing is guessed: no cell is taken for a
missing one because it reads `NA`, no number for a label that only looks like it, and what cannot be read as it should
is named with its row.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ikd_ray.data.dataset import Split
from ikd_ray.data.task_file import CustomTask
from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS, GlueTask, Task


def find_glue_folder(data_dir: Path, task: GlueTask) -> Path:
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


def read_glue_split(path: Path, task: GlueTask) -> tuple[Split, int]:
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


BATCH = 1_000  # rows of a Parquet file at a time: bounds memory

Row = tuple[str, Sequence[Any]]  # file and line (or row), and the wanted columns' values


def read_tables(data_dir: Path, task: CustomTask) -> dict[str, Split]:
    """The task's splits from their files in a folder.

    Raises:
        UsageError: there is no such folder, or a file's content is not what the task says. The message names the
            file, the line or row (from 1; a header is line 1), the column, and what would be right.
    """
    names = ", ".join(name for _, name in task.files)
    if not os.path.isdir(data_dir):  # Unlike Path.is_dir, it raises nothing where access is denied.
        what = "is a file, not a folder" if os.path.exists(data_dir) else "there is no such folder"
        raise UsageError(f"--data-dir {data_dir}: {what}; give the folder that holds {names}")
    return {split: read_table(data_dir / name, task) for split, name in task.files}


def read_table(path: Path, task: CustomTask) -> Split:
    """The file's examples, in its order.

    Raises:
        UsageError: see `read_tables`.
    """
    names = ", ".join(name for _, name in task.files)
    refuse_what_is_no_file(path, "a table", f"task {task.name} reads {names}")
    rows = Rows(task)
    wanted = (*task.text_columns, task.file_label)
    for where, values in _READERS[path.suffix.lower()](path, wanted):
        *texts, label = values
        for column, text in zip(task.text_columns, texts, strict=True):
            _check_text(text, f"{where}: column {column!r}")
        rows.add(texts, _as_written(label, f"{where}: column {task.file_label!r}"), where)
    if not len(rows):
        raise UsageError(f"{path}: no rows; at least one example is needed")
    return rows.split()


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{where} holds {shown(value)} where a text is needed")
    if not value.strip():
        raise UsageError(f"{where} is empty where a text is needed")
    if len(value) > MAX_LINE:
        raise UsageError(f"{where} has over {MAX_LINE:,} characters; one example a row is needed")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} holds half a character, {shown(value)}; save the text as UTF-8") from None


def _as_written(value: Any, where: str) -> str:
    """A label as a text file would have it: formats with types write 1 and true, not "1" and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise UsageError(f"{where} holds {shown(value)} where a label is needed")


def _positions(found: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Where in a row the wanted columns are."""
    for name in wanted:
        if name not in found:
            raise UsageError(
                f"{where}: there is no column {name!r}; the task reads {', '.join(wanted)} (got {shown(list(found))})"
            )
    name, count = Counter(found).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{where}: {count} columns are called {shown(name)}; give each a name of its own")
    return [found.index(name) for name in wanted]


def _separated(path: Path, wanted: Sequence[str], delimiter: str) -> Iterator[Row]:
    """RFC 4180: a cell in double quotes may hold delimiters and line ends, and a quote as two."""
    rows = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    begins, columns, width = 1, None, 0
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            told = str(error).replace("\t", "\\t")  # it names the delimiter as it is
            raise UsageError(
                f"{path} line {begins}: {told}; put a cell that holds quotes or line ends in double quotes, and "
                'write each quote in it as ""'
            ) from None
        if row is None:
            return
        where, begins = f"{path} line {begins}", rows.line_num + 1
        if columns is None:
            columns, width = _positions(row, wanted, where), len(row)
        elif len(row) != width:
            raise UsageError(f"{where}: the row has {len(row)} columns where {width} are right")
        else:
            yield where, [row[column] for column in columns]


def _json_lines(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path} line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else shown(str(error))
            raise UsageError(f"{where}: not JSON ({reason}); write one object a line") from None
        if not isinstance(record, dict):
            raise UsageError(f'{where}: not a JSON object; write one a line, as in {{"{wanted[0]}": ...}}')
        _positions(list(record), wanted, where)
        yield where, [record[name] for name in wanted]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice in an object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa  # imported late: only who has such files waits for it
    import pyarrow.parquet as pq

    wheres = (f"{path} row {number}" for number in itertools.count(1))
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as table:
            _positions(table.schema_arrow.names, wanted, str(path))
            for batch in table.iter_batches(BATCH, columns=list(wanted), use_threads=False):
                columns = [batch.column(name).to_pylist() for name in wanted]
                yield from ((next(wheres), values) for values in zip(*columns, strict=True))
    except UsageError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0])
        raise UsageError(f"{path}: no Parquet file that can be read ({reason}); write it again") from None


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


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
