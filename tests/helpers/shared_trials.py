"""Distillations to compare with each other, and the folders of their saved epochs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.stage_training import StageTrainer
from tests.helpers.tiny_models import changed_tensors, copy_state

SMALL = {"student_layers": 2, "batch_size": 24, "learning_rate": 3e-3, "epochs": 2, "epochs_per_layer": 2}
PID = Trial(**SMALL, regime="pid")
TRAIN_EPOCH = StageTrainer.train_epoch
RECOMPUTED = PrefixConfig(memory_gb=0, disk_gb=0)
PREFIXES = {"memory": PrefixConfig(), "disk": PrefixConfig(memory_gb=0), "recomputed": RECOMPUTED}


def with_fields(trial: Trial, **fields) -> Trial:
    return trial.model_copy(update=fields)


def comparable_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that do not depend on which trial trained."""
    counts = ("reused_epochs", "trained_epochs")
    return {name: value for name, value in metrics.items() if "time/" not in name and name not in counts}


def distillation_result(distillation: Distillation, epochs: Iterable[Epoch] | None = None) -> SimpleNamespace:
    """Return what a trial gives: of the epochs that are given, else of all, which are run."""
    epochs = list(distillation if epochs is None else epochs)
    return SimpleNamespace(
        epochs=epochs,
        metrics=[comparable_metrics(epoch.metrics) for epoch in epochs],
        state=copy_state(distillation.student),
        reused=int(epochs[-1].metrics["reused_epochs"]),
        trained=int(epochs[-1].metrics["trained_epochs"]),
        warnings=[warning for epoch in epochs for warning in epoch.warnings],
    )


def assert_same_result(found: SimpleNamespace, expected: SimpleNamespace) -> None:
    """Assert equality bit for bit, with every epoch reported once and in order."""
    assert [epoch.epoch for epoch in found.epochs] == list(range(1, len(expected.epochs) + 1))
    assert [epoch.remaining for epoch in found.epochs] == [epoch.remaining for epoch in expected.epochs]
    assert found.metrics == expected.metrics
    assert not changed_tensors(found.state, expected.state)
    assert found.reused + found.trained == len(found.epochs)


def saved_epoch_folder(folder: Path, stage: str, epoch: int) -> Path:
    """Return the folder of the only state after an epoch of a stage."""
    (found,) = (
        path.parent
        for path in folder.glob(f"[!.]*/{epoch}/epoch.json")
        if json.loads(path.read_text())["about"]["stage"] == stage
    )
    return found
