"""Lines of text files with examples."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ikd_ray.errors import UsageError

MAX_LINE = 2**20  # bytes: bounds memory where a file has no line ends


def read_lines(path: Path) -> Iterator[str]:
    """Yield a text file's lines with their ends.

    A line ends at a line feed and nowhere else: sentences hold U+0085 and U+2028, at which `str.splitlines` breaks.

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
            f"{path}: cannot be read ({error.strerror}); fix that, or pass another --data-dir"
        ) from None
