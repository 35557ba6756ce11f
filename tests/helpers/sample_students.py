"""Tiny students, and the files of a sweep of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from ikd_ray import records
from ikd_ray.config import Trial
from ikd_ray.distill.encoder import Encoder
from ikd_ray.records import TrialRecord
from ikd_ray.storage import store
from tests.helpers.sample_records import sweep_record

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat", "##s", "."]
SENTENCE = "The cats sat on a mat."
# Exports of the Pareto front of `make_student_sweep`.
SMALL_EXPORT, LARGE_EXPORT = "cola-kd-1L-aaaa1111", "cola-pid-2L-bbbb2222"


def make_student(layers: int, labels: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(layers)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
    )
    # Students in a sweep are wrapped, with the project's own attention.
    return Encoder(BertForSequenceClassification(config).eval()).model


def write_teacher_tokenizer(teacher: Path) -> None:
    """Write the folder of a teacher with a tokenizer and without weights."""
    with store.staging_dir(teacher) as folder:
        vocabulary = folder / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS))
        BertTokenizer(str(vocabulary)).save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"not for students")
        (folder / "teacher.json").write_text("{}")


def make_student_sweep(
    output: Path, name: str = "first", task: str = "cola", generated: bool = False, **changes
) -> Path:
    """Write a teacher and a sweep of four trials, two of which are on the front and one of which failed."""
    teacher = output / "cache" / "teachers" / "key"
    if not teacher.exists():
        write_teacher_tokenizer(teacher)
    sweep = output / name
    sweep.mkdir(parents=True)
    about = {"source": "embedded" if generated else "folder", "generated": generated, "trials": 4}
    records.write_sweep(sweep, sweep_record(name, task, **(about | changes)))
    labels = 1 if task == "stsb" else 2
    for number, (trial_id, regime, layers, mcc) in enumerate(
        [("aaaa1111", "kd", 1, 0.1 + 0.2), ("bbbb2222", "pid", 2, 0.35), ("cccc3333", "sid", 2, 0.2)]
    ):
        model = make_student(layers, labels)
        params = Trial.model_validate({"regime": regime, "student_layers": layers, "lambda": 0.3}).params()
        metrics = {"dev/mcc": mcc, "student/params": model.num_parameters(), "student/size_mb": 0.1}
        trial = TrialRecord(trial_id, number, params, [3, 6][-layers:], "finished", metrics, duration_s=2.5)
        records.write_trial(sweep, trial, model.save_pretrained)
    failed = TrialRecord("dddd4444", 3, {"regime": "id"}, [6], "failed", reason="out of memory")
    records.write_trial(sweep, failed)
    return sweep


def file_contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file by its path in the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_whole_export(folder: Path) -> bool:
    """Return whether an exported folder has the files whose checksums its ikd.json lists, and no others."""
    checksums = json.loads((folder / "ikd.json").read_text())["sha256"]
    found = {name: hashlib.sha256(content).hexdigest() for name, content in file_contents(folder).items()}
    return {name: checksum for name, checksum in found.items() if name != "ikd.json"} == checksums
