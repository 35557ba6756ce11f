"""Task files: their content, the messages about mistakes, and the copy that a sweep keeps."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.data import sources
from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.task_file import TASK_FILE, CustomTask, find_task, keep_task, kept_task, load_task
from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS

PLAIN = """\
name: reviews
text: review
label: stars
labels: [negative, neutral, positive]
metric: accuracy
"""
PAIRS = """\
name: pairs
text: [premise, hypothesis]
label: gold
labels: {0: no, 007: "yes"}
metric: f1
metrics: [accuracy, f1, mcc]
files: {train: all/train.tsv, dev: dev.parquet}
"""
DRAWN = PLAIN + "files: {train: all.csv, test: test.csv}\nsplit: 0.1\nsplit_seed: 7\nlanguage: no\n"
HUB = """\
name: films
text: text
label: label
labels: {neg: negative, pos: positive}
metric: accuracy
dataset: stanfordnlp/imdb
config: plain_text
revision: 1e5
splits: {dev: test}
"""
SCORES = "name: likeness\ntext: [a, b]\nlabel: score\nrange: [-1, 2.5]\nmetric: spearman\n"


@pytest.fixture
def load(tmp_path):
    def load(text: str) -> CustomTask:
        (tmp_path / "task.yaml").write_text(text)
        return load_task(tmp_path / "task.yaml")

    return load


def test_a_classification_task(load):
    task = load(PLAIN)
    assert (task.name, task.text_columns, task.file_label) == ("reviews", ("review",), "stars")
    assert task.labels == task.file_labels == ("negative", "neutral", "positive")
    assert (task.metric, task.metrics) == ("accuracy", ("accuracy",))
    assert dict(task.files) == {"train": "train.csv", "dev": "dev.csv"}
    assert (task.num_labels, task.is_pair, task.is_regression) == (3, False, False)
    assert task.title == "task reviews"
    assert task.definition == PLAIN


def test_text_pairs_with_named_labels(load):
    task = load(PAIRS)
    assert task.text_columns == ("premise", "hypothesis")
    assert task.labels == ("no", "yes")  # not False and True
    assert task.file_labels == ("0", "007")  # nor 7
    assert (task.metric, task.metrics) == ("f1", ("accuracy", "f1", "mcc"))
    assert dict(task.files) == {"train": "all/train.tsv", "dev": "dev.parquet"}


def test_the_positive_class_of_f1(load):
    usual = load(PAIRS)
    assert usual.positive_index == 1
    assert usual.identity == '["pairs", 2, ["no", "yes"], ["accuracy", "f1", "mcc"], "f1"]'
    named = load(PAIRS + "positive: yes\n")
    assert (named, named.identity) == (usual, usual.identity)
    other = load(PAIRS + "positive: no\n")  # not False
    assert other.positive_index == 0
    assert other.identity != usual.identity
    assert load(nfd(PAIRS.replace("no,", "né,") + "positive: né\n")).positive_index == 0


def test_dev_is_drawn_from_train(load):
    task = load(DRAWN)
    assert dict(task.files) == {"train": "all.csv", "test": "test.csv"}
    assert (task.split, task.split_seed) == (0.1, 7)
    assert task.language == "no"  # not False
    assert task.identity == load(PLAIN).identity
    assert dict(load(PLAIN + "split: 0.25\n").files) == {"train": "train.csv"}
    assert load(PLAIN + "split: 0.25\n").split_seed == 0


def test_a_data_set_of_the_hub(load):
    task = load(HUB)
    assert (task.dataset, task.config, task.revision) == ("stanfordnlp/imdb", "plain_text", "1e5")
    assert task.hub_splits == (("train", "train"), ("dev", "test"))
    assert task.files == ()
    plain = load(HUB.replace("splits: {dev: test}\n", ""))
    assert plain.hub_splits == (("train", "train"), ("dev", "validation"))
    drawn = load(HUB.replace("{dev: test}", "{train: all, test: test}") + "split: 0.5\n")
    assert drawn.hub_splits == (("train", "all"), ("test", "test"))


def test_names_are_composed_and_files_as_written(load):
    text = (
        "name: own\ntext: énoncé\nlabel: catégorie\nlabels: {né: là, x: y}\nmetric: f1\nfiles: {dev: é.csv}\n"
    )
    task, decomposed = load(text), load(nfd(text))
    assert decomposed.text_columns == ("énoncé",)
    assert decomposed.file_label == "catégorie"
    assert (decomposed.file_labels, decomposed.labels) == (("né", "x"), ("là", "y"))
    assert dict(decomposed.files)["dev"] == nfd("é.csv")
    assert decomposed.identity == task.identity


def test_a_regression_task(load):
    task = load(SCORES)
    assert (task.labels, task.num_labels, task.is_regression) == ((), 1, True)
    assert task.score_range == (-1.0, 2.5)


def nfd(text: str) -> str:
    return normalize("NFD", text)


LABELS = "labels: [negative, neutral, positive]"
MISTAKES = {
    "empty": ("", [(1, "empty")]),
    "not YAML": ("name: [own\n", [(2, "not YAML")]),
    "nothing": ("{}", [(1, "name: missing"), (1, "text: missing"), (1, "labels: missing")]),
    "a list": ("[a]", [(1, "the file: got a list")]),
    "unknown name": (PLAIN + "lables: [a]\n", [(6, "lables: unknown name; did you mean labels?")]),
    "given twice": (PLAIN + "label: x\n", [(6, "label: given twice, the first on line 3")]),
    "name of GLUE's": (PLAIN.replace("reviews", "CoLA"), [(1, "name: CoLA is a GLUE task's name")]),
    "name above": (PLAIN.replace("reviews", "../x"), [(1, "name: use letters, digits")]),
    "name of a file": (PLAIN.replace("reviews", "x.yaml"), [(1, "name: use letters, digits")]),
    "name too long": (PLAIN.replace("reviews", "x" * 41), [(1, "at most 40")]),
    "name with a line end": (PLAIN.replace("reviews", '"x\\n"'), [(1, "name: use letters, digits")]),
    "name a list": (PLAIN.replace("reviews", "[x]"), [(1, "name: got a list; write one value")]),
    "no text": (PLAIN.replace("text: review", "text:"), [(2, "text: input should be a valid string")]),
    "no texts": (PLAIN.replace("text: review", "text: []"), [(2, "text: empty; write at least one value")]),
    "three texts": (PLAIN.replace("review\n", "[a, b, c]\n"), [(2, "text: give one column, or two")]),
    "a text twice": (PLAIN.replace("review\n", "[a, a]\n"), [(2, "a is given twice; keep one")]),
    "the label as text": (PLAIN.replace("review\n", "stars\n"), [(3, "stars is given twice")]),
    "one class": (PLAIN.replace(LABELS, "labels: [x]"), [(4, "labels: give at least two")]),
    "a class alone": (PLAIN.replace(LABELS, "labels: x"), [(4, "labels: give at least two")]),
    "no class": (PLAIN.replace(LABELS, "labels: {}"), [(4, "labels: give at least two")]),
    "a class twice": (PLAIN.replace(LABELS, "labels: [x, y, x]"), [(4, "labels: x is given twice")]),
    "a name for two": (PLAIN.replace(LABELS, "labels: {1: x, 2: x}"), [(4, "labels.2: x is given twice")]),
    "a label for two": (PLAIN.replace(LABELS, "labels: {1: x, 1: y}"), [(4, "labels.1: given twice")]),
    "a class of nothing": (PLAIN.replace(LABELS, 'labels: ["", y]'), [(4, "at least 1 character")]),
    "a label of nothing": (PLAIN.replace(LABELS, 'labels: {"": x, b: y}'), [(4, "got '' as a label")]),
    "a class twice in two forms": (PLAIN.replace(LABELS, f"labels: [é, {nfd('é')}]"), [(4, "é is given twice")]),
    "a label twice in two forms": (
        PLAIN.replace(LABELS, f"labels: {{é: x, {nfd('é')}: y}}"), [(4, f"labels.{nfd('é')}: é is given twice")]),
    "a text twice in two forms": (PLAIN.replace("review\n", f"[é, {nfd('é')}]\n"), [(2, "é is given twice; keep one")]),
    "one file in two forms": (
        PLAIN + f"files: {{train: é.csv, dev: {nfd('é')}.csv}}\n", [(6, "train and dev are one file")]),
    "a class that escapes": (PLAIN.replace(LABELS, 'labels: ["\\e[2J", y]'), [(4, "control character")]),
    "a label that escapes": (PLAIN.replace(LABELS, 'labels: {"\\n": x, b: y}'), [(4, "contains a control character")]),
    "a class a list": (PLAIN.replace(LABELS, "labels: [[x], y]"), [(4, "labels: got a list")]),
    "a label a list": (PLAIN.replace(LABELS, "labels: {[x]: x, b: y}"), [(4, "got a list; write one name")]),
    "labels and a range": (PLAIN + "range: [0, 1]\n", [(6, "both labels and range are given"), (5, "accuracy")]),
    "a range backwards": (SCORES.replace("-1, 2.5", "2, 1"), [(4, "range: give the least and the greatest")]),
    "a range of one": (SCORES.replace("[-1, 2.5]", "3"), [(4, "range: give the least and the greatest")]),
    "a range without end": (SCORES.replace("2.5", ".inf"), [(4, "range: input should be a finite number")]),
    "a range of words": (SCORES.replace("2.5", "b"), [(4, "range: input should be a valid number")]),
    "metric unknown": (PLAIN.replace("accuracy", "acuracy"), [(5, "metric: input should be 'accuracy'")]),
    "f1 of three": (PLAIN.replace("accuracy", "f1"), [(5, "f1 is for two classes, here are 3; write macro_f1")]),
    "scores' metric": (PLAIN.replace("accuracy", "pearson"), [(5, "metric: pearson does not measure classes")]),
    "classes' metric": (SCORES.replace("spearman", "mcc"), [(5, "mcc does not measure scores; one of: pearson")]),
    "metric not measured": (PLAIN + "metrics: [mcc]\n", [(6, "metrics: accuracy is missing")]),
    "metric measured twice": (PLAIN + "metrics: [mcc, mcc, accuracy]\n", [(6, "mcc is given twice")]),
    "positive no class": (
        PAIRS + "positive: maybe\n", [(8, "positive: maybe is none of the classes; give one of: no, yes")]),
    "positive a label": (
        PAIRS + "positive: 007\n", [(8, "positive: 007 is none of the classes; give one of: no, yes")]),
    "positive of nothing": (PAIRS + "positive: ''\n", [(8, "positive: string should have at least 1 character")]),
    "positive a list": (PAIRS + "positive: [no]\n", [(8, "positive: got a list; write one value")]),
    "positive without f1": (
        PAIRS.replace("f1", "mcc", 1).replace("f1, ", "") + "positive: no\n",
        [(8, "positive: names the class whose f1 is measured, but f1 is not among the metrics; add it, or leave")]),
    "positive of three": (
        PLAIN + "positive: neutral\n", [(6, "but f1 is not among the metrics; leave positive out")]),
    "positive of scores": (
        SCORES + "positive: 1\n", [(6, "but f1 is not among the metrics; leave positive out")]),
    "split unknown": (PLAIN + "files: {validation: a.csv}\n", [(6, "files.validation: unknown name")]),
    "format unknown": (PLAIN + "files: {dev: a.xlsx}\n", [(6, "files.dev: the ending tells the format")]),
    "file above": (PLAIN + "files: {dev: ../a.csv}\n", [(6, "files.dev: give a path below --data-dir")]),
    "file elsewhere": (PLAIN + "files: {dev: /etc/a.csv}\n", [(6, "files.dev: give a path below")]),
    "one file for two": (PLAIN + "files: {dev: ./train.csv}\n", [(6, "train and dev are one file")]),
    "a file with labels": (
        PLAIN + "files: {unlabelled: ./dev.csv}\n", [(6, "unlabelled is a file with labels")]),
    "test and train one file": (
        PLAIN + "files: {test: train.csv}\n", [(6, "files: test and train are one file; give test examples")]),
    "test and dev one file": (PLAIN + "files: {test: ./dev.csv}\n", [(6, "files: test and dev are one file")]),
    "unlabelled and test one file": (
        PLAIN + "files: {test: a.csv, unlabelled: a.csv}\n", [(6, "unlabelled is a file with labels")]),
    "split of nothing": (PLAIN + "split: 0\n", [(6, "split: input should be greater than 0 (got 0)")]),
    "split of all": (PLAIN + "split: 1.0\n", [(6, "split: input should be less than 1 (got 1.0)")]),
    "split a word": (PLAIN + "split: tenth\n", [(6, "split: input should be a valid number")]),
    "split and dev": (
        PLAIN + "files: {dev: dev.csv}\nsplit: 0.1\n",
        [(7, "split: draws dev from train, but files has a file for dev; leave out one of the two")]),
    "a seed of nothing": (PLAIN + "split_seed: 1\n", [(6, "split_seed: nothing is drawn without split; write")]),
    "a negative seed": (DRAWN.replace("7", "-1"), [(8, "split_seed: input should be greater than or equal to 0")]),
    "a path for a data set": (
        HUB.replace("stanfordnlp/imdb", "./imdb"), [(6, "dataset: give a name on the hub, as in ORGANIZATION/NAME")]),
    "a data set and files": (
        HUB + "files: {train: a.csv}\n", [(10, "files: both dataset and files are given; keep one")]),
    "splits of tables": (PLAIN + "splits: {dev: a}\n", [(6, "splits: is for a data set of the hub; write `dataset")]),
    "a revision of tables": (PLAIN + "revision: a\n", [(6, "revision: is for a data set of the hub")]),
    "two splits one": (
        HUB.replace("{dev: test}", "{dev: train}"), [(9, "splits: train and dev are one split; students")]),
    "split and a dev split": (HUB + "split: 0.1\n", [(10, "split: draws dev from train, but splits has a split")]),
    "a language by name": (PLAIN + "language: English\n", [(6, "language: give the code of a language, as in en")]),
    "an alias": (PLAIN.replace("stars", "&a x"), [(3, "an anchor")]),
    "a tag": (PLAIN.replace("stars", "!!python/name:os.system"), [(3, "a tag")]),
    "deep": ("[" * 1000, [(1, "nested deeper than 10")]),
    "too large": (PLAIN + "#" * 2**16, [(None, "over 64 KiB; a task is a few lines")]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_every_mistake_is_named_with_its_line(load, tmp_path, case):
    text, expected = MISTAKES[case]
    with pytest.raises(UsageError) as error:
        load(text)
    lines = str(error.value).split("\n")
    assert all(line.startswith(f"{tmp_path / 'task.yaml'}:") and line.isprintable() for line in lines)
    for number, words in expected:
        place = "" if number is None else f"task.yaml:{number}: "
        assert any(place in line and words in line for line in lines), lines


def test_all_mistakes_at_once(load):
    with pytest.raises(UsageError) as error:
        load("name: cola\ntext: [a, a]\nlabel: b\nlabels: [x]\nmetric: f2\nfile: x\n")
    lines = [line.split(":")[1] for line in str(error.value).split("\n")]
    assert lines == ["1", "2", "4", "5", "6"]


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from("\n".join([PLAIN, PAIRS, SCORES, DRAWN, HUB]).splitlines())
        | st.tuples(
            st.sampled_from(
                ["name", "text", "label", "labels", "positive", "range", "metric", "metrics", "files"]
            )
            | st.sampled_from(["split", "splits", "dataset"]),
            st.sampled_from(
                ["", "[]", "{}", "x", "[x, y]", "{x: y}", "[[x]]", "{[x]: 1}", "1e400", "~", '"\\0"']
            )
            | st.text(max_size=5),
        ).map(": ".join),
        max_size=8,
    ).map("\n".join)
)
def test_any_text_is_a_task_or_a_usage_error(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            task = load_task(path)
        except UsageError as error:
            task, lines = None, str(error).split("\n")
    if task is None:
        assert all(line.isprintable() for line in lines)
        return
    assert task.name
    assert len(task.text_columns) in (1, 2)
    assert task.metric in task.metrics
    assert len(set(task.labels)) == len(set(task.file_labels)) == len(task.labels) != 1
    task.score(np.zeros(2, np.int64), np.zeros((2, task.num_labels)))


def test_a_flag_names_a_task_or_a_task_file(tmp_path, load):
    load(PLAIN)
    assert find_task("cola") is TASKS["cola"]
    assert find_task(str(tmp_path / "task.yaml")).name == "reviews"
    with pytest.raises(UsageError, match=r"'reviews' is not known; one of: cola, .*; or a task file"):
        find_task("reviews")
    with pytest.raises(UsageError, match="no such file or directory; give the path of a task file"):
        find_task("nowhere.yml")


def test_a_kept_task_is_the_same_task(tmp_path, load):
    for text in (PLAIN, PAIRS, SCORES, DRAWN, HUB, PLAIN.replace("\n", "\r\n")):
        (tmp_path / "task.yaml").write_bytes(text.encode())
        task = load_task(tmp_path / "task.yaml")
        keep_task(tmp_path, task)
        assert (tmp_path / TASK_FILE).read_bytes() == text.encode()
        assert kept_task(tmp_path, task.name) == task


def test_a_glue_task_is_kept_by_its_name(tmp_path):
    keep_task(tmp_path, TASKS["mrpc"])
    assert not list(tmp_path.iterdir())
    assert kept_task(tmp_path, "mrpc") is TASKS["mrpc"]


def test_a_task_that_is_not_kept_is_refused(tmp_path, load):
    with pytest.raises(UsageError, match=r"task\.yaml: missing; it defines the task 'reviews'"):
        kept_task(tmp_path, "reviews")
    keep_task(tmp_path, load(PLAIN))
    with pytest.raises(UsageError, match="defines the task reviews, but 'others' is needed"):
        kept_task(tmp_path, "others")


def test_fingerprints_depend_on_everything_that_is_computed(load):
    """Check the fingerprint that begins the key of everything stored about a dataset."""
    split = Split(["a", "b"], None, np.array([0, 1], np.int64))
    plain = load(PLAIN)

    def key(**changes: object) -> str:
        return Dataset(dataclasses.replace(plain, **changes), {"train": split}, "folder", "").fingerprint

    same = key(text_columns=("other",), file_label="x", file_labels=("1", "2", "3"), files=(), definition="")
    assert same == key()
    others = [
        key(name="others"),
        key(labels=("neutral", "negative", "positive")),
        key(labels=("negative", "neutral")),
        key(labels=(), metrics=("pearson",), metric="pearson"),
        key(metrics=("accuracy", "mcc")),
        key(metrics=("accuracy", "mcc"), metric="mcc"),
        key(text_columns=("a", "b")),
        key(positive_index=0),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_data_must_be_given(load):
    with pytest.raises(
        UsageError, match=r"--data-dir is missing; give the folder that holds train\.csv, dev\.csv"
    ):
        sources.load_dataset(load(PLAIN), None)
