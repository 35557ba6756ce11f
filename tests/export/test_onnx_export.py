"""ONNX models beside an exported student: equal to PyTorch's, measured, and described."""

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
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import uses_segment_ids
from ikd_ray.distill.evaluate import score
from ikd_ray.distill.families import FAMILIES
from ikd_ray.export.hf_export import ExportError
from ikd_ray.export.model_card import INT8, ONNX, WEIGHTS
from ikd_ray.records import TrialRecord
from ikd_ray.storage import store
from ikd_ray.tasks import get_task
from tests.helpers.run_command import write_glue
from tests.helpers.sample_records import sweep_record
from tests.helpers.sample_students import file_contents, is_whole_export
from tests.helpers.terminal import invoke, usage_error
from tests.helpers.tiny_models import make_classifier, make_data, random_batch, write_tokenizer

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ikd_ray.export.onnx_export import TOLERANCE, compare_logits, export_onnx  # noqa: E402

TRIAL = TrialRecord("t000", 0, {"regime": "kd"}, [1, 2], "finished", {"dev/mcc": 0.5})
SMALL_EXPORT, LARGE_EXPORT = "cola-kd-1L-aaaa1111", "cola-kd-2L-bbbb2222"


def make_session(path: Path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def session_logits(session, batch) -> np.ndarray:
    values = {
        "input_ids": batch.input_ids.numpy(),
        "attention_mask": batch.attention_mask.long().numpy(),
        "token_type_ids": batch.token_type_ids.numpy(),
    }
    return session.run(["logits"], {value.name: values[value.name] for value in session.get_inputs()})[0]


def model_logits(model, batch) -> np.ndarray:
    has_segments = getattr(model.config, "type_vocab_size", 1) > 1
    segments = {"token_type_ids": batch.token_type_ids} if has_segments else {}
    with torch.inference_mode():
        output = model(batch.input_ids, attention_mask=batch.attention_mask.long(), **segments)
    return output.logits.numpy()


QUICK = ("bert", "roberta", "electra", "distilbert", "mpnet")
CASES = [
    pytest.param(
        family,
        {"bert": "stsb", "electra": "mnli"}.get(family, "cola"),
        marks=[] if family in QUICK else [pytest.mark.slow],
    )
    for family in FAMILIES
]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_models_of_each_family_have_the_logits_of_pytorch(tmp_path, family, task):
    data, folder = make_data(tmp_path, task), tmp_path / "student"
    model = make_classifier(family, layers=1, labels=data.task.num_labels)
    model.save_pretrained(folder)
    data = replace(data, pad_id=model.config.pad_token_id)
    exported = export_onnx(folder, TRIAL, data, int8=True, max_length=32)
    full, quantized = make_session(folder / ONNX), make_session(folder / INT8)

    segments = ["token_type_ids"] if uses_segment_ids(model) else []
    assert bool(segments) == (family in ("bert", "electra")) or family not in QUICK
    assert [value.name for value in full.get_inputs()] == ["input_ids", "attention_mask", *segments]
    assert list(exported.inputs) == [value.name for value in quantized.get_inputs()]
    shapes = {(value.type, *value.shape) for value in full.get_inputs()}
    assert shapes == {("tensor(int64)", "batch", "sequence")}
    assert [value.name for value in full.get_outputs()] == ["logits"]
    for lengths in ([1], [3], [2, 32, 9], [40, 1], list(range(1, 20))):
        batch = random_batch(lengths, seed=len(lengths), pad_id=data.pad_id)
        expected = model_logits(model, batch)
        assert np.abs(session_logits(full, batch) - expected).max() < TOLERANCE
        assert (session_logits(full, batch).argmax(1) == expected.argmax(1)).all()
        if len(lengths) > 1:
            assert np.corrcoef(session_logits(quantized, batch).ravel(), expected.ravel())[0, 1] > 0.95

    metrics = {file.file: file.metrics for file in exported.files}
    assert list(metrics) == [WEIGHTS, ONNX, INT8]
    scores = {name: value for name, value in score(Encoder(model), data).items() if "nll" not in name}
    assert metrics[ONNX] == pytest.approx(scores, abs=1e-5)
    assert set(metrics[INT8]) == set(metrics[ONNX])
    assert metrics[WEIGHTS] == ({"dev/mcc": 0.5} if task == "cola" else {})
    sizes = {name: (folder / name).stat().st_size / 1e6 for name in (WEIGHTS, ONNX, INT8)}
    assert {file.file: file.size_mb for file in exported.files} == sizes
    assert all(file.latency_ms > 0 for file in exported.files)
    assert 0 <= exported.largest_difference < TOLERANCE
    assert sorted(file_contents(folder)) == ["config.json", WEIGHTS, ONNX, INT8]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a BERT student with both models: its folder, its data and the description of its files."""
    root = tmp_path_factory.mktemp("exported")
    data = make_data(root, dev=90)
    make_classifier(layers=1).save_pretrained(root / "student")
    return root / "student", data, export_onnx(root / "student", TRIAL, data, int8=True, max_length=32)


def test_int8_metrics_are_those_of_its_own_logits(exported):
    folder, data, files = exported
    split, quantized, full = data.splits["dev"], make_session(folder / INT8), make_session(folder / ONNX)
    logits, full_logits = np.empty((2, len(split), 2), np.float32)
    for rows in evaluation_batches(split.lengths, 64):
        batch = collate(split, rows, data.pad_id)
        logits[rows], full_logits[rows] = session_logits(quantized, batch), session_logits(full, batch)
    assert files.files[-1].metrics == {"dev/mcc": data.task.score(split.labels, logits)["mcc"]}
    assert np.abs(full_logits - logits).max() > 0


def test_int8_stores_most_weights_as_bytes(exported):
    folder, _, _ = exported
    sizes = Counter()
    for entry in onnx.load(folder / INT8).graph.initializer:
        sizes[entry.data_type] += int(np.prod(entry.dims))
    num_bytes = sizes[onnx.TensorProto.INT8] + sizes[onnx.TensorProto.UINT8]
    assert num_bytes > (60 + 64 + 2) * 32 + 4 * 32 * 32 + 2 * 32 * 48  # embeddings, attention, feed-forward
    assert sizes[onnx.TensorProto.FLOAT] < num_bytes / 10


def test_models_name_their_opset_and_nothing_of_this_machine(exported):
    folder, _, files = exported
    model = onnx.load(folder / ONNX)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [files.opset]
    content = (folder / ONNX).read_bytes()
    for text in (b"site-packages", b"transformers/", str(Path.home()).encode(), str(folder.parent).encode()):
        assert text not in content


def test_other_logits_are_refused(exported):
    folder, data, _ = exported
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    compare_logits(model, folder / ONNX, data)
    with torch.no_grad():
        model.classifier.bias[0] += 3 * TOLERANCE
    with pytest.raises(ExportError, match="logits differ"):
        compare_logits(model, folder / ONNX, data)


@pytest.fixture(scope="module")
def sample_home(tmp_path_factory) -> Path:
    """Return a folder with GLUE data and a sweep: two students on the front, one beside it, and their tokens."""
    home = tmp_path_factory.mktemp("home")
    output, glue = home / "outputs", write_glue(home / "glue", train=16, dev=30)
    dataset = load_dataset(get_task("cola"), glue)
    with store.staging_dir(output / "cache" / "teachers" / "key") as folder:
        tokenizer = write_tokenizer(folder)
    data = tokenize(dataset, tokenizer, "tiny", 32, output / "cache" / "tokens")
    sweep = output / "first"
    sweep.mkdir()
    teacher = {"name": "tiny", "key": "key", "source_key": "tiny", "layers": 4, "metrics": {"dev/mcc": 0.41}}
    about = {"description": dataset.description, "fingerprint": dataset.fingerprint, "max_length": 32}
    about |= {"teacher": teacher, "settings": {"data_dir": "glue"}}
    records.write_sweep(sweep, sweep_record(**about))
    for number, (id, layers, mcc) in enumerate(
        [("aaaa1111", 1, 0.3), ("bbbb2222", 2, 0.35), ("cccc3333", 2, 0.2)]
    ):
        model = make_classifier(layers=layers, seed=number)
        params = Trial.model_validate({"regime": "kd", "student_layers": layers}).params()
        metrics = score(Encoder(model), data) | {"dev/mcc": mcc, "student/params": model.num_parameters()}
        trial = TrialRecord(id, number, params, [2, 4][-layers:], "finished", metrics)
        records.write_trial(sweep, trial, model.save_pretrained)
    return home


@pytest.fixture
def output(sample_home, tmp_path, monkeypatch) -> Path:
    """Return a copy of the sample sweep's output folder, in the working folder."""
    shutil.copytree(sample_home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def onnx_folder(sample_home, command_line, tmp_path_factory) -> Path:
    """Return the small student's folder as `--onnx` exports it."""
    to = tmp_path_factory.mktemp("onnx")
    flags = ("--output", sample_home / "outputs", "--to", to, "--pick", "aaaa1111", "--onnx")
    assert invoke(command_line("export"), "--task", "cola", *flags).exit_code == 0
    return to / SMALL_EXPORT


@pytest.mark.slow
def test_int8_at_the_command_line(output, tmp_path, command):
    """In a process of its own, whose stderr also has what native code prints."""
    done = command("export", "--task", "cola", "--output", output, "--int8", "--to", "here", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    to = tmp_path / "here"
    assert sorted(path.name for path in to.iterdir()) == [SMALL_EXPORT, LARGE_EXPORT]
    for name, recorded in ((SMALL_EXPORT, "0.3000"), (LARGE_EXPORT, "0.3500")):
        assert recorded in done.stdout
        assert_described(to / name, (WEIGHTS, ONNX, INT8), done.stdout)


def assert_described(folder: Path, files: tuple[str, ...], printed: str) -> None:
    """Check that ikd.json, model card and the printed table agree about a student's files."""
    assert is_whole_export(folder)
    assert set(files) <= set(file_contents(folder))
    facts = json.loads((folder / "ikd.json").read_text())["onnx"]
    card = (folder / "README.md").read_text()
    for form, file in zip(facts["forms"], files, strict=True):
        rows = printed.splitlines()
        row = next(row for row in rows if folder.name[-8:] in row and f" {Path(file).name} " in row)
        assert f"{form['metrics']['dev/mcc']:.4f}" in row
        assert f"{form['size_mb']:.1f}" in row
        assert f"| {file} | {form['kind']} | {form['metrics']['dev/mcc']:.4f} |" in card
    assert all(sentence in card for sentence in facts["how"])
    assert "Opset 18" in card
    classify = pipeline("text-classification", str(folder), device="cpu")
    assert classify("w1 w2")[0]["label"] in ("acceptable", "unacceptable")


def test_int8_is_described_in_table_and_card(output, tmp_path, export):
    result = export(output, "--pick", "aaaa1111", "--int8")
    assert "0.3000" in result.stdout
    folder = tmp_path / "exports" / SMALL_EXPORT
    assert_described(folder, (WEIGHTS, ONNX, INT8), result.stdout)
    code, names = result.stdout.partition("Load one:\n")[2], {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    logits = make_session(folder / INT8).run(["logits"], names["inputs"])[0]
    assert printed.getvalue() == f"{logits}\n", "what was asked for"


def test_the_example_of_the_card_runs(onnx_folder):
    card = (onnx_folder / "README.md").read_text()
    code = card.split("## ONNX")[1].split("```python\n")[1].split("```")[0]
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code.replace("PATH/OF/THIS/FOLDER", str(onnx_folder)), names)
    model = AutoModelForSequenceClassification.from_pretrained(onnx_folder)
    with torch.inference_mode():
        tokens = AutoTokenizer.from_pretrained(onnx_folder)("A sentence.", return_tensors="pt")
        expected = model(**tokens).logits.numpy()
    logits = names["session"].run(["logits"], names["inputs"])[0]
    assert printed.getvalue() == f"{logits}\n"
    assert np.allclose(logits, expected, atol=TOLERANCE)
    assert not (onnx_folder / INT8).exists()


def test_a_student_with_other_logits_is_left_out(output, tmp_path, export):
    trial = records.trial_folder(output / "first", "aaaa1111")
    weights = load_file(trial / "student" / WEIGHTS)
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], float("nan"))
    save_file(weights, trial / "student" / WEIGHTS, {"format": "pt"})
    shutil.copytree(trial, tmp_path / "again")
    shutil.rmtree(trial)
    (tmp_path / "again" / store.MANIFEST).unlink()
    store.publish(tmp_path / "again", trial)  # as its trial would have left it
    result = export(output, "--onnx", status=1)
    to = tmp_path / "exports"
    assert "aaaa1111: not exported: its ONNX model is not what PyTorch's is" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in to.iterdir()] == [LARGE_EXPORT]
    assert is_whole_export(to / LARGE_EXPORT)


def test_force_replaces_with_and_without_onnx(output, tmp_path, export):
    to, flags = tmp_path / "exports", ("--pick", "aaaa1111")
    export(output, *flags)
    before = file_contents(to)
    assert "--force" in usage_error(export(output, *flags, "--onnx", status=2))
    assert file_contents(to) == before
    export(output, *flags, "--onnx", "--force")
    assert (to / SMALL_EXPORT / ONNX).exists()
    export(output, *flags, "--force")
    assert not (to / SMALL_EXPORT / ONNX).exists()


def test_dev_data_is_read_again_if_its_tokens_are_gone(output, onnx_folder, tmp_path, export):
    flags = ("--pick", "aaaa1111", "--onnx")
    shutil.rmtree(output / "cache" / "tokens")
    export(output, *flags, to="again")
    assert not (output / "cache" / "tokens").exists()
    first, again = (
        json.loads((folder / "ikd.json").read_text())["onnx"]["forms"]
        for folder in (onnx_folder, tmp_path / "again" / SMALL_EXPORT)
    )
    assert [form["metrics"] for form in first] == [form["metrics"] for form in again]
    dev = tmp_path / "glue" / "CoLA" / "dev.tsv"
    dev.write_text(dev.read_text() + "x\t1\t\tw1 w2\n")
    for problem in ("has changed", "cannot be read again"):
        assert problem in usage_error(export(output, *flags, to="third", status=2))
        assert not (tmp_path / "third").exists()
        shutil.rmtree(tmp_path / "glue", ignore_errors=True)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_is_named_before_anything_is_written(output, tmp_path, export, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    before = file_contents(tmp_path)
    error = usage_error(export(output, "--int8", status=2))
    assert error.startswith("error: --int8 needs onnx, onnxscript, onnxruntime")
    assert 'pip install -e "' in error
    assert '[onnx]"' in error
    assert file_contents(tmp_path) == before
    export(output)


def test_logits_in_other_units_may_differ_by_as_much_more(tmp_path):
    """A float32 number near 5,000 has steps of 0.0005."""
    data, folder = make_data(tmp_path, "stsb"), tmp_path / "student"
    data = replace(data, task=replace(data.task, score_range=(0.0, 5000.0)))
    model = make_classifier(layers=1, labels=1)
    with torch.no_grad():
        model.classifier.weight.mul_(1000)
        model.classifier.bias.fill_(4000)
    model.save_pretrained(folder)
    exported = export_onnx(folder, TRIAL, data, int8=False, max_length=32)
    assert TOLERANCE < exported.largest_difference < 1000 * TOLERANCE
