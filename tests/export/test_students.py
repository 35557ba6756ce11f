"""What is exported of a sweep's students, and what is never lost by it."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, pipeline

from ikd_ray import records
from ikd_ray.distill.fast_layers import use_onednn
from ikd_ray.errors import UsageError
from ikd_ray.export import students
from ikd_ray.export.students import export_students
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.storage import store
from ikd_ray.tasks import get_task
from tests.helpers.sample_students import (
    LARGE_EXPORT,
    SENTENCE,
    SMALL_EXPORT,
    file_contents,
    make_student,
    make_student_sweep,
)


@pytest.fixture
def output(tmp_path) -> Path:
    make_student_sweep(tmp_path / "outputs")
    return tmp_path / "outputs"


def test_exported_students_load_with_named_labels_and_the_same_logits(output, tmp_path):
    made = export_students(output / "first", tmp_path / "exports")
    assert [student.folder.name for student in made] == [SMALL_EXPORT, LARGE_EXPORT]
    for layers, exported in enumerate(made, start=1):
        classify = pipeline("text-classification", str(exported.folder), device="cpu")
        answers = classify(SENTENCE, top_k=None)
        assert {answer["label"] for answer in answers} == {"acceptable", "unacceptable"}
        inputs = AutoTokenizer.from_pretrained(exported.folder)(SENTENCE, return_tensors="pt")
        assert inputs["input_ids"].tolist() == [[2, 5, 6, 11, 7, 8, 9, 10, 12, 3]]
        original = make_student(layers)
        original.set_attn_implementation("sdpa")
        use_onednn(original, False)  # another library's matrix products differ in the last bit
        # A copy, because the last bit of a matrix product depends on where a file's mapping put the weights.
        loaded = copy.deepcopy(classify.model)
        with torch.inference_mode():
            assert torch.equal(loaded(**inputs).logits, original(**inputs).logits)
        scores = {answer["label"]: answer["score"] for answer in answers}
        with torch.inference_mode():
            expected = original(**inputs).logits.softmax(-1)[0]
        assert scores["acceptable"] == pytest.approx(float(expected[1]), rel=1e-5)


def test_exported_folder_loads_where_this_package_is_not(output, tmp_path):
    (small, _) = export_students(output / "first", tmp_path / "exports")
    code = (
        "import sys; from transformers import pipeline; "
        "print(pipeline('text-classification', sys.argv[1], device='cpu')('the cat')[0]['label']); "
        "assert 'ikd_ray' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small.folder)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "acceptable" in done.stdout


def test_regression_of_pairs_gives_a_score(tmp_path):
    sweep = make_student_sweep(tmp_path / "outputs", task="stsb")
    (small, _) = export_students(sweep, tmp_path / "exports")
    classify = pipeline("text-classification", str(small.folder), device="cpu")
    answer = classify({"text": "the cat", "text_pair": "a mat"})
    assert answer["label"] == "score"
    inputs = AutoTokenizer.from_pretrained(small.folder)("the cat", "a mat", return_tensors="pt")
    with torch.inference_mode():
        assert answer["score"] == pytest.approx(float(make_student(1, 1)(**inputs).logits[0, 0]), rel=1e-4)
    assert "text_pair" in (small.folder / "README.md").read_text()


def test_folder_is_whole_and_says_how_it_was_made(output, tmp_path):
    (small, large) = export_students(output / "first", tmp_path / "exports")
    assert store.is_intact(small.folder)
    names = {path.name for path in small.folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "ikd.json"} <= names
    assert "teacher.json" not in names
    assert (small.folder / "model.safetensors").read_bytes() != b"not for students"
    facts = json.loads((large.folder / "ikd.json").read_text())
    assert facts["params"]["lambda"] == 0.3
    assert facts["layer_map"] == [3, 6]
    assert facts["teacher"] == {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
    assert facts["generated"] is False
    _, front_matter, card = (small.folder / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front_matter)
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-classification")
    assert "| dev/mcc | 0.30000000000000004 | 0.41 |" in card
    assert "8551 train \\| 1043 dev" in card
    assert "python sweeps/run.py --task cola --name first" in card
    assert "| 1 | 6 |" in card
    assert all(f"| {name} | {value} |" in card for name, value in small.trial.params.items())
    assert GENERATED_WARNING not in card
    assert "assistant" not in facts
    assert "| assistant |" not in card
    assert not list((tmp_path / "exports").glob(".*"))


def test_it_says_who_taught_in_the_teachers_place(tmp_path):
    known = {"name": "2L of mini", "key": "f00", "metrics": {"dev/mcc": math.nan}}
    teacher = {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
    sweep = make_student_sweep(tmp_path / "outputs", teacher=teacher | {"assistants": {"2": known}})
    trial = records.read_trial(sweep, "aaaa1111")
    store.discard(records.trial_folder(sweep, trial.id))
    taught = replace(trial, params=trial.params | {"assistant_layers": 2})
    records.write_trial(sweep, taught, make_student(1).save_pretrained)
    small, large = export_students(sweep, tmp_path / "exports")
    facts, others = (json.loads((made.folder / "ikd.json").read_text()) for made in (small, large))
    assert facts["teacher"] == others["teacher"] == teacher
    assert facts["assistant"] == known | {"metrics": {"dev/mcc": None}}
    assert "assistant" not in others
    row = "| assistant | 2 layers (f00), in the teacher's place |"
    assert row in (small.folder / "README.md").read_text()
    assert "| assistant |" not in (large.folder / "README.md").read_text()


def test_force_keeps_the_old_folder_when_the_new_one_fails(output, tmp_path, monkeypatch):
    to = tmp_path / "exports"
    export_students(output / "first", to)
    before = file_contents(to)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(students, "model_card", fail)
    with pytest.raises(UsageError, match="No space left"):
        export_students(output / "first", to, force=True)
    assert file_contents(to) == before
    monkeypatch.undo()
    rename = os.rename

    def not_the_last(old, new):
        if Path(new).parent == to and Path(old).name == "new":
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(students.os, "rename", not_the_last)
    with pytest.raises(UsageError, match="Input/output error"):
        export_students(output / "first", to, force=True)
    assert file_contents(to) == before


def test_target_without_permission(output, tmp_path, monkeypatch):
    monkeypatch.setattr(students.os, "access", lambda *_: False)  # root, who may run this, may write anywhere
    with pytest.raises(UsageError, match="no permission"):
        export_students(output / "first", tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_missing_or_damaged_teacher_is_told(output, tmp_path):
    (output / "cache" / "teachers" / "key" / "vocab.txt").write_text("changed")
    with pytest.raises(UsageError, match="teacher"):
        export_students(output / "first", tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_unreadable_trial_is_told(output, tmp_path):
    (records.trial_folder(output / "first", "cccc3333") / "trial.json").write_text("{")
    with pytest.raises(UsageError, match="first"):
        records.select_sweep(output, get_task("cola"))
