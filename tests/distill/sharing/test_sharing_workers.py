"""Three workers of a trial: resuming from a saved epoch, and an epoch that one of them cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ikd_ray.config import Trial
from ikd_ray.data.tokens import TaskData, open_data
from ikd_ray.distill import epoch_cache
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.targets import Targets
from tests.helpers.distributed_jobs import process_group
from tests.helpers.processes import run_processes
from tests.helpers.tiny_models import changed_tensors, copy_state, make_encoder

pytestmark = [pytest.mark.slow, pytest.mark.long]

WORKERS = 3
SIZES = {"student_layers": 2, "batch_size": 9, "epochs": 2, "epochs_per_layer": 2, "learning_rate": 1e-3}
REGIMES = ("kd", "pid", "sid")


def distil(rank: int, data_folder: Path, target_folder: Path, out: Path) -> None:
    """Write the results of each regime to `out/<rank>.pt`."""
    torch.set_num_threads(1)
    data = open_data(data_folder)
    targets = Targets(target_folder, data, make_encoder(dropout=0.1))
    with process_group(out / "rendezvous", rank, WORKERS):
        found = {regime: results(regime, rank, data, targets, out / regime) for regime in REGIMES}
    torch.save(found, out / f"{rank}.pt")


def results(regime: str, rank: int, data: TaskData, targets: Targets, folder: Path) -> dict[str, tuple]:
    """Run a trial alone, interrupted after three epochs and resumed, and with epochs that rank 1 cannot read.

    Returns:
        Metrics of each epoch, the student's weights, and warnings, by "alone", "resumed" and "unreadable".
    """
    trial = Trial(regime=regime, **SIZES)

    def start(owner: str = "") -> Distillation:
        shared = EpochCache(folder, 20, owner, owner) if owner else None
        return Distillation(trial, data, targets, DistributedContext(rank, WORKERS), checkpoints=shared)

    def finish(run: Distillation) -> tuple:
        return [epoch.metrics for epoch in run], copy_state(run.student), run.warnings

    found = {"alone": finish(start())}
    events = iter(start("mine"))
    for _ in range(3 if regime != "kd" else 0):
        next(events)
    events.close()
    found["resumed"] = finish(start("mine"))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(epoch_cache, "load_file", fail)
        found["unreadable"] = finish(start("next"))
    return found


def fail(path):
    raise OSError(5, "Input/output error")


@pytest.fixture(scope="module")
def found(tmp_path_factory, data, targets):
    out = tmp_path_factory.mktemp("three")
    run_processes(distil, data.folder, targets.folder, out, processes=WORKERS)
    return [torch.load(out / f"{rank}.pt") for rank in range(WORKERS)]


def losses(metrics: dict[str, float]) -> dict[str, float]:
    """Return the training losses: rank 0 alone evaluates, but all workers reuse its metrics."""
    return {name: value for name, value in metrics.items() if name.startswith("train/")}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", ["resumed", "unreadable"])
def test_saved_epochs_equal_those_the_workers_train(found, regime, name):
    """The order of three summands changes the last digits of their sum; that of two does not."""
    for rank in found:
        (alone, weights, _), (epochs, others, _) = rank[regime]["alone"], rank[regime][name]
        assert [losses(epoch) for epoch in epochs] == [losses(epoch) for epoch in alone]
        assert not changed_tensors(weights, others)


@pytest.mark.parametrize("regime", REGIMES)
def test_an_epoch_unreadable_for_one_worker_is_tried_once(found, regime):
    for rank in found:
        _, _, warnings = rank[regime]["unreadable"]
        assert len(warnings) == 1
    assert all(not rank[regime]["resumed"][2] for rank in found)
