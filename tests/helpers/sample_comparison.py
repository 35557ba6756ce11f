"""Write the folder of a sweep that compares methods over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ikd_ray import records
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.config import make_trial
from ikd_ray.data.task_file import find_task
from ikd_ray.distill.student import layer_map, size_metrics
from ikd_ray.records import TrialRecord
from tests.helpers.sample_sweep import LAYERS, cached_students, make_sweep

METHODS: dict[str, dict[str, Any]] = {
    "Hard labels": {"regime": "hard"},
    "KD": {"regime": "kd"},
    "KD + attention KL": {"regime": "id", "internal_losses": "kl"},
    "KD + CLS cosine": {"regime": "id", "internal_losses": "cos"},
    "ID": {"regime": "id"},
    "PID": {"regime": "pid"},
    "SID": {"regime": "sid"},
    "SID, soft labels always": {"regime": "sid", "soft_labels": "always"},
    "KD by an assistant": {"regime": "kd", "assistant_layers": 3},
}


def make_comparison(
    output: Path,
    methods: Mapping[str, Mapping[str, Any]] = METHODS,
    seeds: int = 5,
    varied: Sequence[Mapping[str, Any]] = ({"student_layers": 2},),
    retrained: int = 0,
    task: str = "cola",
    weights: bool = False,
    **changes: Any,
) -> Path:
    """Write a sweep of every method with each of `varied` and each seed, then new seeds of each method's last one.

    Args:
        output: the output folder.
        methods: parameters of each method.
        seeds: number of seeds in the search.
        varied: parameters that each method is searched over.
        retrained: number of new seeds.
        task: a GLUE task.
        weights: whether the students have weights.
        changes: further fields of the sweep's record.
    """
    sweep = make_sweep(output, 0, task, weights=weights, **changes)
    make_student = cached_students(find_task(task).num_labels)
    rng = np.random.default_rng(3)
    specs = [(name, change, seed, False) for seed in range(seeds) for change in varied for name in methods]
    specs += [(name, varied[-1], 100 + seed, True) for seed in range(retrained) for name in methods]
    noise = {seed: 0.01 * float(rng.standard_normal()) for *_, seed, _ in specs}
    for number, (name, change, seed, is_retrained) in enumerate(specs):
        params = make_trial({**methods[name], **change, "seed": seed}).params()
        layers = params["student_layers"]
        student = make_student(layers)
        rank = list(methods).index(name)
        value = 0.1 * layers + 0.006 * rank + noise[seed] + 0.004 * float(rng.standard_normal())
        value += 0.03 * float(np.log(params["train_fraction"]))
        metrics = {f"dev/{metric}": value + 0.1 * i for i, metric in enumerate(find_task(task).metrics)}
        metrics |= {
            "dev/attention_kl": (2.2 - 0.25 * rank) * (1 + 0.02 * float(rng.standard_normal())) / layers**0.3,
            "dev/teacher_agreement": 0.8 + 0.01 * rank + 0.003 * float(rng.standard_normal()),
            "student/latency_ms": 5.0 * layers,
            **size_metrics(student),
        }
        record = TrialRecord(
            f"t{number:03}", number, params, list(layer_map(layers, LAYERS)), "finished", metrics,
            [{"stage": 1.0, "time/epoch_s": 9.0, "dev/layer_1/kl": 1.0}], duration_s=60.0, method=name,
            retrained=is_retrained,
        )  # fmt: skip
        records.write_trial(sweep, record, student.model.save_pretrained if weights else None)
    return sweep


def metric_by_seed(analysis: SweepAnalysis, method: str, metric: str, retrained: bool) -> dict[int, float]:
    """Return a method's metric by seed, of its retrained trials or of the others."""
    trials = [t for t in analysis.finished if t.method == method and t.retrained == retrained]
    return {t.params["seed"]: t.metrics[metric] for t in trials}


def mean_and_interval(values, form: str = ".3f") -> str:
    """Return the mean and half its 95% interval, by scipy's t-test."""
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{np.mean(values):{form}} ± {(high - low) / 2:.3f}"


def paired_difference(analysis: SweepAnalysis, one: str, other: str, counts) -> str:
    """Return the mean difference of two methods' trials and half its 95% interval, by scipy's paired t-test."""
    samples = []
    for name in (one, other):
        trials = [t for t in analysis.finished if t.method == name and counts(t)]
        samples.append([t.metrics["dev/mcc"] for t in sorted(trials, key=lambda t: t.params["seed"])])
    low, high = stats.ttest_rel(*samples).confidence_interval(0.95)
    return f"{(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}"
