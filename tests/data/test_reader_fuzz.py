"""Whatever a data folder holds, it is read exactly or is a usage error that names file and line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.data.dataset import Split, fingerprint
from ikd_ray.data.readers import MAX_LINE, read_glue_split
from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS, Task

ANY = settings(max_examples=150, deadline=None)
TASK = st.sampled_from([*TASKS.values()])
# What breaks readers: other line ends, quotes, escapes, BOMs, halves of characters.
PARTS = st.sampled_from(
    ["\t", "\n", "\r", "\r\n", '"', '""', "'", "\\", "\0", "\x1b[2J", "\x85", "\u2028", "\ufeff", ",", " "]
) | st.text(max_size=3)
LINES = st.lists(
    st.sampled_from([*(name for task in TASKS.values() for name in (*task.file_text, task.file_label))])
    | st.sampled_from(["0", "1", "5", "nan", "inf", "-0", "1e400", "entailment", "x\t1\t\tgood\n"])
    | PARTS,
    max_size=30,
).map("".join)
# A text of a table has no tab and no line feed, ends in no carriage return, and is more than blanks.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and not text.endswith("\r")
)


def read(content: bytes, task: Task) -> tuple[Split, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.tsv"
        path.write_bytes(content)
        return read_glue_split(path, task)


def reads_or_explains(content: bytes, task: Task) -> None:
    try:
        split, skipped = read(content, task)
    except UsageError as error:
        message = str(error).partition("train.tsv")
    else:
        message = None
    if message:
        assert message[1]
        assert message[2].isprintable()
        assert len(message[2]) < 300
        return
    assert len(split) == len(split.text) == len(split.labels) > 0
    assert (split.text_pair is not None) == task.is_pair
    assert all(text.strip() for text in (*split.text, *(split.text_pair or ())))
    if task.is_regression:
        assert ((split.labels >= 0) & (split.labels <= 5)).all()
    else:
        assert set(split.labels) <= set(range(task.num_labels))
    rows = content.count(b"\n") + (not content.endswith(b"\n"))
    assert len(split) + skipped == rows - (not task.headless)


@ANY
@given(task=TASK, text=LINES)
def test_any_text_is_read_or_a_usage_error(task, text):
    reads_or_explains(text.encode("utf-8", "surrogatepass"), task)


@ANY
@given(task=TASK, text=LINES)
def test_any_rows_below_a_right_header_are_read_or_a_usage_error(task, text):
    header = "" if task.headless else "\t".join((*task.file_text, task.file_label)) + "\n"
    reads_or_explains((header + text).encode("utf-8", "surrogatepass"), task)


@ANY
@given(task=TASK, content=st.binary(max_size=80))
def test_any_bytes_are_read_or_a_usage_error(task, content):
    reads_or_explains(content, task)


def table(task: Task, rows: list[tuple[str, str, int]]) -> str:
    names = task.headless or (*task.file_text, task.file_label)
    lines = [] if task.headless else ["\t".join(names)]
    for first, second, number in rows:
        label = str(number % 6) if task.is_regression else task.file_labels[number % task.num_labels]
        cells = dict(zip(task.file_text, (first, second), strict=False)) | {task.file_label: label}
        lines.append("\t".join(cells.get(name, "") for name in names))
    return "\n".join(lines)


@ANY
@given(
    task=TASK,
    rows=st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 99)), min_size=1, max_size=5),
    end=st.sampled_from(["", "\n"]),
    bom=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_every_table_is_read_exactly(task, rows, end, bom):
    content = bom + (table(task, rows) + end).encode()
    split, skipped = read(content, task)
    assert skipped == 0
    assert split.text == [first for first, _, _ in rows]
    assert split.text_pair == ([second for _, second, _ in rows] if task.is_pair else None)
    outputs = 6 if task.is_regression else task.num_labels
    assert split.labels.tolist() == [number % outputs for _, _, number in rows]


@ANY
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 1)), min_size=2, max_size=5),
    change=st.integers(0, 10_000),
)
def test_another_byte_is_another_fingerprint(rows, change):
    """A cache found by the fingerprint is never another data set's."""
    task = TASKS["rte"]
    content = table(task, rows).encode()
    position = len("sentence1\tsentence2\tlabel\n") + change % (len(content) - 26)
    other = bytearray(content)
    other[position] ^= 1
    before, _ = read(content, task)
    try:
        after, _ = read(bytes(other), task)
    except UsageError:
        return
    assert fingerprint(task, {"train": before}) != fingerprint(task, {"train": after})


def test_a_line_may_be_as_long_as_the_limit_and_no_longer():
    row = b"x\t1\t\t"
    longest = row + b"w" * (MAX_LINE - len(row))
    split, _ = read(longest, TASKS["cola"])
    np.testing.assert_array_equal(split.labels, [1])
    with pytest.raises(UsageError, match="line 1: over 1 MiB"):
        read(longest + b"w", TASKS["cola"])
