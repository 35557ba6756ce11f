"""Every form of an exported student predicts what its recorded metrics were computed from, text for text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from ikd_ray import records
from ikd_ray.data.batches import evaluation_batches
from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.task_file import keep_task, load_task
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.evaluate import predict, score
from ikd_ray.distill.memory import BATCH
from ikd_ray.export.hf_export import ExportedStudent, export_student
from ikd_ray.export.model_card import INT8, ONNX
from ikd_ray.records import TrialRecord
from ikd_ray.storage import store
from ikd_ray.tasks import Task, get_task
from ikd_ray.tracking.models import _save_model
from tests.helpers.sample_records import sweep_record
from tests.helpers.tiny_models import WORDS, make_classifier, write_tokenizer

MAX_LENGTH = 12
SCORES = """
name: scores
text: [first, second]
label: score
range: [0, 100]
metric: spearman
"""
LONG = " ".join(WORDS * 50)  # 10,000 characters
TEXTS = ["w1 w2.", LONG, "w3 " * 30, "\u200b", "w4 größe, 名前 и слово", "مرحبا w5", "", "w6 " * MAX_LENGTH]


@dataclass(frozen=True)
class Student:
    """A student in all its forms, the dev texts, and the logits that its metrics were computed from."""

    exported: ExportedStudent
    saved: Path  # in MLflow's format
    split: Split
    logits: np.ndarray
    task: Task
    lengths: np.ndarray

    @property
    def inputs(self) -> list:
        if self.split.text_pair is None:
            return self.split.text
        pairs = zip(self.split.text, self.split.text_pair, strict=True)
        return [{"text": text, "text_pair": pair} for text, pair in pairs]

    def tokens(self, rows=slice(None)):
        tokenizer = AutoTokenizer.from_pretrained(self.exported.folder)
        pairs = self.split.text_pair
        arguments = (list(np.array(self.split.text, object)[rows]),)
        arguments += () if pairs is None else (list(np.array(pairs, object)[rows]),)
        return tokenizer(*arguments, truncation=True, padding=True, return_tensors="np")

    @property
    def answers(self) -> np.ndarray:
        """The logits as users get them."""
        return self.task.unscale_scores(self.logits) if self.task.is_regression else self.logits

    def assert_predicted(self, predictions: list[dict]) -> None:
        if self.task.is_regression:
            found = [prediction["score"] for prediction in predictions]
            np.testing.assert_allclose(found, self.answers[:, 0], rtol=1e-4)
        else:
            labels = [self.task.labels[number] for number in self.logits.argmax(1)]
            assert [prediction["label"] for prediction in predictions] == labels


@pytest.fixture(scope="module", params=["cola", "mnli", "scores"])
def student(request, tmp_path_factory) -> Student:
    """Return a student whose answers depend on all that it reads."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from ikd_ray.export.onnx_export import export_onnx

    root = tmp_path_factory.mktemp("student")
    (root / "task.yaml").write_text(SCORES)
    task = load_task(root / "task.yaml") if request.param == "scores" else get_task(request.param)
    rng = np.random.default_rng(0)
    texts = TEXTS + [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 30, 40)]
    pairs = [texts[(3 * i + 1) % len(texts)] for i in range(len(texts))] if task.is_pair else None
    labels = rng.integers(0, len(task.labels) or 100, len(texts))
    split = Split(texts, pairs, labels.astype(np.float32) if task.is_regression else labels)
    tokenizer = write_tokenizer(root / "tokenizer")
    data = tokenize(
        Dataset(task, {"train": split, "dev": split}, "folder", ""), tokenizer, "k", MAX_LENGTH, root
    )
    model = make_classifier(layers=2, labels=task.num_labels)
    sweep, teacher = root / "outputs" / "first", root / "outputs" / "cache" / "teachers" / "key"
    sweep.mkdir(parents=True)
    with store.staging_dir(teacher) as folder:
        tokenizer.save_pretrained(folder)
    record = sweep_record(task=task.name, max_length=MAX_LENGTH)
    record.data.update(truncated=data.truncation, task=records.task_digest(task))
    records.write_sweep(sweep, record)
    keep_task(sweep, task)
    metrics = score(Encoder(model), data)
    trial = TrialRecord("t000", 0, {"regime": "kd"}, [1, 2], "finished", metrics)
    records.write_trial(sweep, trial, model.save_pretrained)
    convert = partial(export_onnx, data=data, int8=True, max_length=MAX_LENGTH)
    exported = export_student(sweep, trial, root / "exports" / "t000", convert)
    texts = ("w1 w2", "w3")[: len(task.text_columns)]
    _save_model(exported.folder, root / "saved", "student", texts, "m-1", "run")
    assert str(root) not in (root / "saved" / "MLmodel").read_text()
    dev = data.splits["dev"]
    return Student(
        exported, root / "saved", split, predict(Encoder(model), dev, data.pad_id), task, dev.lengths
    )


def test_pipeline(student):
    classify = pipeline("text-classification", str(student.exported.folder), device="cpu", truncation=True)
    student.assert_predicted([classify([text])[0] for text in student.inputs])


def test_model_with_the_exported_tokenizer(student):
    model = AutoModelForSequenceClassification.from_pretrained(student.exported.folder).eval()
    with torch.inference_mode():
        logits = model(**{name: torch.from_numpy(ids) for name, ids in student.tokens().items()}).logits
    np.testing.assert_allclose(logits.numpy(), student.answers, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("file", [ONNX, INT8])
def test_onnxruntime(student, file):
    import onnxruntime

    session = onnxruntime.InferenceSession(student.exported.folder / file)
    assert session.get_modelmeta().custom_metadata_map["max_length"] == str(MAX_LENGTH)
    logits = np.empty_like(student.logits)
    for rows in evaluation_batches(student.lengths, BATCH):  # a quantized answer depends on its batch
        tokens = student.tokens(rows)
        logits[rows] = session.run(
            ["logits"], {value.name: tokens[value.name] for value in session.get_inputs()}
        )[0]
    if file == ONNX:
        np.testing.assert_allclose(logits, student.answers, atol=1e-4, rtol=1e-4)
    [measured] = [form.metrics for form in student.exported.files.files if form.file == file]
    values = student.split.labels, logits
    labels, logits = map(student.task.scale_scores, values) if student.task.is_regression else values
    expected = student.task.score(labels, logits)
    assert measured == pytest.approx({f"dev/{name}": value for name, value in expected.items()}, abs=1e-6)


def test_mlflow(student):
    if student.task.is_pair:
        columns = {"text": student.split.text, "text_pair": student.split.text_pair}
        frame = pd.DataFrame(columns)
    else:
        frame = pd.DataFrame({"text": student.split.text})
    model = mlflow.pyfunc.load_model(str(student.saved))
    student.assert_predicted(model.predict(frame).to_dict(orient="records"))
    assert len(model.predict(model.input_example)) == 1


def test_card_says_what_is_cut(student):
    card = (student.exported.folder / "README.md").read_text()
    long = sum(student.lengths == MAX_LENGTH)
    assert f"cut at {MAX_LENGTH} tokens" in card
    assert f"of {len(student.lengths)} dev examples were longer" in card
    assert 0 < int(card.split(" of 48 dev")[0].rpartition("(")[2]) <= long
    assert "one sequence, 62 tokens" in card  # of 64 positions
    assert ("The output is a score on a scale from 0 to 100. " in card) == student.task.is_regression
