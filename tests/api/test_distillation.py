"""One student from Python, on a tiny teacher."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from transformers import pipeline

import ikd_ray
from ikd_ray.config import Trial
from ikd_ray.data.tokens import open_data
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.loop import distill
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import load_teacher
from tests.helpers.run_command import write_inputs
from tests.helpers.tiny_models import make_dataset

FIELDS = {
    "regime": "pid",
    "student_layers": 2,
    "epochs": 2,
    "epochs_per_layer": 1,
    "batch_size": 16,
    "lambda_": 0.5,
}
FINE_TUNING = {"epochs": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("one"))


@pytest.fixture
def train(home, monkeypatch):
    """`train(regime="kd")`: a student of the tiny teacher."""
    monkeypatch.chdir(home)

    def run(**changes):
        arguments = {"teacher": "teacher", "task": "cola", "data_dir": "glue", "max_length": 32}
        return ikd_ray.distill(**arguments | {"fine_tuning": FINE_TUNING} | FIELDS | changes)

    return run


@pytest.fixture(scope="module")
def student(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield ikd_ray.distill(
            "teacher", task="cola", data_dir="glue", max_length=32, fine_tuning=FINE_TUNING, **FIELDS
        )


def test_the_student_is_that_of_the_loop(student, home):
    cache = home / "outputs" / "cache"
    [tokens], [teacher_folder] = cache.glob("tokens/[!.]*"), cache.glob("teachers/[!.]*")
    [targets_folder] = cache.glob("targets/[!.]*")
    data, teacher = open_data(tokens), load_teacher(teacher_folder)
    world = DistributedContext(precision="auto")
    result = distill(Trial(**FIELDS), data, Targets(targets_folder, data, teacher), world=world)
    for name, value in result.metrics.items():
        if not name.startswith("time/"):
            assert student.metrics[name] == pytest.approx(value, rel=1e-6), name
    assert student.metrics["student/latency_ms"] > 0
    assert student.params == Trial(**FIELDS).params()
    assert student.layer_map == [2, 4]


def test_the_history_has_a_row_per_epoch(student):
    assert list(student.history["epoch"]) == [1, 2, 3, 4]
    assert list(student.history["stage_name"]) == ["1", "2", "C", "C"]
    assert student.history["dev/mcc"].iloc[-1] == student.metrics["dev/mcc"]


def test_the_student_is_used_and_saved(student, tmp_path):
    folder = student.save(tmp_path / "student")
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "ikd.json"} <= files
    saved = pipeline("text-classification", str(folder), truncation=True)
    assert student.pipeline()(["w1 w2.", "w3."]) == saved(["w1 w2.", "w3."])
    facts = json.loads((folder / "ikd.json").read_text())
    assert "sweep" not in facts
    assert facts["params"]["lambda"] == 0.5
    assert facts["command"].startswith("ikd_ray.distill(teacher='teacher', task='cola', ")
    card = (folder / "README.md").read_text()
    assert "of sweep" not in card
    assert student.export(tmp_path / "exports").name == student.name
    assert student.name.startswith("cola-pid-2L-")


def test_the_same_call_continues_from_what_is_saved(student, train, capsys):
    again = train()
    output = capsys.readouterr().out
    assert "fine-tuning" not in output
    assert again.metrics["trained_epochs"] == 4.0
    assert again.id == student.id
    same = [name for name in student.metrics if not name.startswith("time/")]
    assert [again.metrics[name] for name in same] == [student.metrics[name] for name in same]
    assert again.metrics["time/epoch_s"] == student.metrics["time/epoch_s"]
    other = train(temperature=3.0)
    assert other.metrics["reused_epochs"] == 2.0, "its internal stages are the same"


TASK = """\
name: parity
text: text
label: label
labels: [even, odd]
metric: accuracy
files: {train: train.csv, dev: dev.csv, test: test.csv}
"""


def test_a_test_set_is_scored_at_the_end(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parity.yaml").write_text(TASK)
    for seed, (name, rows) in enumerate({"train": 64, "dev": 20, "test": 20}.items()):
        split = make_dataset(train=rows, seed=seed).splits["train"]
        lines = [
            f"{text},{('even', 'odd')[label]}" for text, label in zip(split.text, split.labels, strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    student = ikd_ray.distill(
        home / "teacher", task="parity.yaml", data_dir=".", max_length=32, fine_tuning=FINE_TUNING, **FIELDS
    )
    assert {"test/accuracy", "dev/accuracy"} <= student.metrics.keys()
    assert "test/accuracy" not in student.history
    card = (student.save("student") / "README.md").read_text()
    assert re.search(rf"^\| test/accuracy \| {student.metrics['test/accuracy']:.4f} \| [01]\.", card, re.M), (
        "the teacher's too"
    )


def test_progress_is_a_line_for_each_event(train, capsys):
    train(regime="kd", share=False, assistant_layers=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cola: a student of teacher"
    assert any(line.startswith("distilling a 3-layer assistant (kd): done in ") for line in lines)
    assert [line for line in lines if line.startswith("  student epoch ")][-1].startswith(
        "  student epoch 2/2: mcc "
    )
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_the_precision_is_that_of_teacher_and_student(train, tmp_path):
    student = train(output=tmp_path, regime="kd", precision="bfloat16")
    [teacher] = (tmp_path / "cache" / "teachers").glob("*/teacher.json")
    assert json.loads(teacher.read_text())["settings"]["precision"] == "bfloat16"
    saved = json.loads((student.save(tmp_path / "student") / "ikd.json").read_text())
    assert saved["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1}, "temperature=-1: input should be greater than 0"),
        ({"lambda_": "much"}, "lambda_='much': input should be a valid number"),
        ({"temprature": 2}, "temprature: unknown name; did you mean temperature?"),
        ({"regime": "kdd"}, "regime='kdd': input should be 'hard'"),
        ({"student_layers": 9}, "student_layers: up to 9, but the teacher "),
        ({"assistant_layers": 1}, "assistant_layers: 1 for a student of 2 layers, but "),
        (
            {"unlabelled_fraction": 0.5},
            "unlabelled_fraction needs texts without a label; give unlabelled FILE",
        ),
        ({"fine_tuning": {"epoch": 1}}, "fine_tuning.epoch: unknown name; did you mean epochs?"),
        ({"max_length": 3}, "max_length: input should be greater than or equal to 8"),
        ({"task": "cole"}, "task 'cole' is not known; one of: cola"),
        ({"teacher": "nowhere"}, "teacher='nowhere': "),
        ({"data_dir": "nowhere"}, "data_dir='"),
        ({"step_memory": 0}, "step_memory=0: input should be greater"),
        ({"precision": "float16"}, "precision: input should be 'auto'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_argument(train, tmp_path, changes, message):
    with pytest.raises(ikd_ray.UsageError) as error:
        train(output=tmp_path / "outputs", **changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "outputs").exists()


def test_neither_ray_nor_mlflow_is_imported(student, home):
    script = f"""
import sys, ikd_ray
ikd_ray.distill("teacher", task="cola", data_dir="glue", max_length=32, fine_tuning={FINE_TUNING}, **{FIELDS}).save("s")
assert not {{"ray", "mlflow"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=home, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
