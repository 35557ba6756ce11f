"""A sweep that goes on must be the sweep that was begun."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from ikd_ray.config import SweepConfig
from ikd_ray.data.remote import Output
from ikd_ray.errors import UsageError
from ikd_ray.report.records import SweepRecord, write_sweep
from ikd_ray.sweep.request import check, resumed


@pytest.fixture
def begun(inputs, tmp_path, monkeypatch):
    """A record as a sweep leaves it; returns (output folder, record)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("params: {student_layers: 2}\n")
    asked = SweepConfig(
        task="cola",
        data_dir=inputs / "glue",
        teacher=str(inputs / "teacher"),
        space=tmp_path / "space.yaml",
        output=tmp_path / "outputs",
        name="begun",
    )
    request = check(asked)
    folder = tmp_path / "outputs" / "begun"
    folder.mkdir(parents=True)
    (folder / "space.yaml").write_text(request.space.text)
    record = SweepRecord(
        name="begun",
        task="cola",
        seed=0,
        trials=8,
        command="",
        code_version="",
        data={"fingerprint": request.dataset.fingerprint, "description": request.dataset.description},
        teacher={"source_key": request.source.key},
        objectives=request.objectives,
        settings=request.config.model_dump(mode="json"),
    )
    write_sweep(folder, record)
    return tmp_path / "outputs", record


def test_goes_on_as_it_was_also_from_another_folder(begun, inputs, tmp_path, monkeypatch):
    output, _ = begun
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    request = check(resumed("begun", {}, Output(str(output))), resumes=True)
    assert (request.task.name, request.trials, request.config.seed) == ("cola", 8, 0)
    assert request.folder == output / "begun"


def test_more_trials_are_welcome_and_the_same_flags_too(begun, inputs):
    output, _ = begun
    changes = {"trials": 20, "task": "cola", "data_dir": inputs / "glue"}
    assert check(resumed("begun", changes, Output(str(output))), resumes=True).trials == 20


@pytest.mark.parametrize(("flag", "value"), [("task", "rte"), ("seed", 1), ("data_dir", "/elsewhere")])
def test_flags_that_would_make_it_another_sweep(begun, flag, value):
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')} cannot change"):
        resumed("begun", {flag: value}, Output(str(begun[0])))


@pytest.mark.parametrize(
    ("part", "words"),
    [("data", "its data was GLUE folder glue"), ("teacher", "is not the one it began with")],
)
def test_other_content_under_the_same_name(begun, part, words):
    output, record = begun
    changed = {
        key: "other" if key in ("fingerprint", "source_key") else v
        for key, v in getattr(record, part).items()
    }
    write_sweep(output / "begun", SweepRecord(**(asdict(record) | {part: changed})))
    with pytest.raises(UsageError, match=words):
        check(resumed("begun", {}, Output(str(output))), resumes=True)


def test_an_unknown_name_lists_the_known(begun):
    with pytest.raises(UsageError, match=r"no sweep of that name .*begun"):
        resumed("other", {}, Output(str(begun[0])))
