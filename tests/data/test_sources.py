from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from ikd_ray.data import sources
from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS, Task, get_task


def row(task: Task, texts: tuple[str, ...], label: str) -> list[str]:
    return ["src", label, "", *texts] if task.headless else ["7", *texts, label]


def write(data_dir: Path, task: Task, rows: list[list[str]], **bytes_of: bytes) -> Path:
    """Write every file of a task with the same rows, or with the bytes given for its split."""
    folder = data_dir / task.folder
    folder.mkdir(parents=True)
    header = [] if task.headless else [["index", *task.file_text, task.file_label]]
    text = "".join("\t".join(fields) + "\n" for fields in [*header, *rows])
    for names in task.splits:
        (folder / names.file).write_bytes(bytes_of.get(names.name, text.encode()))
    return data_dir


def load(data_dir: Path, task: Task, rows: list[list[str]], **bytes_of: bytes) -> Dataset:
    return sources.load_dataset(task, write(data_dir, task, rows, **bytes_of))


def good_rows(task: Task) -> list[list[str]]:
    pair = ("A first text.", "A second.")[: len(task.text_columns)]
    return [row(task, pair, label) for label in task.file_labels or ("0.000", "3.8", "5.000")]


def refused(task: str, data_dir: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        sources.load_dataset(get_task(task), data_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "train", "dev"), [("cola", 8551, 1043), ("rte", 2490, 277), ("mrpc", 3667, 408)]
)
def test_real_glue_data(glue_dir, name, train, dev):
    task = get_task(name)
    data = sources.load_dataset(task, glue_dir)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": train, "dev": dev}
    assert data.description == f"GLUE folder {glue_dir.name} ({task.folder}, {train} train / {dev} dev)"
    assert data.source == "folder"
    assert not data.generated
    for part in data.splits.values():
        assert part.labels.dtype == np.int64
        assert set(part.labels) == {0, 1}
        assert (part.text_pair is not None) == task.is_pair
    direct = sources.load_dataset(task, glue_dir / task.folder)
    assert direct.fingerprint == data.fingerprint


def test_quotes_and_byte_order_mark_of_real_data(glue_dir):
    train = sources.load_dataset(get_task("mrpc"), glue_dir).splits["train"]
    assert train.text[0].startswith('Amrozi accused his brother , whom he called " the witness " ,')
    assert train.labels[:2].tolist() == [1, 0]


@pytest.mark.parametrize("name", TASKS)
def test_layout_of_each_task(tmp_path, name):
    task = get_task(name)
    data = load(tmp_path, task, good_rows(task))
    assert list(data.splits) == (["train", "dev", "dev_mismatched"] if name == "mnli" else ["train", "dev"])
    for part in data.splits.values():
        assert part.text == ["A first text."] * len(part)
        assert part.text_pair == (["A second."] * len(part) if task.is_pair else None)
        if name == "stsb":
            assert part.labels.dtype == np.float32
            assert part.labels.tolist() == pytest.approx([0, 3.8, 5])
        else:
            assert part.labels.tolist() == list(range(task.num_labels))


@pytest.mark.parametrize(
    ("name", "label", "meaning"), [("rte", "not_entailment", "not_entailment"), ("wnli", "1", "entailment")]
)
def test_labels_have_the_hubs_order(tmp_path, name, label, meaning):
    task = get_task(name)
    data = load(tmp_path, task, [row(task, ("a", "b"), label)])
    assert task.labels[data.splits["dev"].labels[0]] == meaning


def test_columns_are_found_by_name_in_any_order(tmp_path):
    text = b"label\textra\tsentence\tquestion\r\nentailment\tx\tIt is.\tIs it?\r\n"
    train = load(tmp_path, get_task("qnli"), [], train=b"\xef\xbb\xbf" + text, dev=text).splits["train"]
    assert (train.text, train.text_pair) == (["Is it?"], ["It is."])


def test_texts_are_unchanged(tmp_path):
    task = get_task("cola")
    texts = [
        'He said " so',
        '"whole"',
        "a\x85b\u2028c\x0bd\x1ce",
        "\x1b[31mred",
        " spaces ",
        "in\rside",
        "\ufeffmark",
    ]
    dev = b"\xef\xbb\xbfs\t0\t\tlast line without an end"
    data = load(tmp_path, task, [row(task, (text,), "1") for text in texts], dev=dev)
    assert data.splits["train"].text == texts
    assert data.splits["dev"].text == ["last line without an end"]


def test_corrupted_rows_of_qqp_are_skipped_and_counted(tmp_path):
    task = get_task("qqp")
    broken = [["9", "a question cut", "by a line feed"], ["", "0"], ["9", "no second", "", "1"]]
    data = load(tmp_path / "glue", task, [*good_rows(task), *broken])
    assert len(data.splits["train"]) == 2
    assert data.description == "GLUE folder glue (QQP, 2 train / 2 dev, 6 corrupted rows skipped)"
    only = write(tmp_path / "only", task, broken)
    assert "no rows besides 3 corrupted ones" in refused("qqp", only)
    wrong = write(tmp_path / "wrong", task, [row(task, ("a", "b"), "2")])
    assert "is_duplicate '2' is not one of: 0, 1" in refused("qqp", wrong)


RTE_HEADER = b"index\tsentence1\tsentence2\tlabel\n"
RTE_ROW = b"0\ta\tb\tentailment\n"
STSB_HEADER = b"index\tsentence1\tsentence2\tscore\n"


@pytest.mark.parametrize(
    ("name", "content", "line", "wrong", "right"),
    [
        ("cola", b"s\t1\t\tgood\ns\t1\tbad\n", 2, "3 tab-separated columns", "where 4 are right"),
        ("cola", b"s\t1\t\tgood\n\ns\t1\t\tgood\n", 2, "1 tab-separated columns", "where 4 are right"),
        ("cola", b"s\t1\t\tgood\ns\t2\t\tbad\n", 2, "label '2'", "not one of: 0, 1"),
        ("cola", b"s\t1\t\t \n", 1, "'sentence' is empty", "where a text is needed"),
        ("cola", b"s\t1\t\tgood\ns\t1\t\tcaf\xe9\n", 2, "byte 9 is not UTF-8", "save the file as UTF-8"),
        ("cola", "s\t1\t\tgood\n".encode("utf-16"), 1, "not UTF-8", "save the file as UTF-8"),
        ("cola", b"s\t\x1b[2J\t\tbad\n", 1, r"label '\x1b[2J'", "not one of: 0, 1"),
        ("cola", b"s\t" + b"9" * 500 + b"\t\tbad\n", 1, "label '" + "9" * 56 + "...", "not one of: 0, 1"),
        ("rte", RTE_HEADER + RTE_ROW + b"1\ta\tb\tneutral\n", 3, "'neutral'", "of: entailment, not_"),
        ("rte", RTE_HEADER + b"1\ta\t\tentailment\n", 2, "'sentence2' is empty", "where a text is needed"),
        ("rte", RTE_HEADER + b"1\ta\tb\tc\tentailment\n", 2, "5 tab-separated columns", "where 4 are right"),
        ("rte", RTE_ROW, 1, "no column 'sentence1'", "the task reads sentence1, sentence2, label"),
        ("rte", b"index\tsentence1\tlabel\n", 1, "no column 'sentence2'", "sentence1, sentence2, label"),
        ("rte", b"index\tsentence1\tsentence2\n", 1, "no column 'label'", "sentence1, sentence2, label"),
        (
            "rte",
            (RTE_HEADER + RTE_ROW).replace(b"\n", b"\r"),
            1,
            "a carriage return stands alone",
            "LF or CRLF",
        ),
        ("cola", b"s\t1\t\tgood\rs\t1\t\tbad\r", 1, "a carriage return stands alone", "LF or CRLF"),
        ("cola", b"s\t1\t\tgood\r" * 2**17, 1, "over 1 MiB; a carriage return", "LF or CRLF"),
        ("rte", b"\x1b[2J\n", 1, r"got ['\x1b[2J']", "the task reads sentence1"),
        ("stsb", STSB_HEADER + b"0\ta\tb\t5.1\n", 2, "score '5.1'", "not a number from 0 to 5"),
        ("stsb", STSB_HEADER + b"0\ta\tb\t-0.1\n", 2, "score '-0.1'", "not a number from 0 to 5"),
        ("stsb", STSB_HEADER + b"0\ta\tb\tnan\n", 2, "score 'nan'", "not a number from 0 to 5"),
        ("stsb", STSB_HEADER + b"0\ta\tb\tmuch\n", 2, "score 'much'", "not a number from 0 to 5"),
    ],
)
@pytest.mark.parametrize("split", ["train", "dev"])
def test_wrong_rows_are_refused_with_file_line_and_remedy(tmp_path, name, content, line, wrong, right, split):
    task = get_task(name)
    message = refused(name, write(tmp_path, task, good_rows(task), **{split: content}))
    assert message.startswith(f"{tmp_path / task.folder / split}.tsv line {line}: ")
    assert wrong in message
    assert right in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cola", b"", ": no rows; one example a line is needed"),
        ("rte", RTE_HEADER, ": no rows; one example a line is needed"),
        ("rte", b"", " line 1: there is no column 'sentence1'"),
    ],
)
def test_file_without_rows_is_refused(tmp_path, name, content, words):
    task = get_task(name)
    message = refused(name, write(tmp_path, task, good_rows(task), dev=content))
    assert message.startswith(f"{tmp_path / task.folder / 'dev.tsv'}{words}")


def test_missing_file_and_folder_in_place_of_a_file(tmp_path):
    task = get_task("mnli")
    write(tmp_path, task, good_rows(task))
    missing = tmp_path / "MNLI" / "dev_mismatched.tsv"
    missing.unlink()
    expected = (
        f"{missing}: there is no such file; task mnli reads train.tsv, dev_matched.tsv, dev_mismatched.tsv"
    )
    assert refused("mnli", tmp_path) == expected
    missing.mkdir()
    assert refused("mnli", tmp_path) == f"{missing}: is a folder; a tab-separated file is needed"


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    def denied(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    task = get_task("cola")
    write(tmp_path, task, good_rows(task))
    monkeypatch.setattr(Path, "open", denied)
    assert f"{tmp_path / 'CoLA' / 'train.tsv'}: cannot be read (Permission denied)" in refused(
        "cola", tmp_path
    )


def test_wrong_folders_are_refused(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert f"--data-dir {nowhere}: there is no such folder" in refused("cola", nowhere)
    file = tmp_path / "file"
    file.write_text("text")
    assert f"--data-dir {file}: is a file, not a folder" in refused("cola", file)
    data_dir = tmp_path / "glue"
    data_dir.mkdir()
    message = refused("cola", data_dir)
    assert str(data_dir / "CoLA") in message
    assert message.endswith("GLUE folders there: none")
    (data_dir / "RTE").mkdir()
    (data_dir / "SST-2").mkdir()
    assert refused("cola", data_dir).endswith("GLUE folders there: SST-2, RTE")


def test_fingerprint_depends_on_all_content(tmp_path):
    cola, mrpc = get_task("cola"), get_task("mrpc")

    def key(task, first, second=None, labels=(0, 1)):
        splits = {"train": Split(first, second, np.array(labels, np.int64))}
        return Dataset(task, splits, "folder", "").fingerprint

    keys = [
        key(cola, ["ab", "c"]),
        key(cola, ["a", "bc"]),
        key(cola, ["c", "ab"]),
        key(cola, ["ab", "c"], labels=(1, 0)),
        key(get_task("sst2"), ["ab", "c"]),
        key(mrpc, ["ab", "c"], ["d", "e"]),
        key(mrpc, ["d", "e"], ["ab", "c"]),
    ]
    assert len(set(keys)) == 7
    assert {len(each) for each in keys} == {64}
    one, two = (load(tmp_path / name, cola, good_rows(cola)).fingerprint for name in ("one", "two"))
    assert one == two


def test_embedded_corpus_is_the_last_source(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = sources.load_dataset(get_task("cola"), None)
    assert data.generated
    assert data.source == "embedded"
    assert data.description.startswith("GENERATED corpus (not CoLA): ")
    for part in data.splits.values():
        assert len(part) > 1000
        assert len(part) == len(part.labels)
        assert set(part.labels) == {0, 1}
        assert part.labels.dtype == np.int64
