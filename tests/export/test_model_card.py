"""The model card's metadata, as the hub's own library reads it, and what a card says of this machine: nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ikd_ray import records
from ikd_ray.data.task_file import load_task
from ikd_ray.export.hf_export import export_student
from ikd_ray.export.model_card import model_card
from ikd_ray.tasks import get_task
from tests.helpers.sample_students import file_contents, make_student_sweep

TEACHER = {"name": "tiny", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
HUB_TEACHER = TEACHER | {"hub_name": "org/tiny", "license": "apache-2.0"}
TICKETS = """
name: tickets
text: body
label: queue
labels: [bug, question, praise]
metric: macro_f1
metrics: [accuracy, macro_f1]
"""


@pytest.fixture
def sweep(tmp_path) -> Path:
    folder = make_student_sweep(tmp_path / "outputs", teacher=HUB_TEACHER)
    record = records.read_sweep(folder)
    records.write_sweep(folder, replace(record, data=record.data | {"example": ["The cat sat on a mat."]}))
    return folder


def test_the_hub_reads_the_metadata(sweep, tmp_path):
    folder = export_student(sweep, records.read_trial(sweep, "bbbb2222"), tmp_path / "exported").folder
    data = ModelCard.load(folder / "README.md").data
    expected = {
        "language": "en",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "org/tiny",
        "base_model_relation": "finetune",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["matthews_correlation"],
        "tags": ["knowledge-distillation", "internal-distillation", "ikd-ray", "cola"],
        "widget": [{"text": "The cat sat on a mat."}],
    }
    found = data.to_dict()
    assert {name: found.get(name) for name in expected} == expected
    [result] = data.eval_results
    assert data.model_name == "cola-pid-2L-bbbb2222"
    assert (result.task_type, result.metric_type, result.metric_value) == (
        "text-classification",
        "matthews_correlation",
        0.35,
    )
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
        "nyu-mll/glue",
        "cola",
        "validation",
    )
    assert 'classify("The cat sat on a mat.")' in (folder / "README.md").read_text()


def test_an_own_task_has_its_own_metrics_and_no_guesses(sweep, tmp_path):
    (tmp_path / "task.yaml").write_text(TICKETS)
    task, record = load_task(tmp_path / "task.yaml"), records.read_sweep(sweep)
    trial = replace(
        records.read_trial(sweep, "bbbb2222"),
        metrics={"dev/accuracy": 0.9, "dev/macro_f1": 0.8, "test/macro_f1": 0.7, "holdout/macro_f1": 0.6}
        | {"dev/nll": 0.1, "test/accuracy": math.nan},
    )
    record = replace(record, task="tickets", teacher=TEACHER)
    data = ModelCard(model_card(record, trial, task, 62)).data
    names = ("base_model", "base_model_relation", "license", "language", "datasets")
    assert all(data.get(name) is None for name in names)
    assert data.metrics == ["accuracy", "f1"]
    results = {(each.dataset_split, each.metric_name): each for each in data.eval_results}
    assert {key: each.metric_value for key, each in results.items()} == {
        ("dev", "Accuracy"): 0.9,
        ("dev", "Macro F1"): 0.8,
        ("test", "Macro F1"): 0.7,
    }
    assert results["dev", "Macro F1"].metric_args == {"average": "macro"}
    assert {each.dataset_type for each in data.eval_results} == {"tickets"}
    in_french = model_card(record, trial, _with_language(task, "fr"), 62)
    assert ModelCard(in_french).data.language == "fr"


def _with_language(task, language):
    object.__setattr__(task, "language", language)
    return task


def test_results_on_generated_data_are_not_listed_as_those_of_the_task(tmp_path):
    sweep = make_student_sweep(tmp_path / "outputs", generated=True)
    trial = records.read_trial(sweep, "bbbb2222")
    data = ModelCard(model_card(records.read_sweep(sweep), trial, get_task("cola"), 62)).data
    assert not data.eval_results
    assert data.datasets is None
    assert "generated-data" in data.tags


def test_the_table_has_quality_size_and_speed(sweep):
    record, trial = records.read_sweep(sweep), records.read_trial(sweep, "bbbb2222")
    more = {"dev/teacher_agreement": 0.91234, "student/params": 22_713_728.0, "student/latency_ms": 9.87}
    trial = replace(trial, metrics=trial.metrics | more | {"dev/layer_1/kl": 0.1, "dev/nll": 0.5})
    table = model_card(record, trial, get_task("cola"), 62).split("## Results")[1].split("\n\n")[1]
    assert table.splitlines()[2:] == [
        "| dev/mcc | 0.3500 | 0.4100 |",
        "| dev/teacher_agreement | 0.9123 | - |",
        "| student/params | 22,713,728 | - |",
        "| student/latency_ms | 9.9 | - |",
    ]


def test_a_card_for_the_hub_quotes_no_text_of_the_users_own_tables(sweep, tmp_path):
    (tmp_path / "task.yaml").write_text(TICKETS)
    own, record = load_task(tmp_path / "task.yaml"), records.read_sweep(sweep)
    trial, text = records.read_trial(sweep, "bbbb2222"), "The cat sat on a mat."
    assert text in model_card(record, trial, own, 62)
    pushed = model_card(record, trial, own, 62, repository="ann/tickets")
    assert text not in pushed
    assert 'pipeline("text-classification", "ann/tickets", truncation=True)' in pushed
    assert ModelCard(pushed).data.get("widget") is None
    assert text in model_card(record, trial, get_task("cola"), 62, repository="ann/cola"), "public data"


def test_the_example_is_in_the_card_alone(sweep, tmp_path):
    trial = records.read_trial(sweep, "bbbb2222")
    folder = export_student(sweep, trial, tmp_path / "exported", repository="ann/cola").folder
    files = file_contents(folder)
    assert [name for name, content in files.items() if b"The cat sat on a mat" in content] == ["README.md"]


def test_no_path_of_this_machine_is_in_an_exported_folder(sweep, tmp_path):
    home = "/home/ann/secret"
    record = records.read_sweep(sweep)
    flags = f"--task {home}/cola.yaml --teacher={home}/my-teacher --data-dir ../{home}/glue --space own.yaml"
    places = f"--output {home}/outputs --tracking-uri=sqlite:///{home}/mlflow.db --trials 3"
    teacher = HUB_TEACHER | {"name": f"{home}/my-teacher"}  # as earlier versions recorded it
    command = f"python sweeps/run.py {flags} {places}"
    records.write_sweep(sweep, replace(record, command=command, teacher=teacher))
    folder = export_student(sweep, records.read_trial(sweep, "bbbb2222"), tmp_path / "exported").folder
    shown = "python sweeps/run.py --task cola.yaml --teacher=my-teacher --data-dir glue --space own.yaml --trials 3"
    facts = json.loads((folder / "ikd.json").read_text())
    assert facts["command"] == shown
    assert facts["teacher"]["name"] == "my-teacher"
    assert shown in (folder / "README.md").read_text()
    for name, content in file_contents(folder).items():
        assert home.encode() not in content, name
        assert str(tmp_path).encode() not in content, name
