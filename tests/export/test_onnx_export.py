from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from ikd_ray import records
from ikd_ray.config import Trial
from ikd_ray.data.batches import collate, evaluation_batches
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.encoder import FAMILIES, Encoder
from ikd_ray.distill.evaluate import score
from ikd_ray.export.hf_export import ExportError
from ikd_ray.export.model_card import INT8, ONNX, WEIGHTS
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.storage import store
from ikd_ray.tasks import get_task
from tests.helpers.run_command import write_glue
from tests.helpers.sample_students import file_contents
from tests.helpers.terminal import invoke
from tests.helpers.tiny_models import make_classifier, make_data, random_batch, write_tokenizer

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ikd_ray.export.onnx_export import TOLERANCE, compare_logits, export_onnx  # noqa: E402

TRIAL = TrialRecord("t000", 0, {"regime": "kd"}, [1, 2], "finished", {"dev/mcc": 0.5})
SMALL, LARGE = "cola-kd-1L-aaaa1111", "cola-kd-2L-bbbb2222"


def session(path: Path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def logits(found, batch) -> np.ndarray:
    given = {
        "input_ids": batch.input_ids.numpy(),
        "attention_mask": batch.attention_mask.long().numpy(),
        "token_type_ids": batch.token_type_ids.numpy(),
    }
    return found.run(["logits"], {put.name: given[put.name] for put in found.get_inputs()})[0]


def wanted(model, batch) -> np.ndarray:
    segments = (
        {"token_type_ids": batch.token_type_ids} if getattr(model.config, "type_vocab_size", 1) > 1 else {}
    )
    with torch.inference_mode():
        return model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), **segments
        ).logits.numpy()


@pytest.mark.parametrize(
    ("family", "task"), [*((family, "cola") for family in FAMILIES), ("bert", "stsb"), ("electra", "mnli")]
)
def test_models_of_each_family_give_what_pytorch_gives(tmp_path, family, task):
    data, folder = make_data(tmp_path, task), tmp_path / "student"
    model = make_classifier(family, layers=1, labels=data.task.num_labels)
    model.save_pretrained(folder)
    data = replace(data, pad_id=model.config.pad_token_id)
    forms = export_onnx(folder, TRIAL, data, int8=True)
    found, small = session(folder / ONNX), session(folder / INT8)

    segments = ["token_type_ids"] if family in ("bert", "electra") else []
    assert [put.name for put in found.get_inputs()] == ["input_ids", "attention_mask", *segments]
    assert list(forms.inputs) == [put.name for put in small.get_inputs()]
    assert {(put.type, *put.shape) for put in found.get_inputs()} == {("tensor(int64)", "batch", "sequence")}
    assert [put.name for put in found.get_outputs()] == ["logits"]
    for lengths in ([1], [3], [2, 32, 9], [40, 1], list(range(1, 20))):
        batch = random_batch(lengths, seed=len(lengths), pad_id=data.pad_id)
        right = wanted(model, batch)
        assert np.abs(logits(found, batch) - right).max() < TOLERANCE
        assert (logits(found, batch).argmax(1) == right.argmax(1)).all()
        if len(lengths) > 1:
            assert np.corrcoef(logits(small, batch).ravel(), right.ravel())[0, 1] > 0.95

    metrics = {form.file: form.metrics for form in forms.files}
    assert list(metrics) == [WEIGHTS, ONNX, INT8]
    assert metrics[ONNX] == pytest.approx(score(Encoder(model), data), abs=1e-5)
    assert set(metrics[INT8]) == set(metrics[ONNX])
    assert metrics[WEIGHTS] == ({"dev/mcc": 0.5} if task == "cola" else {})
    assert {form.file: form.size_mb for form in forms.files} == {
        name: (folder / name).stat().st_size / 1e6 for name in (WEIGHTS, ONNX, INT8)
    }
    assert all(form.latency_ms > 0 for form in forms.files)
    assert 0 <= forms.largest_difference < TOLERANCE
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", INT8, ONNX, WEIGHTS]


def test_int8_metrics_are_those_of_its_own_logits_and_most_weights_have_a_byte(tmp_path):
    data, folder = make_data(tmp_path, dev=90), tmp_path / "student"
    make_classifier(layers=1).save_pretrained(folder)
    forms = export_onnx(folder, TRIAL, data, int8=True)
    split, found = data.splits["dev"], session(folder / INT8)
    own = np.empty((len(split), 2), np.float32)
    for rows in evaluation_batches(split.lengths, 64):
        own[rows] = logits(found, collate(split, rows, data.pad_id))
    assert forms.files[-1].metrics == {"dev/mcc": data.task.score(split.labels, own)["mcc"]}
    full = session(folder / ONNX)
    assert any(
        np.abs(logits(full, collate(split, rows, 0)) - own[rows]).max() > 0
        for rows in evaluation_batches(split.lengths, 64)
    )
    sizes = Counter()
    for entry in onnx.load(folder / INT8).graph.initializer:
        sizes[entry.data_type] += int(np.prod(entry.dims))
    of_a_byte = sizes[onnx.TensorProto.INT8] + sizes[onnx.TensorProto.UINT8]
    assert of_a_byte > (60 + 64 + 2) * 32 + 4 * 32 * 32 + 2 * 32 * 48  # embeddings, attention, feed-forward
    assert sizes[onnx.TensorProto.FLOAT] < of_a_byte / 10


def test_models_tell_their_opset_and_nothing_of_this_machine(tmp_path):
    data, folder = make_data(tmp_path), tmp_path / "student"
    make_classifier(layers=1).save_pretrained(folder)
    forms = export_onnx(folder, TRIAL, data, int8=False)
    model = onnx.load(folder / ONNX)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [forms.opset]
    assert [form.file for form in forms.files] == [WEIGHTS, ONNX]
    content = (folder / ONNX).read_bytes()
    for words in (b"site-packages", b"transformers/", str(Path.home()).encode(), str(tmp_path).encode()):
        assert words not in content


def test_another_models_logits_are_seen(tmp_path):
    data, folder = make_data(tmp_path), tmp_path / "student"
    model = make_classifier(layers=1)
    model.save_pretrained(folder)
    export_onnx(folder, TRIAL, data, int8=False)
    compare_logits(model, folder / ONNX, data)
    with torch.no_grad():
        model.classifier.bias[0] += 3 * TOLERANCE
    with pytest.raises(ExportError, match="logits differ"):
        compare_logits(model, folder / ONNX, data)


def make_sweep(home: Path) -> Path:
    """Two students on the front, one beside it, and the tokens of the data that they were measured on."""
    output, glue = home / "outputs", write_glue(home / "glue", train=16, dev=30)
    dataset = load_dataset(get_task("cola"), glue)
    with store.staging_dir(output / "cache" / "teachers" / "key") as folder:
        tokenizer = write_tokenizer(folder)
    data = tokenize(dataset, tokenizer, "tiny", 32, output / "cache" / "tokens")
    sweep = output / "first"
    sweep.mkdir()
    about = {
        "source": dataset.source,
        "description": dataset.description,
        "fingerprint": dataset.fingerprint,
        "generated": False,
        "max_length": 32,
    }
    teacher = {"name": "tiny", "key": "key", "source_key": "tiny", "layers": 4, "metrics": {"dev/mcc": 0.41}}
    objectives = {"dev/mcc": "max", "student/params": "min"}
    fields = ("first", "cola", 7, 3, "python sweeps/run.py", "0", about, teacher, objectives)
    records.write_sweep(sweep, SweepRecord(*fields, settings={"data_dir": str(glue)}))
    for number, (id, layers, mcc) in enumerate(
        [("aaaa1111", 1, 0.3), ("bbbb2222", 2, 0.35), ("cccc3333", 2, 0.2)]
    ):
        model = make_classifier(layers=layers, seed=number)
        params = Trial.model_validate({"regime": "kd", "student_layers": layers}).params()
        metrics = score(Encoder(model), data) | {"dev/mcc": mcc, "student/params": model.num_parameters()}
        trial = TrialRecord(id, number, params, [2, 4][-layers:], "finished", metrics)
        records.write_trial(sweep, trial, model.save_pretrained)
    return output


@pytest.fixture
def output(tmp_path) -> Path:
    return make_sweep(tmp_path)


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("export")


def test_int8_at_the_command_line(output, tmp_path, command):
    done = command("export", "--task", "cola", "--output", output, "--int8", "--to", "here", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    to = tmp_path / "here"
    assert sorted(path.name for path in to.iterdir()) == [SMALL, LARGE]
    for name, recorded in ((SMALL, "0.3000"), (LARGE, "0.3500")):
        folder = to / name
        assert store.is_intact(folder)
        assert {ONNX, INT8, WEIGHTS} <= set(json.loads((folder / store.MANIFEST).read_text()))
        facts = json.loads((folder / "ikd.json").read_text())["onnx"]
        card = (folder / "README.md").read_text()
        for form, shown in zip(facts["forms"], (WEIGHTS, ONNX, INT8), strict=True):
            row = next(
                line for line in done.stdout.splitlines() if name[-8:] in line and f" {shown} " in line
            )
            assert f"{form['metrics']['dev/mcc']:.4f}" in row
            assert f"{form['size_mb']:.1f}" in row
            assert f"| {shown} | {form['kind']} | {form['metrics']['dev/mcc']} |" in card
        assert recorded in done.stdout
        assert all(sentence in card for sentence in facts["how"])
        assert "Opset 18" in card
        classify = pipeline("text-classification", str(folder), device="cpu")
        assert classify("w1 w2")[0]["label"] in ("acceptable", "unacceptable")


def test_the_cards_example_runs(output, tmp_path, app):
    arguments = (
        "--task",
        "cola",
        "--output",
        output,
        "--to",
        tmp_path / "to",
        "--pick",
        "aaaa1111",
        "--onnx",
    )
    assert invoke(app, *arguments).exit_code == 0
    (folder,) = (tmp_path / "to").iterdir()
    code = (folder / "README.md").read_text().split("## ONNX")[1].split("```python\n")[1].split("```")[0]
    shown, names = io.StringIO(), {}
    with contextlib.redirect_stdout(shown):
        exec(code.replace("PATH/OF/THIS/FOLDER", str(folder)), names)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        right = model(**AutoTokenizer.from_pretrained(folder)("A sentence.", return_tensors="pt")).logits
    assert shown.getvalue() == f"{names['session'].run(['logits'], names['inputs'])[0]}\n"
    assert np.allclose(names["session"].run(["logits"], names["inputs"])[0], right.numpy(), atol=TOLERANCE)
    assert not (folder / INT8).exists()


def test_a_student_whose_model_is_not_alike_is_left_out(output, tmp_path, app):
    trial = records.trial_folder(output / "first", "aaaa1111")
    weights = load_file(trial / "student" / WEIGHTS)
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], float("nan"))
    save_file(weights, trial / "student" / WEIGHTS, {"format": "pt"})
    shutil.copytree(trial, tmp_path / "again")
    shutil.rmtree(trial)
    (tmp_path / "again" / store.MANIFEST).unlink()
    store.publish(tmp_path / "again", trial)  # as its trial would have left it
    to = tmp_path / "to"
    result = invoke(app, "--task", "cola", "--output", output, "--to", to, "--onnx")
    assert result.exit_code == 1
    assert "aaaa1111: not exported: its ONNX model is not what PyTorch's is" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in to.iterdir()] == [LARGE]
    assert store.is_intact(to / LARGE)


def test_force_replaces_with_and_without_onnx(output, tmp_path, app):
    to = tmp_path / "to"
    flags = ("--task", "cola", "--output", output, "--to", to, "--pick", "aaaa1111")
    assert invoke(app, *flags).exit_code == 0
    before = file_contents(to)
    refused = invoke(app, *flags, "--onnx")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert file_contents(to) == before
    assert invoke(app, *flags, "--onnx", "--force").exit_code == 0
    assert (to / SMALL / ONNX).exists()
    assert invoke(app, *flags, "--force").exit_code == 0
    assert not (to / SMALL / ONNX).exists()


def test_dev_data_is_read_again_where_its_tokens_are_gone(output, tmp_path, app):
    flags = ("--task", "cola", "--output", output, "--pick", "aaaa1111", "--onnx")
    assert invoke(app, *flags, "--to", tmp_path / "one").exit_code == 0
    shutil.rmtree(output / "cache" / "tokens")
    assert invoke(app, *flags, "--to", tmp_path / "two").exit_code == 0
    assert not (output / "cache" / "tokens").exists()
    one, two = (
        json.loads((tmp_path / to / SMALL / "ikd.json").read_text())["onnx"]["forms"] for to in ("one", "two")
    )
    assert [form["metrics"] for form in one] == [form["metrics"] for form in two]
    dev = tmp_path / "glue" / "CoLA" / "dev.tsv"
    dev.write_text(dev.read_text() + "x\t1\t\tw1 w2\n")
    for problem in ("has changed", "cannot be read again"):
        result = invoke(app, *flags, "--to", tmp_path / "three")
        assert result.exit_code == 2
        assert problem in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "three").exists()
        shutil.rmtree(tmp_path / "glue", ignore_errors=True)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_is_told_before_anything_is_written(output, tmp_path, app, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    before = file_contents(tmp_path)
    result = invoke(app, "--task", "cola", "--output", output, "--to", tmp_path / "to", "--int8")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --int8 needs onnx, onnxscript, onnxruntime")
    assert 'pip install -e "' in result.stderr
    assert '[onnx]"' in result.stderr
    assert result.stderr.count("\n") == 1
    assert file_contents(tmp_path) == before
    assert invoke(app, "--task", "cola", "--output", output, "--to", tmp_path / "to").exit_code == 0
