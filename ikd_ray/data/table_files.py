"""Reading a custom task's tables: CSV, TSV, JSON lines and Parquet, told apart by their ending.

Nothing is guessed: no cell is taken for a missing one because it reads `NA`, no number for a label that only looks
like it, and what cannot be read as it should is named with its row.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ikd_ray.data.dataset import Split
from ikd_ray.data.table_rows import MAX_LINE, Rows, read_lines, refuse_what_is_no_file, shown
from ikd_ray.data.task_file import CustomTask
from ikd_ray.errors import UsageError

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
