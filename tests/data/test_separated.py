"""Quotes in CSV and TSV: no row of a file vanishes in a cell of another."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.data.readers import read_unlabelled
from ikd_ray.errors import UsageError
from ikd_ray.tasks import get_task
from tests.data.test_readers import ONE, PAIR, read, refusal

QUOTED_TEXTS = st.lists(
    st.text(st.sampled_from('ab "'), min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=8
)
ANY_TEXTS = st.lists(
    st.text(st.sampled_from('ab "\t\n\r,'), min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=8
)


def table(texts: list[str], delimiter: str = "\t") -> str:
    """Write a table without quoting, with a label of its own in each row."""
    rows = [f"{text}{delimiter}{number % 2}" for number, text in enumerate(texts)]
    return "\n".join([f"text{delimiter}label", *rows])


def sixty_rows(**changes: str) -> list[str]:
    return [changes.get(f"row{number}", f"text {number}") for number in range(60)]


TALK = {"row9": '"Oh', "row29": 'really"'}  # two texts with half of a quotation each


def test_rows_between_two_quotes_of_a_tsv_file_are_read():
    texts = sixty_rows(**TALK)
    split = read(table(texts).encode(), ".tsv")
    assert split.text == texts
    assert split.labels.tolist() == [number % 2 for number in range(60)]


def test_rows_between_quotes_in_different_columns_are_read():
    rows = ['"a\tb\t1', "c\td\t0", 'e\tf"\t1']
    split = read("\n".join(["text\tother\tlabel", *rows]).encode(), ".tsv", PAIR)
    assert split.text == ['"a', "c", "e"]
    assert split.text_pair == ["b", "d", 'f"']


def test_quotes_of_a_pair_in_one_line_are_characters():
    split = read(b'text\tother\tlabel\n"a\tb"\t1\n', ".tsv", PAIR)
    assert (split.text, split.text_pair) == (['"a'], ['b"'])


def test_rows_between_two_quotes_of_a_csv_file_are_named():
    message = refusal(table(sixty_rows(**TALK), ","))
    assert (
        "line 11: a quoted cell goes on to line 31, but 21 of these lines are rows themselves; put" in message
    )


@pytest.mark.parametrize(
    "text", ['"Oh', 'the "b', '"Oh" he said', '"Oh"', '"', '""', '"Oh"" he said', 'really"', "5'6\" or so"]
)
def test_quotes_of_an_unquoted_tsv_file_are_characters(text):
    texts = ["first", text, 'the "third"', "fourth"]
    assert read(table(texts).encode(), ".tsv").text == texts


@settings(max_examples=200)
@given(texts=QUOTED_TEXTS, delimiter=st.sampled_from(["\t", ","]))
def test_no_row_vanishes(texts, delimiter):
    try:
        split = read(table(texts, delimiter).encode(), ".tsv" if delimiter == "\t" else ".csv")
    except UsageError as error:
        split, message = None, str(error)
    if split is None:
        assert " line " in message
        return
    assert split.labels.tolist() == [number % 2 for number in range(len(texts))]
    # Quotes around a whole text are the file's where all of the column have them.
    assert [text.replace('"', "") for text in split.text] == [text.replace('"', "") for text in texts]


@settings(max_examples=200)
@given(
    texts=ANY_TEXTS,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    delimiter=st.sampled_from(["\t", ","]),
    end=st.sampled_from(["\n", "\r\n"]),
    with_plain_header=st.booleans(),
)
def test_quoted_files_are_read_exactly(texts, quoting, delimiter, end, with_plain_header):
    # Where lines end in "\n", Python's writer leaves "\r" as it is.
    texts = [text if end == "\r\n" else text.replace("\r", "\n") + "x" for text in texts]
    content = io.StringIO()
    writer = csv.writer(content, delimiter=delimiter, quoting=quoting, lineterminator=end)
    if with_plain_header:  # as of a database's export
        content.write(f"text{delimiter}label{end}")
    else:
        writer.writerow(["text", "label"])
    writer.writerows([text, number % 2] for number, text in enumerate(texts))
    split = read(content.getvalue().encode(), ".tsv" if delimiter == "\t" else ".csv")
    assert split.text == texts


def test_quoted_column_names_say_that_a_tsv_file_is_quoted():
    """Read what R writes: texts are quoted, but not missing ones; quotes within them are not doubled."""
    content = '"text"\t"label"\n"a b"\t0\nNA\t1\n'
    assert read(content.encode(), ".tsv").text == ["a b", "NA"]
    message = refusal(content + '"c \\"d\\""\t1\n', ".tsv")
    assert r"line 4: '\t' expected after" in message
    assert message.isprintable()


def test_a_cell_that_excel_quotes_for_its_comma_is_quoted():
    assert read(b'text\tlabel\r\n"a, b"\t1\r\nc\t0\r\n', ".tsv").text == ["a, b", "c"]


def test_a_cell_may_hold_what_looks_like_the_last_column():
    content = b'label,text\n1,"a\nb, c\n"\n0,"Roses are red,\nviolets are blue,"\n'
    assert read(content, ".csv", ONE).text == ["a\nb, c\n", "Roses are red,\nviolets are blue,"]


def test_a_wrong_row_of_a_tsv_file_says_how_quotes_are_read():
    message = refusal('text\tlabel\n"a\nb"\t1\n"c" d\t1\n', ".tsv")
    assert "line 2: the row has 1 columns where 2 are right; this file is read without quoting, " in message
    assert r"because of line 4: '\t' expected after" in message
    assert message.isprintable()


def test_a_wrong_row_of_a_quoted_tsv_file_is_named():
    content = 'text\tlabel\n"a\nb"\t1\nc\t0\t0\n'
    assert refusal(content, ".tsv").endswith("line 4: the row has 3 columns where 2 are right")
    assert "line 4: label 'x' is not one of" in refusal(content.replace("0\t0", "x"), ".tsv")


def test_a_needless_quote_is_named_where_it_spoils_a_quoted_tsv_file():
    content = 'text\tlabel\n"a\nb"\t1\n"c"\t0\nd\t1\n'
    assert refusal(content, ".tsv").endswith(
        "line 2: the row has 1 columns where 2 are right; this file is read without quoting, because of line 4: a cell "
        "is quoted that needs no quotes, unlike others of its column; quote all cells of that column, or write .jsonl"
    )
    assert read(content.replace("\nd", '\n"d"').encode(), ".tsv").text == ["a\nb", "c", "d"]


@pytest.mark.parametrize("columns", ["sentence", "id\tsentence"])
def test_rows_between_two_quotes_of_texts_without_a_label_are_read(tmp_path, columns):
    first = "1\t" * columns.count("\t")
    texts = ['"It is late', "he said", 'really"']
    path = tmp_path / "texts.tsv"
    path.write_text("\n".join([columns, *(first + text for text in texts)]) + "\n", encoding="utf-8")
    assert read_unlabelled(path, get_task("cola")) == (texts, None)


def test_a_text_of_several_lines_without_a_label_is_one_in_csv(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text('sentence\n"It is late,\nhe said"\nreally\n', encoding="utf-8")
    assert read_unlabelled(path, get_task("cola")) == (["It is late,\nhe said", "really"], None)
