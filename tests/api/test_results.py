"""A sweep that has run, opened in Python."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import ikd_ray
from ikd_ray.analysis.pareto import trials_csv
from ikd_ray.records import read_trials, trial_folder, write_trial
from ikd_ray.sweep import deliverables
from tests.helpers.sample_records import trial_record
from tests.helpers.sample_sweep import make_sweep


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    make_sweep(folder / "outputs")
    return folder


@pytest.fixture
def sweep(home, monkeypatch) -> ikd_ray.Sweep:
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return ikd_ray.open_sweep("first")


def test_trials_are_a_row_each(sweep):
    records = read_trials(sweep.folder)
    assert list(sweep.trials.index) == [record.id for record in records]
    for record in records:
        row = sweep.trials.loc[record.id]
        assert (row["status"], row["regime"], row["lambda"]) == (
            "finished",
            record.params["regime"],
            record.params["lambda"],
        )
        assert row["dev/mcc"] == record.metrics["dev/mcc"]
    written = pd.read_csv(io.StringIO(trials_csv(records, [])))
    assert list(written.columns) == ["id", *sweep.trials.columns]


def test_the_front_is_the_smallest_first_and_the_best_is_on_it(sweep):
    front = sweep.front
    assert 0 < len(front) < len(sweep.trials)
    assert front["on_front"].all()
    assert front["student/params"].is_monotonic_increasing
    assert front["dev/mcc"].is_monotonic_increasing
    assert sweep.best.id == sweep.trials["dev/mcc"].idxmax() == front.index[-1]
    assert sweep.best.metrics["dev/mcc"] == front["dev/mcc"].max()
    assert repr(sweep) == "<Sweep cola, sweep first: 6 of 6 trials ended, 3 students on the Pareto front>"


def test_a_notebook_shows_the_front(sweep, tmp_path, monkeypatch):
    html = sweep._repr_html_()
    assert all(trial in html for trial in sweep.front.index)
    assert "of the teacher" in html
    assert "GENERATED" not in html
    make_sweep(tmp_path / "outputs", trials=0, generated=True, weights=False)
    empty = ikd_ray.open_sweep("first", output=tmp_path / "outputs")
    assert "GENERATED corpus, not CoLA" in empty._repr_html_()
    assert len(empty.trials) == len(empty.front) == 0
    with pytest.raises(ikd_ray.UsageError, match="no finished trial"):
        empty.best  # noqa: B018 - the property raises


def test_a_student_is_loaded_as_it_is_exported(sweep, tmp_path):
    student = sweep.student("t001")
    model, tokenizer = student.load()
    assert not model.training
    assert model.config.id2label == {0: "unacceptable", 1: "acceptable"}
    assert tokenizer.model_max_length == 32
    assert len(model.bert.encoder.layer) == student.params["student_layers"] == len(student.layer_map)
    inputs = tokenizer("w1 w2.", return_tensors="pt")
    probability = model(**inputs).logits.softmax(-1).max().item()
    answer = student.pipeline()("w1 w2.")
    assert answer[0]["label"] in ("acceptable", "unacceptable")
    assert answer[0]["score"] == pytest.approx(probability, abs=1e-6)
    folder = student.save(tmp_path / "mine")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "ikd.json"} <= {
        p.name for p in folder.iterdir()
    }
    with pytest.raises(ikd_ray.UsageError, match="exists already; force=True replaces it"):
        student.save(folder)
    assert student.save(folder, force=True) == folder
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(
        ikd_ray.UsageError, match="is no exported student, so that force=True does not replace it"
    ):
        student.save(tmp_path / "project", force=True)
    assert (tmp_path / "project" / "README.md").read_text() == "mine"
    assert student.export(tmp_path / "several") == tmp_path / "several" / "cola-id-2L-t001"
    assert repr(student).startswith("<Student cola-id-2L-t001: mcc 0.2")


def test_the_history_has_a_row_per_epoch(sweep):
    history = sweep.best.history
    assert list(history["epoch"]) == list(range(1, len(history) + 1))
    assert {"stage_name", "train/loss", "dev/layer_1/kl"} <= {*history.columns}


def test_students_are_exported_like_by_the_command(sweep, tmp_path):
    folders = sweep.export(tmp_path / "front")
    assert [folder.name.rpartition("-")[2] for folder in folders] == list(sweep.front.index)
    assert all((folder / "model.safetensors").is_file() for folder in folders)
    [folder] = sweep.export(tmp_path / "one", pick="smallest-within 0.2")
    assert json.loads((folder / "ikd.json").read_text())["sweep"]["name"] == "first"
    with pytest.raises(ikd_ray.UsageError, match=r"-t\d+ \(and 2 more\) exists already; force=True"):
        sweep.export(tmp_path / "front")
    with pytest.raises(
        ikd_ray.UsageError, match=r"^pick='t999': no trial of sweep first has this id; .*`.front` shows"
    ):
        sweep.export(tmp_path / "x", pick="t999")
    with pytest.raises(ikd_ray.UsageError, match=r"^to='/dev/null/x': "):
        sweep.export("/dev/null/x")


def test_a_damaged_student_is_an_error_and_the_others_are_exported(tmp_path):
    folder = make_sweep(tmp_path / "outputs")
    sweep = ikd_ray.open_sweep("first", tmp_path / "outputs")
    damaged = sweep.front.index[0]
    (trial_folder(folder, damaged) / "student" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ikd_ray.UsageError, match=f"^{damaged}: not exported: "):
        sweep.export(tmp_path / "exports")
    assert len(list((tmp_path / "exports").iterdir())) == len(sweep.front) - 1
    with pytest.raises(ikd_ray.UsageError, match="damaged"):
        sweep.student(damaged).load()


def test_the_report_is_drawn(sweep, capsys, monkeypatch):
    monkeypatch.setattr(
        deliverables, "log_report", lambda *_: "no store"
    )  # MLflow has no run of a sweep made for a test
    threads = torch.get_num_threads()
    page = sweep.report(sentence="w1 w2.")
    assert page == sweep.folder / "report" / "report.html"
    assert "<html" in page.read_text()
    assert "WARNING: the report is not in MLflow: no store" in capsys.readouterr().out
    assert torch.get_num_threads() == threads
    with pytest.raises(ikd_ray.UsageError):
        sweep.report(sentence=["w1", "a pair"])


def test_a_trial_that_failed_says_why(tmp_path):
    folder = make_sweep(tmp_path / "outputs", trials=1, weights=False)
    write_trial(folder, trial_record(1, {}, "failed", reason="soft became nan"))
    sweep = ikd_ray.open_sweep("first", tmp_path / "outputs")
    assert list(sweep.trials["status"]) == ["finished", "failed"]
    assert sweep.trials.loc["t001", "reason"] == "soft became nan"
    with pytest.raises(ikd_ray.UsageError, match="has failed and left no student"):
        sweep.student("t001")


def test_a_sweep_that_is_not_there_names_those_that_are(home):
    with pytest.raises(
        ikd_ray.UsageError, match=r"^name='x': no sweep of that name in .*; there are: first$"
    ):
        ikd_ray.open_sweep("x", home / "outputs")
