"""Rows of CSV and TSV files.

CSV is read as RFC 4180 has it: a quoted cell may hold delimiters, line ends, and quotes doubled. Of TSV there are two
kinds, and neither says which it is: pandas and Excel quote as in CSV, while in GLUE's files and many others a quote is
a character of the text. Read as RFC 4180, a text of such a file that begins with a quote would take in all rows up to
the next quote. A TSV file is therefore RFC 4180 only if the names of its columns are quoted, or if every quote in it
stands where a writer puts one; otherwise each line is a row.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from ikd_ray.data.lines import LONE_CR, MAX_LINE, read_lines
from ikd_ray.errors import UsageError

IsRow = Callable[[Sequence[str], Sequence[str]], bool]
"""Whether cells are a row of the table with these columns."""

_ADVICE = 'put a cell that holds quotes or line ends in double quotes, and write each quote in it as ""'
_TOO_LONG = f"a cell has over {MAX_LINE:,} characters; close its quote, or shorten the text"
_CELL = re.compile(r'(?:^|\t)("[^"]*(?:""[^"]*)*"|[^"\t]*)')  # of a TSV row as RFC 4180 has it
# Excel quotes a cell with its list separator, a comma or a semicolon; other writers one with blanks at its ends.
_NEEDS_QUOTES = re.compile(r'["\t\r\n,;]|^\s|\s$|^$')

csv.field_size_limit(MAX_LINE)  # of the whole process; Python's default is 131,072


class _QuotingError(UsageError):
    """A quote where RFC 4180 has none."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path} line {line}: {problem}")
        self.reason = f"line {line}: {problem}"


def read_rows(path: Path, delimiter: str, is_row: IsRow) -> Iterator[tuple[str, list[str]]]:
    """Yield the file and line, for messages, and the cells of each row; the first row has the columns' names.

    All rows have the same number of cells.

    Raises:
        UsageError: The file is not such a table; the message names the line.
    """
    if delimiter == "\t" and '"' not in next(read_lines(path, allow_cr=True), ""):
        try:
            _require_quoting(path, is_row)
        except _QuotingError as error:
            yield from _plain_rows(path, error.reason)
            return
    for number, _, cells in _quoted_rows(path, delimiter, is_row):
        yield f"{path} line {number}", cells


def _quoted_rows(path: Path, delimiter: str, is_row: IsRow) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield the first line's number, the lines and the cells of each row, read as RFC 4180 has it."""
    columns: list[str] = []
    for number, lines, cells in _parse(path, delimiter):
        if not columns:
            columns = cells
        elif len(lines) > 1 or len(cells) != len(columns):
            rows = sum(is_row(columns, _split(line, delimiter)) for line in lines)
            # Of the lines of one row, the first or the last may look like a row: that with the label.
            if len(lines) > 1 and rows > 1:
                cell = f"a quoted cell goes on to line {number + len(lines) - 1}"
                raise _QuotingError(
                    path,
                    number,
                    f"{cell}, but {rows} of these lines are rows themselves; {_ADVICE}, or write .jsonl",
                )
            if len(cells) != len(columns):
                problem = f"the row has {len(cells)} columns where {len(columns)} are right"
                if rows:
                    raise _QuotingError(path, number, problem)
                raise UsageError(f"{path} line {number}: {problem}")
        yield number, lines, cells


def _parse(path: Path, delimiter: str) -> Iterator[tuple[int, list[str], list[str]]]:
    taken: list[str] = []

    def take() -> Iterator[str]:
        for line in read_lines(path, allow_cr=True):
            taken.append(line)
            yield line

    rows, number = csv.reader(take(), delimiter=delimiter, strict=True), 1
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise _QuotingError(path, number, _explain(error)) from None
        if cells is None:
            return
        yield number, taken.copy(), cells
        number += len(taken)
        taken.clear()


def _explain(error: csv.Error) -> str:
    reason = str(error).replace("\t", "\\t")  # it quotes the delimiter
    # csv has one type of error; these two have nothing to do with quoting.
    if reason.startswith("field larger than"):
        return _TOO_LONG
    if reason.startswith("new-line character"):
        return LONE_CR
    return f"{reason}; {_ADVICE}"


def _require_quoting(path: Path, is_row: IsRow) -> None:
    """Require that a TSV file's quotes all stand where a writer that follows RFC 4180 puts them.

    Such a writer quotes the cells that need it, or all of a column.

    Raises:
        UsageError: They do not (`_QuotingError`), or the file is not a table.
    """
    always: set[int] | None = None
    needless: dict[int, int] = {}  # first line with a cell quoted needlessly, by column
    for number, lines, cells in islice(_quoted_rows(path, "\t", is_row), 1, None):
        row = "".join(lines).rstrip("\r\n")
        written = _CELL.findall(row)
        if "\t".join(written) != row:
            raise _QuotingError(path, number, f"a quote stands in a cell that is not quoted; {_ADVICE}")
        quoted = {column for column, cell in enumerate(written) if cell.startswith('"')}
        always = quoted if always is None else always & quoted
        for column in quoted:
            if not _NEEDS_QUOTES.search(cells[column]):
                needless.setdefault(column, number)
    for column in needless.keys() - (always or set()):
        raise _QuotingError(
            path,
            needless[column],
            "a cell is quoted that needs no quotes, unlike others of its column; quote all cells of that column, or "
            "write .jsonl",
        )


def _plain_rows(path: Path, reason: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each line of a TSV file as a row; `reason` says why it is not quoted."""
    width = 0
    for number, line in enumerate(read_lines(path, allow_cr=True), 1):
        where, cells = f"{path} line {number}", _split(line, "\t")
        width = width or len(cells)
        if any("\r" in cell for cell in cells):
            raise UsageError(f"{where}: {LONE_CR}")
        if len(cells) != width:
            raise UsageError(
                f"{where}: the row has {len(cells)} columns where {width} are right; this file is read without "
                f"quoting, because of {reason}"
            )
        yield where, cells


def _split(line: str, delimiter: str) -> list[str]:
    return line.rstrip("\r\n").split(delimiter)
