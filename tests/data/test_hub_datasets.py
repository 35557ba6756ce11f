"""Data sets of the hub that a task file names, read from folders and from a local cache of the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from ikd_ray.data import sources
from ikd_ray.data.dataset import Dataset
from ikd_ray.data.task_file import CustomTask, load_task
from ikd_ray.errors import UsageError

NAME = "someone/films"
TASK = f"""\
name: films
text: review
label: stars
labels: {{bad: negative, good: positive}}
metric: accuracy
dataset: {NAME}
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def task(tmp_path):
    """`task("split: 0.1", text="other")`: the task with further lines, and other values of keys."""

    def make(*lines: str, **values: str) -> CustomTask:
        path = tmp_path / "films.yaml"
        given = dict(line.split(": ", 1) for line in (*TASK.splitlines(), *lines)) | values
        path.write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
        return load_task(path)

    return make


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a data set as the hub has it: a file for each split, and columns that the task does not read."""
    home = tmp_path / "films"
    (home / "data").mkdir(parents=True)
    for name, rows in (("train", 40), ("validation", 8), ("test", 6)):
        table(rows, name).to_parquet(home / "data" / f"{name}-00000-of-00001.parquet")
    return home


def table(rows: int, name: str) -> datasets.Dataset:
    stars = datasets.ClassLabel(names=["bad", "good"])
    features = {"review": datasets.Value("string"), "stars": stars, "id": datasets.Value("int32")}
    columns = {"review": [f"{name} {row}" for row in range(rows)], "stars": [row % 2 for row in range(rows)]}
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(columns | {"id": [*range(rows)]}, datasets.Features(features))


def sizes(data: Dataset) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def refused(task: CustomTask, data_dir: Path | None) -> str:
    with pytest.raises(UsageError) as error:
        sources.load_dataset(task, data_dir)
    message = str(error.value)
    assert message.isprintable()
    return message


def test_a_copy_in_a_folder_is_read_in_place_of_the_hub(task, folder, capfd):
    data = sources.load_dataset(task(), folder)
    assert data.description == "folder films (films, 40 train / 8 dev)"
    assert (data.source, data.test, sizes(data)) == ("folder", None, {"train": 40, "dev": 8})
    dev = data.splits["dev"]
    assert (dev.text[:2], dev.labels[:3].tolist(), dev.labels.dtype) == (
        ["validation 0", "validation 1"],
        [0, 1, 0],
        np.int64,
    )
    assert capfd.readouterr() == ("", "")
    assert not [*Path(datasets.config.HF_DATASETS_CACHE).glob("films*")]


def test_splits_are_named_drawn_and_kept_for_the_end(task, folder):
    data = sources.load_dataset(task("splits: {train: validation, dev: train, test: test}"), folder)
    assert sizes(data) == {"train": 8, "dev": 40}
    assert data.test.text[0] == "test 0"
    drawn = sources.load_dataset(task("split: 0.25", "split_seed: 3"), folder)
    assert drawn.description.endswith(
        "(films, 30 train / 10 dev); dev: 10 of 40 rows, drawn stratified with seed 3"
    )


@pytest.mark.parametrize(
    "labels", ["{good: positive, bad: negative}", "{1: positive, 0: negative}", "[good, bad]"]
)
def test_stored_numbers_may_be_written_as_numbers_or_by_their_names(task, folder, labels):
    train = sources.load_dataset(task(labels=labels), folder).splits["train"]
    assert train.labels[:3].tolist() == [1, 0, 1]


def test_tables_of_text_are_read_too(task, tmp_path):
    home = tmp_path / "csv"
    home.mkdir()
    for name in ("train", "dev"):  # `datasets` calls the second one validation
        rows = "".join(f'"{name}, {row}",{"bad" if row % 2 else "good"}\n' for row in range(20))
        (home / f"{name}.csv").write_text("review,stars\n" + rows)
    data = sources.load_dataset(task(), home)
    assert data.splits["dev"].text[0] == "dev, 0"
    assert data.splits["dev"].labels[:2].tolist() == [1, 0]


def test_contents_are_what_identifies_a_data_set(task, folder, tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    for name, split in (("train", "train"), ("dev", "validation")):
        rows = datasets.Dataset.from_parquet(
            str(next(folder.glob(f"data/{split}*"))), cache_dir=str(tmp_path / "c")
        )
        lines = [f"{row['review']},{'good' if row['stars'] else 'bad'}\n" for row in rows]
        (tables / f"{name}.csv").write_text("review,stars\n" + "".join(lines))
    plain = replace(task(), dataset="", hub_splits=(), files=(("train", "train.csv"), ("dev", "dev.csv")))
    assert sources.load_dataset(plain, tables).fingerprint == sources.load_dataset(task(), folder).fingerprint


def test_what_is_wrong_with_a_data_set_is_told(task, folder, tmp_path):
    def message(*lines: str, **values: str) -> str:
        return refused(task(*lines, **values), folder)

    assert message("splits: {test: unseen}") == (
        f"{folder}: there is no split 'unseen' (it has train, validation, test); write `splits: {{test: NAME}}` in "
        "the task file"
    )
    assert message("splits: {dev: dev}").endswith("in the task file, or `split: 0.1` to draw dev from train")
    assert "films train: there is no column 'text'; the task reads text, stars" in message(text="text")
    assert "films train row 1: stars '0' is not one of: x, y" in message(labels="[x, y]")
    assert "films train row 1: column 'id' holds 0 where a text is needed" in message(text="id")
    empty = tmp_path / "empty"
    empty.mkdir()
    expected = f"--data-dir {empty}: not a data set that datasets.load_dataset reads (EmptyDatasetError: "
    assert refused(task(), empty).startswith(expected)
    assert refused(task(), empty).endswith(f"; give the folder that holds a copy of {NAME}")
    assert "there is no such folder; give the folder that holds a copy" in refused(
        task(), tmp_path / "nowhere"
    )
    (empty / "train.csv").write_text('review,stars\na,good\n"b\n')
    assert "ParserError" in refused(task(), empty)


def test_no_code_of_a_data_set_is_run(task, folder):
    (folder / "films.py").write_text("raise SystemExit('it ran')\n")
    assert "RuntimeError: Dataset scripts are no longer supported, but found films.py" in refused(
        task(), folder
    )


def test_without_the_hub_one_line_says_what_to_do(task, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert refused(task(), None) == (
        "task films: the Hugging Face hub is out of reach and its local cache empty; give --data-dir with a folder "
        f"that holds a copy of {NAME}"
    )
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Make a local cache of the data set, as `datasets` writes it for a commit."""

    class Films(datasets.GeneratorBasedBuilder):
        BUILDER_CONFIGS = [datasets.BuilderConfig(name="default"), datasets.BuilderConfig(name="long")]

        def _info(self):
            return datasets.DatasetInfo(features=table(1, "").features)

        def _split_generators(self, _):
            return [
                datasets.SplitGenerator(name=name, gen_kwargs={"name": name})
                for name in ("train", "validation")
            ]

        def _generate_examples(self, name):
            yield from enumerate(table(20 if self.config.name == "default" else 30, name))

    cache = tmp_path / "cache"
    for config in ("default", "long"):
        options = {"dataset_name": "films", "repo_id": NAME, "config_name": config, "hash": COMMIT}
        Films(cache_dir=str(cache), **options).download_and_prepare()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.chdir(tmp_path)


def test_the_local_cache_of_the_hub_is_read(hub_cache, task):
    data = sources.load_dataset(task("config: long"), None)
    assert data.source == "hub"
    assert data.description == f"Hugging Face hub's local cache {NAME} long (films, 30 train / 30 dev)"
    assert sizes(sources.load_dataset(task("config: default"), None)) == {"train": 20, "dev": 20}


def test_another_revision_of_the_local_cache_is_refused(hub_cache, task):
    pinned = sources.load_dataset(task("config: long", f"revision: {COMMIT}"), None)
    assert f"{NAME}@{COMMIT} long" in pinned.description
    message = refused(task("config: long", "revision: v2"), None)
    assert (
        "the Hugging Face hub is out of reach, and its local cache has no commit v2 of someone/films"
        in message
    )


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub(hub_cache, task, tmp_path):
    (tmp_path / NAME).mkdir(parents=True)
    assert "someone/films is also in the working folder; give it as --data-dir" in refused(task(), None)
