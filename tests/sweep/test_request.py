"""Requests: a resumed sweep must be the one that was started."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ikd_ray.config import SweepConfig
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.splits import hold_out
from ikd_ray.data.task_file import keep_task, load_task
from ikd_ray.errors import UsageError
from ikd_ray.records import read_sweep, task_digest, write_sweep
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep import sweep_folder
from ikd_ray.sweep.request import Request, resumed_config, validate
from tests.helpers.mlflow_sweeps import sweep_record


@pytest.fixture
def started(inputs, tmp_path, monkeypatch):
    """Write a sweep's record, and return the output folder and the record."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("params: {student_layers: 2}\n")
    output = tmp_path / "outputs"
    glue, teacher, space = inputs / "glue", str(inputs / "teacher"), tmp_path / "space.yaml"
    config = SweepConfig(
        task="cola", data_dir=glue, teacher=teacher, space=space, output=output, name="started"
    )
    request = validate(config)
    (output / "started").mkdir(parents=True)
    (output / "started" / "space.yaml").write_text(request.space.text)
    record = sweep_record(
        "",
        name="started",
        trials=8,
        data={"fingerprint": request.dataset.fingerprint, "description": request.dataset.description},
        teacher={"source_key": request.teacher_source.key},
        objectives=request.objectives,
        settings=request.config.model_dump(mode="json"),
    )
    write_sweep(output / "started", record)
    return output, record


def resume(output: Path, name: str = "started", **flags: object) -> Request:
    return validate(resumed_config(name, flags, SharedStorage(str(output))), resumes=True)


def test_a_sweep_resumes_from_another_working_folder(started, inputs, tmp_path, monkeypatch):
    output, _ = started
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    request = resume(output)
    assert (request.task.name, request.trials, request.config.seed) == ("cola", 8, 0)
    assert request.folder == output / "started"


def test_trials_may_change_and_equal_flags_may_be_repeated(started, inputs):
    assert resume(started[0], trials=20, task="cola", data_dir=inputs / "glue").trials == 20


@pytest.mark.parametrize(
    ("flag", "value"), [("task", "rte"), ("seed", 1), ("space", Path("other.yaml")), ("step_memory", 4.0)]
)
def test_flags_that_define_the_sweep_cannot_change(started, flag, value):
    Path("other.yaml").write_text("params: {student_layers: 1}\n")
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')} cannot change"):
        resume(started[0], **{flag: value})


def test_data_teacher_and_space_may_be_moved(started, inputs, tmp_path):
    output, record = started
    old, moved = tmp_path / "old", tmp_path / "moved"
    paths = {"data_dir": "glue", "teacher": "teacher"}
    settings = record.settings | {flag: str(old / name) for flag, name in paths.items()}
    write_sweep(output / "started", replace(record, settings=settings))
    shutil.copytree(inputs, moved)
    flags = {flag: moved / name for flag, name in paths.items()}
    for missing, other in (("data_dir", "teacher"), ("teacher", "data_dir")):
        with pytest.raises(UsageError, match=f"--{missing.replace('_', '-')} {old}.* with --resume"):
            resume(output, **{other: flags[other]})
    (tmp_path / "space.yaml").rename(moved / "space.yaml")
    request = resume(output, **flags, space=moved / "space.yaml")
    assert (request.config.data_dir, request.config.teacher) == (moved / "glue", str(moved / "teacher"))
    rows = moved / "glue" / "CoLA" / "train.tsv"
    rows.write_text(rows.read_text().replace("w1", "w2"))
    with pytest.raises(UsageError, match=r"give the same data as --data-dir \(and --unlabelled, where"):
        resume(output, **flags)


@pytest.mark.parametrize(
    ("part", "key", "words"),
    [
        ("data", "fingerprint", "its data was GLUE folder glue"),
        ("teacher", "source_key", "is not the one it began with"),
    ],
)
def test_changed_data_or_teacher_is_refused(started, part, key, words):
    output, record = started
    getattr(record, part)[key] = "other"
    write_sweep(output / "started", record)
    with pytest.raises(UsageError, match=words):
        resume(output)


@pytest.fixture
def own(started, tmp_path):
    """Write the sweep `own` of a task file, delete the file, and return the output folder and the file's text."""
    output, record = started
    text = "name: mine\ntext: text\nlabel: label\nlabels: [no, yes]\nmetric: f1\n"
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "tables").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "tables" / f"{name}.csv").write_text("text,label\nw1 w2,yes\nw3,no\n")
    changes = {"task": "mine.yaml", "data_dir": tmp_path / "tables", "name": "own"}
    request = validate(SweepConfig(**(record.settings | changes)))
    assert request.objectives == {"dev/f1": "max", "student/params": "min"}
    (output / "own").mkdir()
    (output / "own" / "space.yaml").write_text(request.space.text)
    keep_task(output / "own", request.task)
    data = {"fingerprint": request.dataset.fingerprint, "description": "", "task": task_digest(request.task)}
    settings = request.config.model_dump(mode="json") | {"task": "mine"}
    write_sweep(output / "own", replace(record, name="own", task="mine", data=data, settings=settings))
    (tmp_path / "mine.yaml").unlink()
    return output, text


def test_a_task_file_may_be_missing_or_moved(own, tmp_path, monkeypatch):
    output, text = own
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "other.yml").write_text(text + "# and a comment\n")
    for flags in ({}, {"task": "mine"}, {"task": "other.yml"}):
        request = resume(output, "own", **flags)
        assert (request.task.name, request.task.labels) == ("mine", ("no", "yes"))
        assert request.task.definition == text


def test_another_task_file_is_refused(own, tmp_path):
    output, text = own
    (tmp_path / "mine.yaml").write_text(text.replace("text: text", "text: other"))
    (tmp_path / "classes.yaml").write_text(text.replace("[no, yes]", "[no, perhaps]"))
    for task in ("mine.yaml", "classes.yaml", "cola"):
        with pytest.raises(UsageError, match=r"--task cannot change when a sweep goes on \(it is mine\)"):
            resume(output, "own", task=task)


def test_other_columns_in_the_recorded_task_are_refused(own, tmp_path):
    """Columns are no part of the task's identity, but change the data's fingerprint."""
    output, text = own
    for name in ("train", "dev"):
        (tmp_path / "tables" / f"{name}.csv").write_text("text,label,x\nw1 w2,yes,w5\nw3,no,w6\n")
    (output / "own" / "task.yaml").write_text(text.replace("text: text", "text: x"))
    with pytest.raises(UsageError, match="--resume own: its data was"):
        resume(output, "own")


def test_other_test_examples_are_refused(own, tmp_path):
    """They are no part of the data's fingerprint, but scores on them are compared."""
    output, text = own
    record = read_sweep(output / "own")
    (output / "own" / "task.yaml").write_text(text + "files: {test: test.csv}\n")
    table = tmp_path / "tables" / "test.csv"
    table.write_text("text,label\nw5,yes\nw6,no\n")
    with pytest.raises(
        UsageError, match=r"its test examples are not those that it began with \(0 then, 2 now\)"
    ):
        resume(output, "own")
    task = load_task(output / "own" / "task.yaml")
    fingerprint = load_dataset(task, tmp_path / "tables").test_dataset.fingerprint
    tested = record.data | {"test": {"examples": 2, "fingerprint": fingerprint}}
    write_sweep(output / "own", replace(record, data=tested))
    assert resume(output, "own").dataset.test.text == ["w5", "w6"]
    table.write_text("text,label\nw5,yes\nw7,no\n")
    with pytest.raises(UsageError, match=r"\(2 then, 2 now\); give the same data as --data-dir, or start"):
        resume(output, "own")


def test_dev_is_drawn_again(own, tmp_path):
    output, text = own
    record = read_sweep(output / "own")
    rows = "".join(f"w{row},{'yes' if row % 2 else 'no'}\n" for row in range(40))
    (tmp_path / "tables" / "train.csv").write_text("text,label\n" + rows)
    (output / "own" / "task.yaml").write_text(text + "split: 0.2\n")
    task = load_task(output / "own" / "task.yaml")
    drawn = load_dataset(task, tmp_path / "tables")
    write_sweep(output / "own", replace(record, data=record.data | {"fingerprint": drawn.fingerprint}))
    request = resume(output, "own")
    assert {name: len(split) for name, split in request.dataset.splits.items()} == {"train": 32, "dev": 8}
    assert request.dataset.description.endswith("; dev: 8 of 40 rows, drawn stratified with seed 0")
    (output / "own" / "task.yaml").write_text(text + "split: 0.2\nsplit_seed: 1\n")
    with pytest.raises(UsageError, match="--resume own: its data was"):
        resume(output, "own")


def test_a_held_out_split_is_held_out_again(started):
    """A sweep that selected on dev has other data with a held-out split."""
    output, record = started
    space = output / "started" / "space.yaml"
    whole = resume(output).dataset
    space.write_text(space.read_text() + "selection: holdout\n")
    with pytest.raises(UsageError, match=r"data was .*, now it is .* 10 of train are held out to choose by"):
        resume(output)
    data = {"fingerprint": hold_out(whole).fingerprint, "description": "", "selection": "holdout"}
    write_sweep(output / "started", replace(record, data=data))
    request = resume(output)
    sizes = {name: len(split) for name, split in request.dataset.splits.items()}
    assert sizes == {"train": 86, "dev": 40, "holdout": 10}
    assert request.objectives == {"holdout/mcc": "max", "student/params": "min"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("params: {train_fraction: {choice: [0.02, 1]}}", r"train_fraction: 0.02 leaves 2 .* for 2 workers"),
        ("params: {train_fraction: {float: [0.03, 1]}}", r"train_fraction: 0.03 leaves 2 .* for 2 workers"),
        ("params: {train_fraction: {float: [0.1, 1]}}", None),
    ],
)
def test_batches_that_workers_cannot_split_are_refused(started, tmp_path, text, words):
    (tmp_path / "shares.yaml").write_text(text)
    changes = {"space": tmp_path / "shares.yaml", "name": "shares", "workers_per_trial": 2}
    config = SweepConfig(**(started[1].settings | changes))
    if words is None:
        validate(config)
        return
    with pytest.raises(UsageError, match=words):
        validate(config)
    one = config.model_copy(update={"workers_per_trial": 1})
    assert validate(one).trials == 8


def test_a_share_of_no_texts_is_refused(started, tmp_path):
    (tmp_path / "shares.yaml").write_text("params: {unlabelled_fraction: {choice: [0, 1]}}\n")
    changes = {"space": tmp_path / "shares.yaml", "name": "shares"}
    with pytest.raises(
        UsageError,
        match=r"shares\.yaml: unlabelled_fraction needs texts .* \(or files: \{unlabelled: FILE\} in",
    ):
        validate(SweepConfig(**(started[1].settings | changes)))


def test_a_folder_that_cannot_be_created_completely_leaves_nothing(started, monkeypatch):
    output, record = started
    request = validate(SweepConfig(**(record.settings | {"name": "half"})))
    (output / "half").write_text("somebody else's")  # created since the request
    with pytest.raises(OSError, match="half"):
        sweep_folder._create_folder(request, record)
    assert {path.name for path in output.iterdir()} == {"half", "started"}


def test_a_working_folder_that_cannot_be_written_is_refused(started, monkeypatch, tmp_path):
    config = SweepConfig(**(started[1].settings | {"name": "other"}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir("/proc")
    with pytest.raises(UsageError, match=r"cannot write /proc .* run the command in a folder that you own"):
        validate(config)
    for uri in (f"sqlite:///{tmp_path}/new.db", "sqlite:///new.db"):
        with pytest.raises(
            UsageError, match=r"cannot write /proc .* run the command in a folder that you own"
        ):
            validate(config.model_copy(update={"tracking_uri": uri}))
    assert validate(config.model_copy(update={"tracking_uri": "http://localhost:5000"})).trials == 8


def test_an_unknown_name_lists_the_existing_sweeps(started):
    with pytest.raises(UsageError, match=r"no sweep of that name .*started"):
        resume(started[0], "other")
