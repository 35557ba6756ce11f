"""Two processes build targets once, and train what one process does."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest
import torch

from ikd_ray.storage import store
from tests.helpers.distributed_jobs import JOBS, build_and_distill, create
from tests.helpers.processes import run_processes
from tests.helpers.target_files import array_contents, assert_arrays_close, part_inodes
from tests.helpers.tiny_models import changed_tensors, copy_state


def training(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("train/")}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, data):
    """Run two processes that build targets together and then train every job of `JOBS`.

    Returns:
        `out`, the folder of the targets and of the results, and `built`, the steps made by each process.
    """
    out, context = tmp_path_factory.mktemp("processes"), multiprocessing.get_context("spawn")
    barrier, built = context.Barrier(2), context.Array("i", 2)
    run_processes(build_and_distill, data.folder, out, barrier, built)
    return SimpleNamespace(out=out, built=list(built))


def test_two_processes_build_the_targets_once(two_processes, targets):
    assert sorted(steps > 0 for steps in two_processes.built) == [False, True]
    folder = two_processes.out / "targets"
    parts = part_inodes(folder)
    assert set(parts) == {"logits", "cls-2", "cls-4", "attention-2", "attention-4"}
    assert all(store.is_intact(folder / part) for part in parts)
    alone = {name: a for name, a in array_contents(targets.folder).items() if name.split("/")[0] in parts}
    assert_arrays_close(array_contents(folder), alone)


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_as_one(two_processes, data, name):
    """Both have the same weights, bit for bit, and the losses of one process."""
    first, second = (torch.load(two_processes.out / f"{name}-{rank}.pt") for rank in range(2))
    assert (first.get("error"), second.get("error")) == (None, None)
    assert not changed_tensors(first["state"], second["state"])
    distillation = create(name, data, two_processes.out / "targets")
    alone = [epoch.metrics for epoch in distillation]
    assert len(alone) == len(first["metrics"]) == len(second["metrics"])
    tolerance = 0.02 if name == "dropout" else 1e-4
    for expected, mine, theirs in zip(alone, first["metrics"], second["metrics"], strict=True):
        assert training(mine) == training(theirs)
        assert training(mine) == pytest.approx(training(expected), rel=tolerance)
        assert any(key.startswith("dev/") for key in mine)
        assert not any(key.startswith("dev/") for key in theirs), "only rank 0 evaluates"
    if name != "dropout":
        for key, value in copy_state(distillation.student).items():
            if not key.endswith("key.bias"):  # softmax does not depend on it: its gradient is rounding error
                assert (value - first["state"][key]).abs().mean() < 1e-4, key
