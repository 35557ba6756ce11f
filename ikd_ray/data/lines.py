"""Lines of text files with examples."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ikd_ray.errors import UsageError

MAX_LINE = 2**20  # bytes: bounds memory where a file has no line ends
LONE_CR = "a carriage return stands alone within the line; save the file with lines that end in LF or CRLF"


def read_lines(path: Path, allow_cr: bool = False) -> Iterator[str]:
    """Yield a text file's lines with their ends.

    A line ends at a line feed and nowhere else: sentences hold U+0085 and U+2028, at which `str.splitlines` breaks.

    Args:
        path: the file.
        allow_cr: whether a line ends at a carriage return where a file has no line feed, as old programs write it.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 or has a line of over `MAX_LINE` bytes.
    """
    try:
        with path.open("rb") as file:
            lines = _split_at_returns(file) if allow_cr and _has_returns_only(file) else _split(file)
            for number, data in enumerate(lines, 1):
                if number == 1:
                    data = data.removeprefix(codecs.BOM_UTF8)
                if len(data) > MAX_LINE:
                    problem = LONE_CR if b"\r" in data else "one example a line is needed"
                    raise UsageError(f"{path} line {number}: over 1 MiB; {problem}")
                try:
                    yield data.decode()
                except UnicodeDecodeError as error:
                    raise UsageError(
                        f"{path} line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                    ) from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); fix that, then run the command again"
        ) from None


def _split(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(file.readline, MAX_LINE + 1), b"")


def _split_at_returns(file: BinaryIO) -> Iterator[bytes]:
    text = io.TextIOWrapper(file, "latin-1", newline="\r")  # which has a character for each byte
    return (line.encode("latin-1") for line in iter(partial(text.readline, MAX_LINE + 1), ""))


def _has_returns_only(file: BinaryIO) -> bool:
    head = file.read(MAX_LINE + 1)
    file.seek(0)
    return b"\r" in head and b"\n" not in head
