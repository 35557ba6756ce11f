"""The loop in two processes against one."""

from __future__ import annotations

import pytest
import torch
import workers
from tiny import changed, make_encoder, state

from ikd_ray.config import Trial
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.targets import Targets

COMMON = {"student_layers": 2, "batch_size": 8, "epochs": 1, "epochs_per_layer": 1, "learning_rate": 1e-3}
JOBS = {
    "exact": {"dropout": 0.0, "trial": COMMON | {"regime": "id", "embeddings": "train"}},
    "staged": {"dropout": 0.0, "trial": COMMON | {"regime": "pid", "batch_size": 7}},
    "dropping": {"dropout": 0.1, "trial": COMMON | {"regime": "sid"}},
    "kl": {"dropout": 0.0, "trial": COMMON | {"regime": "pid", "internal_losses": "kl"}},
    "cos": {"dropout": 0.0, "trial": COMMON | {"regime": "sid", "internal_losses": "cos"}},
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, data, targets):
    out = tmp_path_factory.mktemp("ranks")
    workers.run(workers.distil, data.folder, targets.folder, JOBS, out)
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(2)] for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_are_one(ranks, data, targets, name):
    first, second = ranks[name]
    assert (first.get("error"), second.get("error")) == (None, None)
    assert not changed(first["state"], second["state"])
    job = JOBS[name]
    course = Distillation(
        Trial(**job["trial"]), data, Targets(targets.folder, data, make_encoder(dropout=job["dropout"]))
    )
    alone = [epoch.metrics for epoch in course]
    assert len(alone) == len(first["metrics"]) == len(second["metrics"])
    tolerance = 0.02 if job["dropout"] else 1e-4
    for mine, *both in zip(alone, first["metrics"], second["metrics"], strict=True):
        losses = {key: value for key, value in mine.items() if key.startswith("train/")}
        for theirs in both:
            trained = {key: value for key, value in theirs.items() if key.startswith("train/")}
            assert trained == pytest.approx(losses, rel=tolerance)
        assert any(key.startswith("dev/") for key in both[0])
        assert not any(key.startswith("dev/") for key in both[1])
    if not job["dropout"]:
        for key, value in state(course.student).items():
            # Adam divides by the gradient's size, so a rounding error can move a weight that hardly matters.
            assert (value - first["state"][key]).abs().mean() < 1e-4, key
