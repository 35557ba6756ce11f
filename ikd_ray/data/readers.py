"""Readers of files with examples: the GLUE release's TSV files and a custom task's tables.

GLUE's files are tab-separated UTF-8 without quoting: a quote is plain text. Tables are CSV, TSV, JSON lines or Parquet,
by their ending. Nothing in them is guessed: a cell that reads `NA` is a text, and a label must be written exactly as
the task says. What cannot be read is reported with its row.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ikd_ray.data.dataset import Split
from ikd_ray.data.lines import LONE_CR, MAX_LINE, read_lines
from ikd_ray.data.separated import read_rows
from ikd_ray.data.task_file import CustomTask, nfc
from ikd_ray.errors import UsageError, first_line
from ikd_ray.tasks import TASKS, GlueTask, Task

if TYPE_CHECKING:
    import datasets

BATCH = 1_000  # rows of Parquet and of data sets that are read at a time: bounds memory
# float() also takes 0_5 for 5, and digits of other scripts.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

Row = tuple[str, Sequence[Any]]  # file and line (or row) for messages, and the values of the task's columns


def find_glue_folder(data_dir: Path, task: GlueTask) -> Path:
    """Return `data_dir / task.folder`, or `data_dir` where that holds `train.tsv` itself.

    Raises:
        UsageError: `data_dir` is no folder, or holds neither.
    """
    require_folder(data_dir, f"pass the folder that holds {task.folder}/train.tsv")
    if os.path.isdir(data_dir / task.folder):
        return data_dir / task.folder
    if os.path.exists(data_dir / "train.tsv"):
        return data_dir
    present = [other.folder for other in TASKS.values() if os.path.isdir(data_dir / other.folder)]
    raise UsageError(
        f"--data-dir {data_dir}: task {task.name} needs the folder {data_dir / task.folder}; "
        f"GLUE folders there: {', '.join(present) or 'none'}"
    )


def read_glue_split(path: Path, task: GlueTask) -> tuple[Split, int]:
    """Read one of the GLUE release's files.

    Returns:
        The examples, and how many corrupted rows were skipped (0 unless `task.skips_corrupted`).

    Raises:
        UsageError: the file cannot be read, or its content is not that of the task's files. The message names the
            file, the line (1-based, including the header) and what would be right.
    """
    _require_file(path, "a tab-separated file", task, [names.file for names in task.splits])
    lines = (line.removesuffix("\n").removesuffix("\r") for line in read_lines(path))
    columns = task.headless or next(lines, "").split("\t")
    if any("\r" in column for column in columns):
        raise UsageError(f"{path} line 1: {LONE_CR}")
    *text_indices, label_index = _indices(columns, (*task.file_text, task.file_label), f"{path} line 1")
    builder, skipped = _SplitBuilder(task), 0
    for number, line in enumerate(lines, 1 if task.headless else 2):
        fields = line.split("\t")
        problem = _problem(fields, columns, text_indices)
        if problem and task.skips_corrupted:
            skipped += 1
        elif problem:
            raise UsageError(f"{path} line {number}: {problem}")
        else:
            texts = [fields[index] for index in text_indices]
            builder.add(texts, fields[label_index], f"{path} line {number}")
    corrupted = f" besides {skipped} corrupted ones" if skipped else ""
    return builder.build(f"{path}: no rows{corrupted}; one example a line is needed"), skipped


def read_tables(data_dir: Path, task: CustomTask) -> dict[str, Split]:
    """Read the splits of a custom task from the tables in a folder.

    Raises:
        UsageError: there is no such folder, or a table's content is not what the task says. The message names the
            file, the line or row (1-based; a header is line 1), the column, and what would be right.
    """
    names = ", ".join(name for _, name in task.files)
    require_folder(data_dir, f"give the folder that holds {names}")
    splits = {}
    for split, name in task.files:
        path = find_table(data_dir, name)
        if split == "dev" and not os.path.lexists(path):
            raise UsageError(
                f"{path}: there is no such file; task {task.name} reads {names}; to draw dev from train, write "
                "`split: 0.1` in the task file"
            )
        splits[split] = read_table(path, task)
    return splits


def read_table(path: Path, task: CustomTask) -> Split:
    """Read one table of a custom task; `UsageError` as in `read_tables`."""
    _require_file(path, "a table", task, [name for _, name in task.files])
    rows = _READERS[path.suffix.lower()](path, task, (*task.text_columns, task.file_label))
    return _make_split(rows, task, str(path))


def read_hub_table(table: datasets.Dataset, task: CustomTask, where: str) -> Split:
    """Read a split of a data set of the hub; `where` names it in messages.

    A label that is stored as a number with a name (`ClassLabel`) may have either in the task file.

    Raises:
        UsageError: as in `read_tables`, with rows counted from 1.
    """
    names = [
        table.column_names[index]
        for index in _distinct_indices(table.column_names, (*task.text_columns, task.file_label), where)
    ]
    classes = getattr(table.features[names[-1]], "names", None) or []
    has_names = bool(task.file_labels) and {*task.file_labels} <= {*map(nfc, classes)}

    def rows() -> Iterator[Row]:
        number = itertools.count(1)
        for batch in table.select_columns(names).iter(BATCH):
            for *texts, label in zip(*(batch[name] for name in names), strict=True):
                if has_names and label in range(len(classes)):
                    label = classes[label]
                yield f"{where} row {next(number)}", [*texts, label]

    return _make_split(rows(), task, where)


def _make_split(rows: Iterable[Row], task: CustomTask, where: str) -> Split:
    """Make a split of rows of a task's text columns and its label."""
    builder = _SplitBuilder(task)
    for place, values in rows:
        *texts, label = values
        for column, text in zip(task.text_columns, texts, strict=True):
            _check_text(text, f"{place}: column {column!r}")
        builder.add(texts, _label_text(label, f"{place}: column {task.file_label!r}"), place)
    return builder.build(f"{where}: no rows; at least one example is needed")


def read_unlabelled(path: Path, task: Task, flag: str = "--data-dir") -> tuple[list[str], list[str] | None]:
    """Read a table of texts without labels; its columns are `task.text_columns`, and others are ignored.

    Args:
        path: the table.
        task: the task whose texts they are.
        flag: the one that names the table: `--unlabelled`, or `--data-dir` for a table that a task file names.

    Returns:
        The texts, and for a task of pairs the second texts, else `None`.

    Raises:
        UsageError: the file is not such a table; the message names the line or row.
    """
    _require_file(path, "a table", task, [path.name], flag)
    if path.suffix.lower() not in _READERS:
        raise UsageError(f"{flag} {path}: the ending tells the format: give one of {', '.join(_READERS)}")
    columns: list[list[str]] = [[] for _ in task.text_columns]
    for where, texts in _READERS[path.suffix.lower()](path, task, task.text_columns):
        for name, column, text in zip(task.text_columns, columns, texts, strict=True):
            _check_text(text, f"{where}: column {name!r}")
            column.append(text)
    if not columns[0]:
        raise UsageError(f"{path}: no rows; at least one text is needed")
    return columns[0], columns[1] if task.is_pair else None


def find_table(folder: Path, name: str) -> Path:
    """Return the path of a table; each part of its name may be in another Unicode form than on the disk."""
    path = folder
    for part in PurePosixPath(name).parts:
        same: list[str] = []
        if not os.path.lexists(path / part):
            with suppress(OSError):  # no folder, or one that cannot be read, as the reader will say
                same = os.listdir(path)
        path /= next((other for other in same if nfc(other) == nfc(part)), part)
    return path


def require_folder(data_dir: Path, advice: str) -> None:
    """Refuse a `--data-dir` that is no folder, with advice on what to give."""
    if not os.path.isdir(data_dir):  # unlike Path.is_dir, it does not raise where access is denied
        problem = "is a file, not a folder" if os.path.exists(data_dir) else "there is no such folder"
        raise UsageError(f"--data-dir {data_dir}: {problem}; {advice}")


class _SplitBuilder:
    """Collects the examples of a file."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._columns: list[list[str]] = [[] for _ in task.text_columns]
        self._labels: list[float] = []

    def add(self, texts: Sequence[str], label: str, where: str) -> None:
        """Append an example, its label as the file writes it; `where` begins the message about a wrong label."""
        self._labels.append(_parse_label(label, self._task, where))
        for column, text in zip(self._columns, texts, strict=True):
            column.append(text)

    def build(self, if_empty: str) -> Split:
        """Return the split; without any example raise a `UsageError` with the message `if_empty`."""
        if not self._labels:
            raise UsageError(if_empty)
        dtype = np.float32 if self._task.is_regression else np.int64
        text_pair = self._columns[1] if self._task.is_pair else None
        return Split(self._columns[0], text_pair, np.array(self._labels, dtype))


def _parse_label(text: str, task: Task, where: str) -> float:
    """Return a class index or a score."""
    if task.is_regression:
        low, high = task.score_range
        score = float(text) if _NUMBER.fullmatch(text.strip(" ")) else float("nan")
        if not low <= score <= high:
            raise UsageError(
                f"{where}: {task.file_label} {_shown(text)} is not a number from {low:g} to {high:g}"
            )
        return score
    if nfc(text) not in task.file_labels:
        allowed = _shortened(", ".join(task.file_labels), 200)
        raise UsageError(f"{where}: {task.file_label} {_shown(text)} is not one of: {allowed}")
    return task.file_labels.index(nfc(text))


def _problem(fields: list[str], columns: Sequence[str], text_indices: list[int]) -> str | None:
    """Return what is wrong with a row of a GLUE file, its label aside."""
    if len(fields) != len(columns):
        problem = f"the row has {len(fields)} tab-separated columns where {len(columns)} are right"
        return f"{problem}; {LONE_CR}" if any("\r" in field for field in fields) else problem
    for index in text_indices:
        if not fields[index].strip():
            return f"column {columns[index]!r} is empty where a text is needed"
    return None


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{where} holds {_shown(value)} where a text is needed")
    if not value.strip():
        raise UsageError(f"{where} is empty where a text is needed")
    if len(value) > MAX_LINE:
        raise UsageError(f"{where} has over {MAX_LINE:,} characters; one example a row is needed")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} holds a lone surrogate, {_shown(value)}; save the text as UTF-8") from None


def _label_text(value: Any, where: str) -> str:
    """Return a label as a text file writes it; JSON and Parquet have 1 and true where CSV has "1" and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise UsageError(f"{where} holds {_shown(value)} where a label is needed")


def _indices(columns: Sequence[str], required: Sequence[str], where: str) -> list[int]:
    """Return the position of each required column."""
    columns = [nfc(column) for column in columns]
    for name in required:
        if name not in columns:
            raise UsageError(
                f"{where}: there is no column {name!r}; the task reads {', '.join(required)} "
                f"(got {_shown(list(columns))})"
            )
    return [columns.index(name) for name in required]


def _distinct_indices(columns: Sequence[str], required: Sequence[str], where: str) -> list[int]:
    indices = _indices(columns, required, where)
    name, count = Counter(map(nfc, columns)).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{where}: {count} columns are called {_shown(name)}; give each a name of its own")
    return indices


def _read_separated(path: Path, task: Task, required: Sequence[str], delimiter: str) -> Iterator[Row]:
    indices: list[int] = []
    for where, cells in read_rows(
        path, delimiter, partial(_is_row, task, task.file_label in required, delimiter)
    ):
        if not indices:
            indices = _distinct_indices(cells, required, where)
        else:
            yield where, [cells[index] for index in indices]


def _is_row(
    task: Task, has_label: bool, delimiter: str, columns: Sequence[str], cells: Sequence[str]
) -> bool:
    """Return whether cells are a row of a table with these columns: whether their label is one.

    Without labels each line of a TSV file that has all cells is taken for a row, and none of a CSV file, which quotes
    a text of several lines.
    """
    columns = [nfc(column) for column in columns]
    if len(cells) != len(columns):
        return False
    if not has_label:
        return delimiter == "\t"
    if task.file_label not in columns:
        return False
    try:
        _parse_label(cells[columns.index(task.file_label)], task, "")
    except UsageError:
        return False
    return True


def _read_json_lines(path: Path, task: Task, required: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path, allow_cr=True), 1):
        where = f"{path} line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            if "\r" in line.rstrip("\r\n"):
                raise UsageError(f"{where}: {LONE_CR}") from None
            reason = "nested too deep" if isinstance(error, RecursionError) else _shown(str(error))
            raise UsageError(f"{where}: not JSON ({reason}); write one object a line") from None
        if not isinstance(record, dict):
            raise UsageError(f'{where}: not a JSON object; write one a line, as in {{"{required[0]}": ...}}')
        indices, values = _distinct_indices(list(record), required, where), list(record.values())
        yield where, [values[index] for index in indices]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name is given twice in an object")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_parquet(path: Path, task: Task, required: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa  # imported late: slow, and few tasks need it
    import pyarrow.parquet as pq

    number = itertools.count(1)
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as table:
            names = table.schema_arrow.names
            names = [names[index] for index in _distinct_indices(names, required, str(path))]
            for batch in table.iter_batches(BATCH, columns=names, use_threads=False):
                columns = [batch.column(name).to_pylist() for name in names]
                yield from ((f"{path} row {next(number)}", values) for values in zip(*columns, strict=True))
    except UsageError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = _shown(first_line(error))
        raise UsageError(f"{path}: not a readable Parquet file ({reason}); write it again") from None


_READERS: dict[str, Callable[[Path, Task, Sequence[str]], Iterator[Row]]] = {
    ".csv": partial(_read_separated, delimiter=","),
    ".tsv": partial(_read_separated, delimiter="\t"),
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _require_file(path: Path, kind: str, task: Task, names: Sequence[str], flag: str = "--data-dir") -> None:
    """Refuse folders, and pipes and devices, whose reading might never end, and files that cannot be opened.

    `flag` names the file itself, or is `--data-dir`, in whose folder the task has files of these names.
    """
    where, missing = f"{flag} {path}", f"give its path, from the working folder, as {flag} FILE"
    if flag == "--data-dir":
        where, missing = str(path), f"task {task.name} reads {', '.join(names)}"
    if os.path.isdir(path):
        raise UsageError(f"{where}: is a folder; {kind} is needed")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{where}: no ordinary file; {kind} is needed")
    if not os.path.lexists(path):
        raise UsageError(f"{where}: there is no such file; {missing}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(
            f"{where}: cannot be read ({error.strerror}); fix that, or give another {flag}"
        ) from None


def _shown(value: object) -> str:
    """Return a value for a message: control characters escaped, at most 60 characters."""
    return _shortened(repr(value), 60)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
