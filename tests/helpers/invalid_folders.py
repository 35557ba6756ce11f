"""Folders of teachers and records of sweeps that a command line must refuse, and words of its error message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.invalid_inputs import MakeInput, file, named_pipe
from tests.helpers.mlflow_sweeps import sweep_record, trial_record
from tests.helpers.tiny_models import write_teacher

MARKER = "code-of-a-model-was-run"


def teacher(change: Callable[[Path], Any] | None = None, **config: Any) -> MakeInput:
    """Write a teacher's folder, set entries of its config.json, and change it."""

    def make(here: Path) -> Path:
        folder = write_teacher(here / "teacher")
        entries = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(entries))
        if change:
            change(folder)
        return folder

    return make


def change_weights(change: Callable[[str, Tensor], Tensor | None]) -> Callable[[Path], None]:
    """Return a function that replaces tensors by name, or drops those of which `change` makes None."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
        save_file({n: tensor for n, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})

    return apply


def write_model_code(folder: Path) -> None:
    """Write Python files that leave a marker when they run."""
    for name in ("configuration_x", "modeling_x", "tokenization_x"):
        (folder / f"{name}.py").write_text(f"open({str(folder.parent / MARKER)!r}, 'w')\nclass X: pass\n")


AUTO = {"AutoConfig": "configuration_x.X", "AutoModelForSequenceClassification": "modeling_x.X"}


def remote_tokenizer(folder: Path) -> None:
    write_model_code(folder)
    path = folder / "tokenizer_config.json"
    entries = json.loads(path.read_text()) | {
        "tokenizer_class": "X",
        "auto_map": {"AutoTokenizer": ["tokenization_x.X", None]},
    }
    path.write_text(json.dumps(entries))


def replace_by_pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def shards(name: str | list[str]) -> Callable[[Path], None]:
    """Name another file for a tensor in an index, in place of `model.safetensors`."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.bin")
        index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


QUERY = "layer.1.attention.self.query.weight"
BOMB = (2**60).to_bytes(8, "little") + b"{}"

TEACHERS: dict[str, tuple[MakeInput | str, tuple[str, ...]]] = {  # more are in tests/distill/test_teacher.py
    "neither folder nor on the hub": ("no/such-teacher", ("no/such-teacher", "no folder of that name")),
    "empty name": ("", ("--teacher",)),
    "a file": (file(""), ("file",)),
    "pickled weights": (
        teacher(lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")),
        ("only safetensors are read",),
    ),
    "config not JSON": (teacher(file("{", "config.json")), ("config.json", "JSON")),
    "config a list": (teacher(file("[]", "config.json")), ("config.json", "a list instead of a mapping")),
    "config deep": (teacher(file("[" * 100_000, "config.json")), ("config.json",)),
    "config binary": (teacher(file(b"\xff\0", "config.json")), ("config.json",)),
    "config a pipe": (teacher(replace_by_pipe("config.json")), ("config.json",)),
    "config too large": (teacher(file("{}" + " " * 2**21, "config.json")), ("config.json", "1 MiB")),
    "code of its own": (teacher(write_model_code, auto_map=AUTO), ("auto_map", "code")),
    "code of its own, of a type unknown": (
        teacher(write_model_code, model_type="x", auto_map=AUTO),
        ("'x'", "supported: bert"),
    ),
    "a tokenizer of its own": (teacher(remote_tokenizer), ("tokenizer", "code")),
    "no type": (teacher(model_type=None), ("supported: bert",)),
    "layers that share weights": (teacher(model_type="albert"), ("'albert'", "the same weights")),
    "a decoder": (teacher(is_decoder=True), ("is_decoder", "write false")),
    "a layer too many": (teacher(num_hidden_layers=3), ("layer.3.", "no layer")),
    "10^9 layers": (teacher(num_hidden_layers=10**9), ("num_hidden_layers", "1000000000")),
    "no layers": (teacher(num_hidden_layers=0), ("num_hidden_layers",)),
    "10^9 labels": (teacher(num_labels=10**9), ("num_labels",)),
    "hidden size a word": (teacher(hidden_size="wide"), ("hidden_size",)),
    "heads that do not divide it": (teacher(num_attention_heads=5), ("5",)),
    "architectures a number": (teacher(architectures=7), ("architectures",)),
    "truncated weights": (
        teacher(lambda folder: os.truncate(folder / "model.safetensors", 1000)),
        ("model.safetensors", "damaged"),
    ),
    "weights of 2^60 bytes": (teacher(file(BOMB, "model.safetensors")), ("damaged",)),
    "weights empty": (teacher(file(b"", "model.safetensors")), ("damaged",)),
    "weights a pipe": (
        teacher(replace_by_pipe("model.safetensors")),
        ("model.safetensors", "not a regular file"),
    ),
    "a layer without weights": (
        teacher(change_weights(lambda name, tensor: None if "layer.2." in name else tensor)),
        ("layer.2.", "lack"),
    ),
    "weights of another size": (teacher(intermediate_size=64), ("intermediate",)),
    "absurd sizes": (teacher(intermediate_size=2**20), ("intermediate", "shape")),
    "layers a word": (teacher(num_hidden_layers="4"), ("num_hidden_layers '4'",)),
    "layers null": (teacher(num_hidden_layers=None), ("num_hidden_layers None",)),
    "layers a list": (teacher(num_hidden_layers=[4]), ("num_hidden_layers [4]",)),
    "positions after a padding that is null": (
        teacher(model_type="roberta", pad_token_id=None),
        ("pad_token_id", "the tokenizer's"),
    ),
    "a kernel from the hub": (
        teacher(attn_implementation="kernels-community/flash-attn"),
        ("attn_implementation", "kernels-community/flash-attn"),
    ),
    "labels 5 and 6": (
        teacher(architectures=["BertForSequenceClassification"], id2label={"5": "no", "6": "yes"}),
        ("id2label", "write 0 to 1"),
    ),
    "label names by name": (
        teacher(architectures=["BertForSequenceClassification"], id2label={"no": "0", "yes": "1"}),
        ("config.json: id2label", "write it as in"),
    ),
    "label names a list": (
        teacher(architectures=["BertForSequenceClassification"], id2label=["no", "yes"]),
        ("config.json: id2label", "write it as in"),
    ),
    "a label name null": (
        teacher(architectures=["BertForSequenceClassification"], id2label={"0": "no", "1": None}),
        ("config.json: id2label", "write it as in"),
    ),
    "shards outside the folder": (teacher(shards("../outside.bin")), ("index.json", "'../outside.bin'")),
    "shards that are pickled": (teacher(shards("model-1.bin")), ("index.json", "'model-1.bin'")),
    "shards that are lists": (teacher(shards(["model-1.safetensors"])), ("index.json", "['model-1")),
    "shards that are missing": (teacher(shards("model-1.safetensors")), ("model-1.safetensors",)),
    "weights that are no numbers": (
        teacher(change_weights(lambda name, tensor: tensor / 0 if QUERY in name else tensor)),
        (QUERY, "finite"),
    ),
}


SETTINGS = {"task": "cola", "data_dir": "x", "seed": 0, "latency_ms": {}, "id": "0" * 32, "run_id": "0"}
SWEEP: dict[str, Any] = asdict(sweep_record("", name="begun", trials=8)) | {"settings": SETTINGS}
TRIAL: dict[str, Any] = asdict(trial_record(0))


def sweep(trial: dict[str, Any] | None = None, **changes: Any) -> MakeInput:
    """Write an output folder with the sweep `begun`, whose record has `changes`, and one trial."""

    def make(here: Path) -> Path:
        begun = here / "outputs" / "begun"
        (begun / "trials" / "t000").mkdir(parents=True)
        (begun / "space.yaml").write_text("params: {student_layers: 2}\n")
        (begun / "sweep.json").write_text(json.dumps(SWEEP | changes))
        (begun / "trials" / "t000" / "trial.json").write_text(json.dumps(TRIAL | (trial or {})))
        return here / "outputs"

    return make


def sweep_file(content: str | bytes | None) -> MakeInput:
    """Write an output folder whose sweep has this record, or, without content, a pipe in its place."""

    def make(here: Path) -> Path:
        output = sweep()(here)
        (output / "begun" / "sweep.json").unlink()
        if content is None:
            named_pipe(output / "begun", "sweep.json")
        else:
            file(content, "sweep.json")(output / "begun")
        return output

    return make


def settings(**changes: Any) -> MakeInput:
    return sweep(settings=SETTINGS | changes)


# Refused by both `run.py --resume begun` and `export.py --name begun`.
RECORDS: dict[str, tuple[MakeInput, tuple[str, ...]]] = {
    "truncated": (sweep_file(json.dumps(SWEEP)[:-40]), ("begun", "unreadable")),
    "empty": (sweep_file(""), ("begun", "unreadable")),
    "binary": (sweep_file(b"\xff\0"), ("begun", "unreadable")),
    "a list": (sweep_file("[]"), ("begun", "unreadable")),
    "deep": (sweep_file("[" * 100_000), ("begun", "unreadable")),
    "a pipe": (sweep_file(None), ("begun", "no s")),
    "nothing in it": (sweep_file("{}"), ("begun", "name")),
    "trials a word": (sweep(trials="many"), ("begun", "trials")),
    "settings a list": (sweep(settings=[]), ("begun", "settings")),
    "teacher a word": (sweep(teacher="x"), ("begun", "teacher")),
    "objectives upwards": (sweep(objectives={"dev/mcc": "up"}), ("begun", "objectives.dev/mcc", "'max'")),
    "objectives to nowhere": (sweep(objectives={"dev/mcc": 1}), ("begun", "objectives")),
}
RESUMES: dict[str, tuple[MakeInput, tuple[str, ...]]] = {
    "task unknown": (settings(task="../x"), ("'../x'", "cola")),
    "task a number": (settings(task=3), ("sweep.json", "task")),
    "data folder a list": (settings(data_dir=["x"]), ("sweep.json", "data_dir")),
    "data folder with a NUL": (settings(data_dir="a\0b"), ("--data-dir",)),
    "data folder gone": (settings(), ("--data-dir", "no such folder")),
    "seed a word": (settings(seed="x"), ("sweep.json", "seed")),
    "id that leaves its folder": (settings(id="../../x"), ("sweep.json", "id")),
    "latencies a list": (settings(latency_ms=[1]), ("sweep.json", "latency_ms")),
    "run a mapping": (settings(run_id={}), ("sweep.json", "run_id")),
    "no fingerprint": (sweep(data={}), ("sweep.json", "fingerprint")),
    "another teacher's key": (sweep(teacher={}), ("sweep.json", "source_key")),
}
EXPORTS: dict[str, tuple[MakeInput, tuple[str, ...]]] = {
    "teacher that leaves the cache": (sweep(teacher={"key": "../../x"}), ("teacher", "'../../x'")),
    "no teacher": (sweep(teacher={}), ("teacher",)),
    "trial that leaves its folder": (sweep(trial={"id": "../../x"}), ("t000", "'../../x'")),
    "regime that leaves its folder": (sweep(trial={"params": {"regime": "../x"}}), ("regime", "'../x'")),
    "metrics a list": (sweep(trial={"metrics": []}), ("trial.json", "metrics")),
    "metric a word": (sweep(trial={"metrics": {"dev/mcc": "x"}}), ("trial.json", "dev/mcc")),
}
