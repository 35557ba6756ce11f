"""Every family of encoders through the command line: teacher, regimes, export and ONNX; numbers recomputed by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ikd_ray.distill.families import FAMILIES
from ikd_ray.records import read_sweep, teacher_folder
from tests.helpers.numpy_losses import attention_kl_one
from tests.helpers.run_command import write_glue
from tests.helpers.tiny_models import write_teacher
from tests.sweep.conftest import Swept, run_to_its_end

SPACE = """\
sampler: grid
params:
  regime: {choice: [kd, id, pid, sid]}
  student_layers: 2
  epochs: 1
  epochs_per_layer: 1
  learning_rate: 1.0e-3
teacher: {epochs: 2, learning_rate: 1.0e-3}
"""


def attention_and_logits(folder: Path, text: str):
    """Return a model's eager attention, (heads, L, L) of each layer, and its logits, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True)
    with torch.inference_mode():
        output = model(**inputs, output_attentions=True)
    return [layer[0].double().numpy() for layer in output.attentions], output.logits[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_from_teacher_to_export(environment, call, tmp_path, family):
    write_teacher(tmp_path / "teacher", 4, family)
    write_glue(tmp_path / "glue", train=48, dev=16)
    (tmp_path / "space.yaml").write_text(SPACE)
    flags = ["--task", "cola", "--teacher", "teacher", "--data-dir", "glue", "--space", "space.yaml"]
    swept = run_to_its_end(Swept(tmp_path, "all", []), environment, [*flags, "--name", "all"])
    [ended] = swept.exits
    assert (ended.status, ended.errors) == (0, ""), ended.text

    with (tmp_path / "glue" / "CoLA" / "dev.tsv").open() as file:
        labels, texts = zip(*((int(row[1]), row[3]) for row in csv.reader(file, delimiter="\t")), strict=True)
    sweep = read_sweep(swept.folder)
    assert sweep.teacher["model_type"] == family
    teacher = teacher_folder(swept.folder, sweep)
    taught = [attention_and_logits(teacher, text)[0] for text in texts]
    assert {trial.params["regime"] for trial in swept.trials} == {"kd", "id", "pid", "sid"}
    for trial in swept.trials:
        onnx = ["--int8"] if trial.params["regime"] == "id" else []
        call("export", "--task", "cola", "--pick", trial.id, "--to", trial.id, *onnx, cwd=tmp_path)
        [folder] = (tmp_path / trial.id).iterdir()
        found = [attention_and_logits(folder, text) for text in texts]
        exact, stored = (
            np.mean(
                [
                    attention_kl_one(
                        of_student[layer], of_teacher[source - 1].astype(kept), len(of_student[layer][0])
                    )
                    for (of_student, _), of_teacher in zip(found, taught, strict=True)
                    for layer, source in enumerate(trial.layer_map)
                ]
            )
            for kept in (np.float64, np.float16)
        )
        assert trial.metrics["dev/attention_kl"] == pytest.approx(stored, abs=1e-5)
        assert trial.metrics["dev/attention_kl"] == pytest.approx(exact, abs=5e-5), "targets have 16 bits"
        answers = [int(logits.argmax()) for _, logits in found]
        assert trial.metrics["dev/mcc"] == pytest.approx(matthews_corrcoef(labels, answers), abs=1e-9)
        assert (folder / "onnx" / "model.onnx").is_file() == bool(onnx)
