"""Training in two processes equals training in one."""

from __future__ import annotations

import pytest

from ikd_ray.config import Trial
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.targets import Targets
from tests.helpers.distributed_jobs import JOBS, targets_for
from tests.helpers.tiny_models import changed_tensors, copy_state, make_encoder


def training(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("train/")}


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_as_one(two_processes, data, name):
    """Both have the same weights, bit for bit, and the losses of one process."""
    job = two_processes.jobs[name]
    assert [rank.get("error") for rank in job.ranks] == [None, None]
    first, second = job.ranks
    assert not changed_tensors(first["state"], second["state"])
    targets = Targets(two_processes.folder, data, make_encoder(dropout=job.dropout))
    trial = Trial(**job.trial)
    distillation = Distillation(trial, data, **targets_for(trial, targets, data))
    alone = [epoch.metrics for epoch in distillation]
    assert len(alone) == len(first["metrics"]) == len(second["metrics"])
    tolerance = 0.02 if job.dropout else 1e-4
    for expected, mine, theirs in zip(alone, first["metrics"], second["metrics"], strict=True):
        assert training(mine) == training(theirs)
        assert training(mine) == pytest.approx(training(expected), rel=tolerance)
        assert any(key.startswith("dev/") for key in mine)
        assert not any(key.startswith("dev/") for key in theirs), "only rank 0 evaluates"
    if not job.dropout:
        for key, value in copy_state(distillation.student).items():
            if not key.endswith("key.bias"):  # softmax does not depend on it: its gradient is rounding error
                assert (value - first["state"][key]).abs().mean() < 1e-4, key
