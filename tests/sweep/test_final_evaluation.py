"""The test set, which is scored when a sweep has ended."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.data.dataset import Split
from ikd_ray.records import SweepRecord, TrialRecord, metrics_on_test, read_sweep, read_trials, trial_folder
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.final_evaluation import evaluate_on_test
from ikd_ray.terminal.console import Console
from tests.helpers.sample_sweep import MAX_LENGTH, make_sweep
from tests.helpers.tiny_models import make_dataset

TRIALS = 6


@pytest.fixture
def request_of(tmp_path):
    """`request_of(test)`: the request of an ended sweep whose data have a test set, or None."""
    folder = make_sweep(tmp_path / "outputs", trials=TRIALS)

    def make(test: Split | None) -> SimpleNamespace:
        return SimpleNamespace(
            folder=folder,
            output=SharedStorage(str(tmp_path / "outputs")),
            dataset=replace(make_dataset("cola"), test=test),
            teacher_source=SimpleNamespace(path=str(tmp_path / "tokenizer"), key="source"),
            max_length=MAX_LENGTH,
            config=SimpleNamespace(step_memory=8.0),
        )

    return make


@pytest.fixture
def tested(request_of):
    return request_of(make_dataset("cola", dev=30, seed=5).splits["dev"])


def evaluate(request: SimpleNamespace) -> tuple[SweepRecord, list[TrialRecord], str]:
    """Return what `evaluate_on_test` returns, and its output."""
    output, folder = io.StringIO(), request.folder
    sweep, trials = evaluate_on_test(request, read_sweep(folder), read_trials(folder), Console(output))
    return sweep, trials, output.getvalue()


def mcc(request: SimpleNamespace, folder) -> float:
    """Return the MCC of a model on the test set, as transformers alone computes it."""
    tokenizer = AutoTokenizer.from_pretrained(request.teacher_source.path)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    test, answers = request.dataset.test, []
    for text in test.text:
        inputs = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.inference_mode():
            answers.append(int(model(**inputs).logits.argmax()))
    return matthews_corrcoef(test.labels, answers)


def test_the_front_and_the_teacher_are_scored_and_nobody_else(tested):
    before = {trial.id: trial for trial in read_trials(tested.folder)}
    front = [trial.id for trial in pareto_front(list(before.values()), read_sweep(tested.folder).objectives)]
    sweep, trials, output = evaluate(tested)
    assert "scoring the front's students on the test set: done" in output
    assert "WARNING" not in output
    assert 0 < len(front) < TRIALS
    for trial in trials:
        found = metrics_on_test(trial.metrics)
        assert set(found) == ({"test/mcc", "test/nll"} if trial.id in front else set())
        assert replace(trial, metrics=before[trial.id].metrics) == before[trial.id]
        if found:
            expected = mcc(tested, trial_folder(tested.folder, trial.id) / "student")
            assert found["test/mcc"] == pytest.approx(expected)
    expected = mcc(tested, tested.folder.parent / "cache" / "teachers" / "key")
    assert sweep.teacher["metrics"]["test/mcc"] == pytest.approx(expected)
    assert read_sweep(tested.folder) == sweep
    assert read_trials(tested.folder) == trials


def test_what_is_scored_is_not_scored_again(tested):
    evaluate(tested)
    before = {path: path.stat().st_mtime_ns for path in tested.folder.rglob("*")}
    *_, output = evaluate(tested)
    assert output == ""
    assert {path: path.stat().st_mtime_ns for path in tested.folder.rglob("*")} == before


def test_a_damaged_student_is_named_and_scored_when_it_is_there_again(tested):
    front = pareto_front(read_trials(tested.folder), read_sweep(tested.folder).objectives)
    weights = trial_folder(tested.folder, front[0].id) / "student" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"damaged")
    _, trials, output = evaluate(tested)
    [line] = [line for line in output.splitlines() if "WARNING" in line]
    assert f"not scored on the test set: The student of {front[0].id} is damaged" in line
    scored = {trial.id for trial in trials if metrics_on_test(trial.metrics)}
    assert scored == {trial.id for trial in front[1:]}
    weights.write_bytes(content)
    _, after, output = evaluate(tested)
    assert "WARNING" not in output
    assert {trial.id for trial in after if metrics_on_test(trial.metrics)} == {trial.id for trial in front}
    same = {trial.id: trial.metrics for trial in trials if trial.id in scored}
    assert {trial.id: trial.metrics for trial in after if trial.id in scored} == same


def test_without_a_test_set_nothing_is_done(request_of):
    request = request_of(None)
    before = read_sweep(request.folder), read_trials(request.folder)
    sweep, trials, output = evaluate(request)
    assert ((sweep, trials), output) == (before, "")
    assert not (request.folder / "test.json").exists()


def test_without_a_student_nothing_is_scored(tested):
    failed = [
        replace(trial, status="failed", metrics={}, reason="loss became nan")
        for trial in read_trials(tested.folder)
    ]
    output = io.StringIO()
    sweep = read_sweep(tested.folder)
    assert evaluate_on_test(tested, sweep, failed, Console(output)) == (sweep, failed)
    assert output.getvalue() == ""


def test_the_test_sets_tokens_are_made_again_where_they_are_gone(tested):
    evaluate(tested)
    (tested.folder / "test.json").unlink()
    first = {trial.id: trial.metrics for trial in read_trials(tested.folder)}
    assert not any(map(metrics_on_test, first.values()))
    tokens = tested.folder.parent / "cache" / "tokens"
    for folder in tokens.iterdir():
        if folder.is_dir() and (folder / "test.labels.npy").exists():
            assert np.load(folder / "test.labels.npy").tolist() == tested.dataset.test.labels.tolist()
            (folder / "test.ids.npy").unlink()
    _, trials, _ = evaluate(tested)
    assert any(metrics_on_test(trial.metrics) for trial in trials)
