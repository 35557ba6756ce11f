"""Exported Hugging Face folders: their content, and what a failed export leaves alone."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from transformers import AutoTokenizer, pipeline

from ikd_ray import records
from ikd_ray.analysis.student_selection import select_students
from ikd_ray.analysis.sweep_analysis import used_params
from ikd_ray.data.task_file import CustomTask
from ikd_ray.distill.fast_layers import use_pytorch_layers
from ikd_ray.errors import UsageError
from ikd_ray.export import hf_export
from ikd_ray.export.hf_export import ExportedStudent, export_students
from ikd_ray.export.model_card import model_card
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.storage import store
from ikd_ray.tasks import get_task
from tests.helpers.sample_students import (
    LARGE_EXPORT,
    SENTENCE,
    SMALL_EXPORT,
    file_contents,
    is_whole_export,
    make_student,
    make_student_sweep,
)


def export_front(sweep: Path, to: Path, **options) -> list[ExportedStudent]:
    front = select_students(records.read_sweep(sweep), records.read_trials(sweep), None)
    students, problems = export_students(sweep, to, front, **options)
    assert not problems
    return students


@pytest.fixture(scope="module")
def sample_sweep(tmp_path_factory) -> Path:
    """Return a sweep to read; never change it."""
    return make_student_sweep(tmp_path_factory.mktemp("sample") / "outputs")


@pytest.fixture(scope="module")
def exported(sample_sweep, tmp_path_factory) -> list[ExportedStudent]:
    return export_front(sample_sweep, tmp_path_factory.mktemp("exports"))


@pytest.fixture
def sweep(sample_sweep, tmp_path) -> Path:
    """Return a copy to change."""
    shutil.copytree(sample_sweep.parent, tmp_path / "outputs")
    return tmp_path / "outputs" / sample_sweep.name


def test_exported_students_load_with_named_labels_and_the_same_logits(exported):
    assert [student.folder.name for student in exported] == [SMALL_EXPORT, LARGE_EXPORT]
    for layers, student in enumerate(exported, start=1):
        classify = pipeline("text-classification", str(student.folder), device="cpu")
        scores = {answer["label"]: answer["score"] for answer in classify(SENTENCE, top_k=None)}
        assert set(scores) == {"acceptable", "unacceptable"}
        inputs = AutoTokenizer.from_pretrained(student.folder)(SENTENCE, return_tensors="pt")
        assert inputs["input_ids"].tolist() == [[2, 5, 6, 11, 7, 8, 9, 10, 12, 3]]
        original = make_student(layers)
        original.set_attn_implementation("sdpa")
        use_pytorch_layers(original)  # another library's matrix products differ in the last bit
        # A copy, because the last bit of a matrix product depends on where a file's mapping put the weights.
        loaded = copy.deepcopy(classify.model)
        with torch.inference_mode():
            logits = original(**inputs).logits
            assert torch.equal(loaded(**inputs).logits, logits)
        assert scores["acceptable"] == pytest.approx(float(logits.softmax(-1)[0, 1]), rel=1e-5)


@pytest.mark.slow
def test_exported_folder_loads_without_this_package(exported, tmp_path):
    """In a new process, because this one has registered the package's own attention."""
    code = (
        "import sys; from transformers import pipeline; "
        "print(pipeline('text-classification', sys.argv[1], device='cpu')('the cat')[0]['label']); "
        "assert 'ikd_ray' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(exported[0].folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "acceptable" in done.stdout


def test_exported_configuration_names_nothing_of_this_package(exported):
    config = json.loads((exported[0].folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert not {"auto_map", "attn_implementation", "_attn_implementation"} & set(config)
    assert "ikd" not in str(config)


def test_regression_of_pairs_gives_a_score(tmp_path):
    small, _ = export_front(make_student_sweep(tmp_path / "outputs", task="stsb"), tmp_path / "exports")
    classify = pipeline("text-classification", str(small.folder), device="cpu")
    answer = classify({"text": "the cat", "text_pair": "a mat"})
    assert answer["label"] == "score"
    inputs = AutoTokenizer.from_pretrained(small.folder)("the cat", "a mat", return_tensors="pt")
    with torch.inference_mode():
        logits = make_student(1, 1)(**inputs).logits
    assert answer["score"] == pytest.approx(float(logits[0, 0]), rel=1e-4)
    card = (small.folder / "README.md").read_text()
    assert "text_pair" in card
    assert "The output is a score on a scale from 0 to 5. " in card
    assert "f1 is that of" not in card


def test_exported_folder_is_whole_and_tells_its_origin(exported):
    small, large = exported
    assert is_whole_export(small.folder)
    names = {path.name for path in small.folder.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert names == {"model.safetensors", "config.json", *tokenizer, "README.md", "ikd.json"}
    assert (small.folder / "model.safetensors").read_bytes() != b"not for students"
    how = json.loads((small.folder / "tokenizer_config.json").read_text())
    assert how["model_max_length"] == 48
    assert not {"is_local", "local_files_only"} & set(how), "how it was loaded here is no one's business"
    facts = json.loads((large.folder / "ikd.json").read_text())
    assert facts["params"]["lambda"] == 0.3
    assert facts["layer_map"] == [3, 6]
    assert facts["teacher"] == {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
    assert facts["generated"] is False
    assert not {"assistant", "onnx"} & set(facts)
    _, front_matter, card = (small.folder / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front_matter)
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-classification")
    assert "| dev/mcc | 0.3000 | 0.4100 |" in card
    assert facts["metrics"]["dev/mcc"] == 0.35
    assert json.loads((small.folder / "ikd.json").read_text())["metrics"]["dev/mcc"] == 0.30000000000000004
    assert "8551 train \\| 1043 dev" in card
    assert "python sweeps/run.py --task cola --name first" in card
    assert "| 1 | 6 |" in card
    used = used_params(small.trial).keys() - {"unlabelled_fraction"}
    shown = {name for name, value in small.trial.params.items() if f"| {name} | {value} |" in card}
    assert shown == used < small.trial.params.keys()
    assert GENERATED_WARNING not in card
    assert "| assistant |" not in card
    assert not list(small.folder.parent.rglob(".*"))


def test_an_assistant_is_named_beside_the_teacher(tmp_path):
    assistant = {"name": "2L of mini", "key": "f00", "metrics": {"dev/mcc": math.nan}}
    teacher = {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
    sweep = make_student_sweep(tmp_path / "outputs", teacher=teacher | {"assistants": {"2": assistant}})
    trial = records.read_trial(sweep, "aaaa1111")
    store.discard(records.trial_folder(sweep, trial.id))
    taught = replace(trial, params=trial.params | {"assistant_layers": 2})
    records.write_trial(sweep, taught, make_student(1).save_pretrained)
    small, large = export_front(sweep, tmp_path / "exports")
    facts, others = (json.loads((student.folder / "ikd.json").read_text()) for student in (small, large))
    assert facts["teacher"] == others["teacher"] == teacher
    assert facts["assistant"] == assistant | {"metrics": {"dev/mcc": None}}
    assert "assistant" not in others
    row = "| assistant | 2 layers (f00), in the teacher's place |"
    assert row in (small.folder / "README.md").read_text()
    assert "| assistant |" not in (large.folder / "README.md").read_text()


def test_a_failed_replacement_keeps_the_old_folder(sample_sweep, tmp_path, monkeypatch):
    to = tmp_path / "exports"
    export_front(sample_sweep, to)
    before = file_contents(to)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hf_export, "model_card", fail)
        with pytest.raises(UsageError, match="No space left"):
            export_front(sample_sweep, to, force=True)
    assert file_contents(to) == before
    rename = os.rename

    def fail_on_the_last(old, new):
        if Path(new).parent == to and Path(old).name == "new":
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail_on_the_last)
    with pytest.raises(UsageError, match="Input/output error"):
        export_front(sample_sweep, to, force=True)
    assert file_contents(to) == before


def test_a_target_without_permission_is_refused(sample_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match="no permission"):
        export_front(sample_sweep, tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_a_damaged_teacher_is_refused(sweep, tmp_path):
    (sweep.parent / "cache" / "teachers" / "key" / "vocab.txt").write_text("changed")
    with pytest.raises(UsageError, match="the teacher, whose tokenizer its students share"):
        export_front(sweep, tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_an_unknown_regime_names_no_folder(sweep, tmp_path):
    trial = records.read_trial(sweep, "aaaa1111")
    strange = replace(trial, params=trial.params | {"regime": "../kd"})
    with pytest.raises(UsageError, match="of aaaa1111: regime: unknown"):
        export_students(sweep, tmp_path / "exports", [strange])
    assert not (tmp_path / "exports").exists()


def test_an_unreadable_trial_is_named(sweep):
    (records.trial_folder(sweep, "cccc3333") / "trial.json").write_text("{")
    with pytest.raises(UsageError, match=r"cccc3333/trial.json: cannot be read"):
        records.select_sweep(sweep.parent, get_task("cola"))


HOSTILE = ["*a*", "_b_ c_d", "<i>e", "f|g", "$h$ $", "`i` ``j``", r"\k", "&amp;", "[l](m)"]


def test_the_card_shows_outside_text_literally(sample_sweep):
    sweep = replace(records.read_sweep(sample_sweep), name=HOSTILE[5], task=HOSTILE[3])
    teacher = sweep.teacher | {"name": " ".join(HOSTILE)}
    trial = records.read_trials(sample_sweep)[0]
    trial = replace(trial, params=trial.params | dict.fromkeys(HOSTILE, 0.5))
    task = replace(get_task("cola"), labels=tuple(HOSTILE))
    card = model_card(replace(sweep, teacher=teacher, command=HOSTILE[5]), trial, task, 62).split("---\n", 2)[
        2
    ]
    html = MarkdownIt("commonmark").enable("table").render(card)
    lines = [unescape(line).strip() for line in re.sub("<[^>]*>", "", html).splitlines()]
    cut = "inputs that were cut at 48 tokens; with truncation=True the tokenizer does so, too."
    said = f"Labels: {', '.join(HOSTILE)}. The student has learned from, and was measured on, {cut}"
    assert said in lines
    assert [name for name in HOSTILE if name not in lines] == []  # cells of the hyperparameters
    assert sum(HOSTILE[5] in line for line in lines) >= 4
    assert r"\$h\$" in card  # GitHub would make a formula of it


def test_the_card_tells_of_the_test_set_and_the_language(sample_sweep):
    sweep, trial = records.read_sweep(sample_sweep), records.read_trials(sample_sweep)[0]
    assert "test/" not in model_card(sweep, trial, get_task("cola"), 62)
    task = CustomTask("own", ("text",), ("a", "b"), ("mcc",), "mcc", language="de")
    teacher = sweep.teacher | {"metrics": {"dev/mcc": 0.5, "test/mcc": 0.375}}
    tested = replace(sweep, data=sweep.data | {"test": {"examples": 1200}}, teacher=teacher)
    card = model_card(tested, replace(trial, metrics=trial.metrics | {"test/mcc": 0.25}), task, 62)
    assert "| test/mcc | 0.2500 | 0.3750 |\n" in card
    assert "measured once, when the search had ended, on 1,200 examples; nothing was chosen by them." in card
    assert yaml.safe_load(card.split("---\n")[1])["language"] == "de"


def test_the_card_names_the_class_of_f1(sample_sweep):
    sweep, trial = records.read_sweep(sample_sweep), records.read_trials(sample_sweep)[0]
    task = get_task("mrpc")
    assert "\nf1 is that of class `equivalent`.\n" in model_card(sweep, trial, task, 62)
    other = replace(task, positive_index=0)
    assert "\nf1 is that of class `not_equivalent`.\n" in model_card(sweep, trial, other, 62)
    assert "f1 is that of" not in model_card(sweep, trial, get_task("cola"), 62)


@pytest.mark.parametrize(
    ("examples", "params", "told"),
    [
        ({"unlabelled": 1200}, {}, "all of 1,200"),
        ({"unlabelled": 1200}, {"unlabelled_fraction": 1.0}, "all of 1,200"),
        ({"unlabelled": 1200}, {"unlabelled_fraction": 0.5}, "0.5 of 1,200"),
        ({"unlabelled": 1200}, {"unlabelled_fraction": 0.0}, "none of 1,200"),
        ({"unlabelled": 1200}, {"regime": "hard"}, "none of 1,200"),
        ({"unlabelled": 0}, {}, None),
        ({}, {}, None),  # of an earlier version
    ],
)
def test_the_card_tells_of_texts_without_a_label(sample_sweep, examples, params, told):
    sweep, trial = records.read_sweep(sample_sweep), records.read_trials(sample_sweep)[0]
    kept = {name: value for name, value in trial.params.items() if name != "unlabelled_fraction"}
    card = model_card(
        replace(sweep, data=sweep.data | {"examples": examples}),
        replace(trial, params=kept | params),
        get_task("cola"),
        62,
    )
    use = "" if told and told.startswith("none") else ", used by the losses that compare with the teacher"
    line = f"| texts without a label | {told}{use} |"
    assert line in card if told else "| texts without a label |" not in card
    assert ("| unlabelled_fraction |" in card) == bool(told and "unlabelled_fraction" in params)
