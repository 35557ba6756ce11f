"""Write the folder of a finished sweep: a tiny teacher, tokens, students with weights, records and a study."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from ikd_ray import records
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, open_analysis
from ikd_ray.config import make_trial
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.student import build_student, layer_map, size_metrics
from ikd_ray.records import STUDY_FILE, TrialRecord
from ikd_ray.report.report import make_report
from ikd_ray.storage import store
from ikd_ray.storage.remote import SharedStorage
from tests.helpers.sample_records import sweep_record
from tests.helpers.tiny_models import make_classifier, make_dataset, write_tokenizer

LAYERS, MAX_LENGTH = 4, 32
TEACHER = {"name": "mini", "key": "key", "source_key": "source", "layers": LAYERS}
SEARCHED = ("kd", "id", "pid", "sid")
SPACE = {
    "regime": optuna.distributions.CategoricalDistribution(SEARCHED),
    "student_layers": optuna.distributions.IntDistribution(1, LAYERS - 1),
    "temperature": optuna.distributions.FloatDistribution(1, 10, log=True),
    "lambda": optuna.distributions.FloatDistribution(0.01, 1, log=True),
}
INTERNAL = {"internal_weight": optuna.distributions.FloatDistribution(0.1, 10, log=True)}


def make_sweep(
    output: Path,
    trials: int = 6,
    task: str = "cola",
    name: str = "first",
    weights: bool = True,
    generated: bool = False,
    **changes: Any,
) -> Path:
    """Write a sweep over `SPACE`, the same in every call.

    Args:
        output: the output folder.
        trials: number of finished trials.
        task: a GLUE task.
        name: of the sweep.
        weights: whether teacher, tokens and students are written; without them there are records and a study.
        generated: whether the record says that the data is the embedded corpus.
        changes: further fields of the sweep's record.
    """
    dataset = make_dataset(task)
    teacher_folder = output / "cache" / "teachers" / "key"
    if weights:
        teacher = make_classifier("bert", LAYERS, dataset.task.num_labels)
        tokenizer = write_tokenizer(output.parent / "tokenizer")
        tokenize(dataset, tokenizer, "source", MAX_LENGTH, output / "cache" / "tokens")
        if not teacher_folder.exists():
            with store.staging_dir(teacher_folder) as folder:
                teacher.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
    metric = f"dev/{dataset.task.metric}"
    fields = {
        "trials": trials,
        "description": "made up",
        "fingerprint": dataset.fingerprint,
        "generated": generated,
        "max_length": MAX_LENGTH,
        "teacher": TEACHER | {"metrics": {metric: 0.41}},
        "objectives": {metric: "max", "student/params": "min"},
    }
    sweep = output / name
    sweep.mkdir(parents=True)
    records.write_sweep(sweep, sweep_record(name, task, **(fields | changes)))
    rng = np.random.default_rng(0)
    make_student = cached_students(dataset.task.num_labels)
    study = optuna.create_study(
        study_name=sweep.name, storage=f"sqlite:///{sweep / STUDY_FILE}", directions=["maximize", "minimize"]
    )
    for number in range(trials):
        record, searched = _trial(number, rng, metric)
        student = make_student(len(record.layer_map))
        if weights:
            student = copy.deepcopy(student)
            _perturb(student, number)
        record.metrics.update(size_metrics(student))
        records.write_trial(sweep, record, student.model.save_pretrained if weights else None)
        space = SPACE | (INTERNAL if "internal_weight" in searched else {})
        values = [record.metrics[metric], record.metrics["student/params"]]
        study.add_trial(optuna.trial.create_trial(params=searched, distributions=space, values=values))
    return sweep


def open_sweep(
    sweep: Path, notify: Callable[[str], None] = lambda _: None
) -> tuple[SweepAnalysis, ModelLoader]:
    """Open the analysis and the models of a sweep on disk."""
    analysis = open_analysis(sweep)
    return analysis, ModelLoader(SharedStorage(str(sweep.parent)), sweep, analysis.sweep, notify)


def report_on(sweep: Path, *args, **options) -> dict[str, Path]:
    """Make the report on a sweep, and return its files by name."""
    files = make_report(SharedStorage(str(sweep.parent)), sweep, *args, **options)
    return {file.name: file for file in files}


def cached_students(num_labels: int) -> Callable[[int], Encoder]:
    """Return a function that builds an untrained student of some layers, once for each number of layers."""
    encoder = Encoder(make_classifier("bert", LAYERS, num_labels))
    return functools.cache(lambda layers: build_student(encoder, layers, "first"))


def _perturb(student: Encoder, number: int) -> None:
    """Change all parameters, so that no two students are the same."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _trial(number: int, rng: np.random.Generator, metric: str) -> tuple[TrialRecord, dict[str, Any]]:
    """Return a finished trial whose metrics differ by regime and depth, and its searched parameters."""
    regime, layers = SEARCHED[number % len(SEARCHED)], 1 + number % (LAYERS - 1)
    temperature, weight = (float(math.exp(rng.uniform(0, math.log(10)))) for _ in range(2))
    searched = {
        "regime": regime,
        "student_layers": layers,
        "temperature": temperature,
        "lambda": 0.1 + 0.01 * weight,
    }
    if regime != "kd":
        searched["internal_weight"] = weight
    params = make_trial(searched | {"seed": 7, "epochs": 2}).params()
    history = []
    for place, stage in enumerate(REGIMES[regime](make_trial(params)), start=1):
        for _ in range(stage.epochs):
            is_reused = not history and number % 3 == 2
            history.append(_epoch(len(history), place, stage.layers, layers, is_reused))
    for epoch, metrics in enumerate(history, start=1):
        metrics[metric] = 0.1 * layers * epoch / len(history)
        metrics["dev/rmse" if metric == "dev/pearson" else "dev/nll"] = 0.8 - 0.1 * epoch / len(history)
    value = 0.1 * layers + 0.02 * SEARCHED.index(regime) + 0.01 * float(rng.random())
    last = {
        metric: value,
        "dev/attention_kl": 2.0 / (number + 1),
        "dev/teacher_agreement": 0.8 + 0.01 * (number % 9),
    }
    times = {
        "time/spent_s": 10.0 * len(history) + 3.0,
        "time/saved_s": sum(e["time/reused_s"] for e in history),
    }
    metrics = history[-1] | last | times | {"student/latency_ms": 5.0 * layers}
    fields = (f"t{number:03}", number, params, list(layer_map(layers, LAYERS)), "finished", metrics, history)
    return TrialRecord(*fields, duration_s=60.0), searched


def _epoch(epoch: int, stage: int, active: tuple[int, ...], layers: int, reused: bool) -> dict[str, float]:
    found = {"stage": float(stage), "train/loss": 1.0 / (epoch + 1)}
    found |= {"time/epoch_s": 0.0 if reused else 9.0, "time/reused_s": 9.0 if reused else 0.0}
    for layer in range(1, layers + 1):
        value = layer / (1 + epoch)
        found |= {f"dev/layer_{layer}/kl": value, f"dev/layer_{layer}/cos": value / 10}
        if layer in active:
            found |= {f"train/layer_{layer}/kl": 1.1 * value, f"train/layer_{layer}/cos": value / 9}
    return found
