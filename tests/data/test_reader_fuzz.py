"""Any file is read exactly or refused with a usage error that names the file and the line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.data.dataset import Split
from ikd_ray.data.lines import MAX_LINE
from ikd_ray.data.readers import read_glue_split
from ikd_ray.data.task_file import ENDINGS, CustomTask
from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS, Task
from tests.data.test_readers import PAIR, parquet
from tests.data.test_readers import TASKS as CUSTOM_TASKS
from tests.data.test_readers import read as read_custom

ANY = settings(max_examples=100)
TASK = st.sampled_from([*TASKS.values()])
# Line ends, quotes, escapes, byte order marks, surrogates: what breaks readers.
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


def check_refusal(error: UsageError, name: str) -> None:
    message = str(error).partition(name)[2]
    assert message
    assert message.isprintable()
    assert len(message) < 400


def check_split(split: Split, task: Task) -> None:
    assert len(split) == len(split.text) == len(split.labels) > 0
    assert (split.text_pair is not None) == task.is_pair
    assert all(text.strip() and text.encode() for text in (*split.text, *(split.text_pair or ())))
    if task.is_regression:
        low, high = task.score_range
        assert ((split.labels >= low) & (split.labels <= high)).all()
    else:
        assert set(split.labels) <= set(range(task.num_labels))


def check_glue(content: bytes, task: Task) -> None:
    try:
        split, skipped = read(content, task)
    except UsageError as error:
        check_refusal(error, "train.tsv")
        return
    check_split(split, task)
    rows = content.count(b"\n") + (not content.endswith(b"\n"))
    assert len(split) + skipped == rows - (not task.headless)


def check_custom(content: bytes, ending: str, task: CustomTask) -> None:
    try:
        check_split(read_custom(content, ending, task), task)
    except UsageError as error:
        check_refusal(error, f"train{ending}")


@ANY
@given(task=TASK, text=LINES, with_header=st.booleans())
def test_any_text_is_a_glue_file_or_refused(task, text, with_header):
    header = "\t".join((*task.file_text, task.file_label)) + "\n" if with_header and not task.headless else ""
    check_glue((header + text).encode("utf-8", "surrogatepass"), task)


@ANY
@given(task=TASK, content=st.binary(max_size=80))
def test_any_bytes_are_a_glue_file_or_refused(task, content):
    check_glue(content, task)


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
def test_glue_files_are_read_exactly(task, rows, end, bom):
    content = bom + (table(task, rows) + end).encode()
    split, skipped = read(content, task)
    assert skipped == 0
    assert split.text == [first for first, _, _ in rows]
    assert split.text_pair == ([second for _, second, _ in rows] if task.is_pair else None)
    outputs = 6 if task.is_regression else task.num_labels
    assert split.labels.tolist() == [number % outputs for _, _, number in rows]


def test_lines_are_limited_to_one_mebibyte():
    row = b"x\t1\t\t"
    longest = row + b"w" * (MAX_LINE - len(row))
    split, _ = read(longest, TASKS["cola"])
    np.testing.assert_array_equal(split.labels, [1])
    with pytest.raises(UsageError, match="line 1: over 1 MiB"):
        read(longest + b"w", TASKS["cola"])


# Custom tables

WORDS = ["text", "other", "label", "0", "1", "-0.5", "nan", "NaN"]
WORDS += ["1e999", "null", "true", *"[]{}:", "\\ud800"]
JSON_LINES = ['{"text": "a", "label": 1}\n', '{"text": "a", "other": "b", "label": 0.5}\n']
TABLE_PARTS = st.sampled_from([*WORDS, *JSON_LINES]) | PARTS


@ANY
@given(
    st.sampled_from(CUSTOM_TASKS),
    st.sampled_from([".csv", ".tsv", ".jsonl"]),
    st.booleans(),
    st.lists(TABLE_PARTS, max_size=30).map("".join),
)
def test_any_text_is_a_table_or_refused(task, ending, with_header, text):
    delimiter = {".csv": ",", ".tsv": "\t"}.get(ending)
    header = delimiter.join((*task.text_columns, task.file_label)) + "\n" if with_header and delimiter else ""
    check_custom((header + text).encode("utf-8", "surrogatepass"), ending, task)


@ANY
@given(st.sampled_from(CUSTOM_TASKS), st.sampled_from(ENDINGS), st.binary(max_size=80))
def test_any_bytes_are_a_table_or_refused(task, ending, content):
    check_custom(content, ending, task)


GOOD = parquet(text=[f"text {row}" for row in range(20)], other=["x"] * 20, label=["0", "1"] * 10)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_parquet_file_is_read_or_refused(changes):
    content = bytearray(GOOD)
    for position, byte in changes:
        content[position] = byte
    check_custom(bytes(content), ".parquet", PAIR)
