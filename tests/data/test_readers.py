"""Tables of custom tasks: read exactly, or refused with the file, the row and the column."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.data import readers, sources
from ikd_ray.data.dataset import Split
from ikd_ray.data.lines import MAX_LINE
from ikd_ray.data.readers import read_table, read_unlabelled
from ikd_ray.data.task_file import ENDINGS, CustomTask
from ikd_ray.errors import UsageError
from ikd_ray.tasks import get_task

ANY = settings(max_examples=150)
FILES = (("train", "train.csv"), ("dev", "dev.csv"))
ONE = CustomTask(
    "one", ("text",), ("no", "yes"), ("mcc",), "mcc", file_label="label", file_labels=("0", "1"), files=FILES
)
PAIR = replace(ONE, name="pair", text_columns=("text", "other"))
SCORE = CustomTask("score", ("text",), (), ("pearson",), "pearson", score_range=(-1.0, 1.0), files=FILES)
TASKS = (ONE, PAIR, SCORE)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
COLUMNS = ("text", "other", "label")


def write_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def parquet(**columns: object) -> bytes:
    return write_parquet(pa.table(columns))


def make_table(rows: list[dict[str, object]], ending: str, columns: Sequence[str] = COLUMNS) -> bytes:
    """Write a table with the format's standard library."""
    if ending == ".parquet":
        return write_parquet(pa.Table.from_pylist(rows))
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="," if ending == ".csv" else "\t")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read(content: bytes, ending: str, task: CustomTask = ONE) -> Split:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train{ending}"
        path.write_bytes(content)
        return read_table(path, task)


def refusal(content: str | bytes, ending: str = ".csv", task: CustomTask = ONE) -> str:
    with pytest.raises(UsageError) as error:
        read(content if isinstance(content, bytes) else content.encode(), ending, task)
    return str(error.value).partition(f"train{ending}")[2]


@ANY
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 1)), min_size=1, max_size=5),
    ending=st.sampled_from(ENDINGS),
    typed=st.booleans(),
)
def test_tables_of_standard_writers_are_read_exactly(rows, ending, typed):
    # Python 3.10 refuses NUL in CSV.
    texts, others, labels = zip(*rows, strict=True)
    texts, others = ([text.replace("\0", "-") for text in column] for column in (texts, others))
    written = labels if typed else map(str, labels)
    records = [dict(zip(COLUMNS, each, strict=True)) for each in zip(texts, others, written, strict=True)]
    split = read(make_table(records, ending), ending, PAIR)
    assert (split.text, split.text_pair, split.labels.tolist()) == (texts, others, list(labels))
    assert split.labels.dtype == "int64"


@pytest.mark.parametrize("ending", ENDINGS)
def test_scores_are_read_as_float32(ending):
    rows = [{"text": "a", "label": 0.5}, {"text": "b", "label": -1.0}]
    split = read(make_table(rows, ending), ending, SCORE)
    assert split.labels.tolist() == [0.5, -1.0]
    assert split.labels.dtype == "float32"
    assert split.text_pair is None


@pytest.mark.parametrize("ending", ENDINGS)
def test_words_for_missing_values_are_texts(ending):
    texts = ["NA", "null", "nan", "None", "#N/A", "007", "1e5", "true"]
    rows = [{"text": text, "label": "0"} for text in texts]
    assert read(make_table(rows, ending), ending).text == texts


def test_booleans_are_labels():
    task = replace(ONE, file_labels=("false", "true"))
    for ending in (".jsonl", ".parquet"):
        rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
        assert read(make_table(rows, ending), ending, task).labels.tolist() == [1, 0]


def test_byte_order_mark_is_no_part_of_a_column_name():
    assert read(b"\xef\xbb\xbftext,label\r\na,1\r\n", ".csv").text == ["a"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_lines_may_end_in_a_carriage_return_alone(ending):
    rows = [{"text": f"sentence {row} of a table", "label": row % 2} for row in range(50_000)]
    content = make_table(rows, ending).replace(b"\r\n", b"\r").replace(b"\n", b"\r")
    assert len(content) > MAX_LINE
    split = read(content, ending)
    assert split.text == [row["text"] for row in rows]
    assert split.labels.tolist() == [row["label"] for row in rows]


@pytest.mark.parametrize("ending", ENDINGS)
def test_texts_are_read_up_to_one_mebibyte(ending):
    texts = ["word " * 40_000, 'a\n"b",\t' * 20_000]
    rows = [{"text": text, "label": "1"} for text in texts]
    assert read(make_table(rows, ending), ending).text == texts


HEAD = "text,label\n"
MISTAKES = {
    "empty": ("", "no rows"),
    "only a header": (HEAD, "no rows"),
    "no such column": ("text,lable\na,1\n", "line 1: there is no column 'label'; the task reads text, label"),
    "semicolons": ("text;label\na;1\n", "line 1: there is no column 'text'"),
    "a column twice": ("text,label,text\na,1,b\n", "line 1: 2 columns are called 'text'"),
    "too few cells": (HEAD + "a,1\nb\n", "line 3: the row has 1 columns where 2 are right"),
    "too many cells": (HEAD + "a,b,1\n", "line 2: the row has 3 columns where 2 are right"),
    "an empty line": (HEAD + "a,1\n\nb,1\n", "line 3: the row has 0 columns"),
    "an empty text": (HEAD + "a,1\n  ,1\n", "line 3: column 'text' is empty"),
    "a label unknown": (HEAD + "a,2\n", "line 2: label '2' is not one of: 0, 1"),
    "a label with a blank": (HEAD + "a, 1\n", "line 2: label ' 1' is not one of: 0, 1"),
    "a label that escapes": (HEAD + "a,\x1b[2J\n", r"line 2: label '\x1b[2J' is not one of"),
    "lines in a cell": (HEAD + '"a\nb\nc",1\n"d\n\n",2\n', "line 5: label '2' is not one of"),
    "a quote not closed": (HEAD + 'a,1\n"b,1\nc,1\n', "line 3: unexpected end of data; put a cell"),
    "a quote in the middle": (HEAD + '"a" b,1\n', "line 2: ',' expected after '\"'; put a cell"),
    "not UTF-8": (HEAD.encode() + b"a\xff,1\n", "line 2: byte 2 is not UTF-8"),
    "UTF-16": (HEAD.encode("utf-16"), "line 1: byte 1 is not UTF-8"),
    "a line without end": (HEAD + "x" * (MAX_LINE + 1), "line 2: over 1 MiB"),
    "a cell without end": (HEAD + '"' + "x\n" * 2**20, "line 2: a cell has over 1,048,576 characters"),
    "an old line end": (HEAD + "a\rb,1\n", "line 2: a carriage return stands alone within the line; save"),
    "old line ends and new ones": ("text,label\ra,1\r\nb,1\n", "line 1: a carriage return stands alone"),
    "old line ends without end": (
        HEAD + "a,1\r" * 2**19,
        "line 2: over 1 MiB; a carriage return stands alone",
    ),
}


JSON_MISTAKES = {
    "empty": ("", "no rows"),
    "no JSON": ('{"text": "a", "label": 1}\n{text: b}\n', "line 2: not JSON ("),
    "an empty line": ('{"text": "a", "label": 1}\n\n', "line 2: not JSON ("),
    "a list": ('["a", 1]\n', "line 1: not a JSON object"),
    "no label": ('{"text": "a"}\n', "line 1: there is no column 'label'"),
    "a name twice": ('{"text": "a", "label": 1, "label": 0}\n', "line 1: not JSON ('a name is given twice"),
    "a text a number": ('{"text": 1, "label": 1}\n', "line 1: column 'text' holds 1 where a text is needed"),
    "a text missing": ('{"text": null, "label": 1}\n', "line 1: column 'text' holds None"),
    "half a character": ('{"text": "\\ud800", "label": 1}\n', "line 1: column 'text' holds a lone surrogate"),
    "a label a list": ('{"text": "a", "label": [1]}\n', "line 1: column 'label' holds [1] where a label"),
    "a label a float": ('{"text": "a", "label": 1.0}\n', "line 1: label '1.0' is not one of: 0, 1"),
    "no number": ('{"text": "a", "label": NaN}\n', "line 1: not JSON ('NaN is not JSON')"),
    "deep": ("[" * 100_000 + "\n", "line 1: not JSON (nested too deep)"),
    "5000 digits": ('{"text": "a", "label": ' + "9" * 5000 + "}\n", "line 1: "),
    "over two lines": ('{"text": "a",\n"label": 1}\n', "line 1: not JSON ("),
    "an old line end": (
        '{"text": "a"}\r{"text": "b"}\n',
        "line 1: a carriage return stands alone within the line",
    ),
}


TEXT = pa.array(["a", "b"])
PARQUET_MISTAKES = {
    "empty": (b"", "not a readable Parquet file"),
    "text": (b"text,label\na,1\n", "not a readable Parquet file"),
    "cut": (parquet(text=TEXT, label=["0", "1"])[:-20], "not a readable Parquet file"),
    "no rows": (parquet(text=pa.array([], pa.string()), label=pa.array([], pa.int64())), "no rows"),
    "no label": (parquet(text=TEXT), ": there is no column 'label'"),
    "text missing": (parquet(text=["a", None], label=[0, 1]), "row 2: column 'text' holds None"),
    "label missing": (parquet(text=TEXT, label=[0, None]), "row 2: column 'label' holds None"),
    "labels no numbers": (parquet(text=TEXT, label=[float("nan"), 1.0]), "row 1: label 'nan' is not one of"),
    "texts numbers": (parquet(text=[1, 2], label=[0, 1]), "row 1: column 'text' holds 1"),
    "texts bytes": (parquet(text=[b"a", b"b"], label=[0, 1]), "row 1: column 'text' holds b'a'"),
    "texts lists": (parquet(text=[["a"], ["b"]], label=[0, 1]), "row 1: column 'text' holds ['a']"),
    "texts no UTF-8": (
        parquet(text=pa.array([b"\xff", b"a"]).view(pa.string()), label=[0, 1]),
        "not a readable Parquet file",
    ),
    "a long text": (parquet(text=["a", "x" * (MAX_LINE + 1)], label=[0, 1]), "row 2: column 'text' has over"),
}  # fmt: skip


ALL_MISTAKES = {".csv": MISTAKES, ".jsonl": JSON_MISTAKES, ".parquet": PARQUET_MISTAKES}


@pytest.mark.parametrize(
    ("ending", "case"), [(ending, case) for ending, cases in ALL_MISTAKES.items() for case in cases]
)
def test_wrong_table_is_refused(ending, case):
    content, words = ALL_MISTAKES[ending][case]
    message = refusal(content, ending)
    assert words in message
    assert message.isprintable()


def test_parquet_file_with_a_repeated_column_is_refused():
    content = write_parquet(pa.table([TEXT, TEXT, [0, 1]], names=["text", "text", "label"]))
    assert "2 columns are called 'text'" in refusal(content, ".parquet")


def test_parquet_rows_are_numbered_across_batches():
    labels = ["0"] * 2500
    labels[2345] = "x"
    message = refusal(parquet(text=["a"] * 2500, label=labels), ".parquet")
    assert "row 2346: label 'x'" in message
    labels[2345] = "1"
    split = read(parquet(text=pa.array(["a"] * 2500).dictionary_encode(), label=labels), ".parquet")
    assert split.labels.nonzero()[0].tolist() == [2345]


WRONG_SCORES = [
    "",
    "x",
    "nan",
    "inf",
    "-1.01",
    "1e400",
    "0_1",
    "0.0_5",
    "-infinity",
    "\uff10",
    "\u0660.\u0665",
    "0,5",
    "\xa00",
    "0x0",
]


@pytest.mark.parametrize("score", WRONG_SCORES)
def test_score_out_of_range_is_refused(score):
    assert "is not a number from -1 to 1" in refusal(f'text,label\na,"{score}"\n', task=SCORE)


@pytest.mark.parametrize("score", ["1", "+1", "1.", "1.0", "0.1e1", "10E-1", "1e0", " 1 ", "001"])
def test_scores_are_written_as_numbers_are(score):
    assert read(f"text,label\na,{score}\n".encode(), ".csv", SCORE).labels.tolist() == [1.0]


@pytest.mark.parametrize("ending", ENDINGS)
def test_path_that_is_no_ordinary_file_is_refused(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    with pytest.raises(UsageError, match=r"no such file; task one reads train\.csv, dev\.csv"):
        read_table(path, ONE)
    path.mkdir()
    with pytest.raises(UsageError, match="is a folder; a table is needed"):
        read_table(path, ONE)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="no ordinary file"):
        read_table(path, ONE)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UsageError, match="levels of symbolic links"):
        read_table(path, ONE)


def test_splits_of_a_custom_task_are_loaded(tmp_path):
    (tmp_path / "train.csv").write_text(HEAD + "a,1\nb,0\n")
    with pytest.raises(
        UsageError, match=r"dev\.csv: there is no such file; task one reads train\.csv, dev\.csv"
    ):
        sources.load_dataset(ONE, tmp_path)
    (tmp_path / "dev.csv").write_text(HEAD + "c,1\n")
    data = sources.load_dataset(ONE, tmp_path)
    assert {name: split.text for name, split in data.splits.items()} == {"train": ["a", "b"], "dev": ["c"]}
    assert data.description == f"folder {tmp_path.name} (one, 2 train / 1 dev)"
    assert not data.generated
    with pytest.raises(UsageError, match=r"is a file, not a folder; give the folder that holds train\.csv"):
        sources.load_dataset(ONE, tmp_path / "dev.csv")
    with pytest.raises(UsageError, match="there is no such folder"):
        sources.load_dataset(ONE, tmp_path / "nowhere")


def test_a_missing_table_without_labels_is_named_with_what_to_type(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text(HEAD + "a,1\nb,0\n")
    path = tmp_path / "texts.csv"
    with pytest.raises(UsageError) as error:
        sources.load_dataset(ONE, tmp_path, path)
    assert (
        str(error.value)
        == f"--unlabelled {path}: there is no such file; give its path, from the working folder, as --unlabelled FILE"
    )
    with pytest.raises(UsageError) as error:
        sources.load_dataset(replace(ONE, unlabelled_file="texts.csv"), tmp_path)
    assert str(error.value) == f"{path}: there is no such file; task one reads texts.csv"
    path.symlink_to(path)
    with pytest.raises(UsageError, match=r"symbolic links\); fix that, or give another --unlabelled$"):
        sources.load_dataset(ONE, tmp_path, path)


FRENCH = replace(
    ONE, text_columns=("énoncé",), labels=("né", "là"), file_label="catégorie", file_labels=("né", "là")
)


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_in_either_unicode_form_are_the_same(tmp_path, ending):
    """Hold the names of columns, labels and files in decomposed form against the task's composed ones."""
    columns = (*FRENCH.text_columns, FRENCH.file_label)
    rows = [[f"voilà {number}", FRENCH.labels[number]] for number in range(2)]
    decomposed = [normalize("NFD", name) for name in columns]
    records = [dict(zip(decomposed, [text, normalize("NFD", label)], strict=True)) for text, label in rows]
    task = replace(FRENCH, files=(("train", f"données/jeu-é{ending}"), ("dev", f"données/jeu-ù{ending}")))
    for _, name in task.files:
        path = tmp_path / normalize("NFD", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_table(records, ending, decomposed))
    for split in sources.load_dataset(task, tmp_path).splits.values():
        assert split.text == ["voilà 0", "voilà 1"]
        assert split.labels.tolist() == [0, 1]
    twice = [dict.fromkeys([columns[0], *decomposed], "né")]
    assert "2 columns are called 'énoncé'" in refusal(
        make_table(twice, ending, list(twice[0])), ending, FRENCH
    )


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_texts_without_a_label_are_read(tmp_path, ending):
    rows = [("w1 w2", "x"), ("größe", "y")]
    path = tmp_path / f"texts.{ending}"
    if ending == "jsonl":
        lines = [json.dumps({"other": other, "sentence": text}) for text, other in rows]
    else:
        delimiter = "," if ending == "csv" else "\t"
        lines = [delimiter.join(("sentence", "other")), *(delimiter.join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_unlabelled(path, get_task("cola")) == (["w1 w2", "größe"], None)
    with pytest.raises(UsageError, match="there is no column 'sentence1'"):
        read_unlabelled(path, get_task("mrpc"))
    with pytest.raises(UsageError, match="the ending tells the format"):
        read_unlabelled(path.rename(tmp_path / "texts.txt"), get_task("cola"))


def test_a_folder_that_cannot_be_listed_is_told_as_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.setattr(readers.os, "listdir", lambda _: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(UsageError, match=r"train\.csv: there is no such file"):
        sources.load_dataset(ONE, tmp_path)
