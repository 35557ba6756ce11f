"""Functions that tests run in several processes."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ikd_ray.config import Trial
from ikd_ray.data.tokens import TaskData, open_data
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.targets import Targets, build_targets
from tests.helpers.tiny_models import copy_state, make_encoder, make_targets

_TRIAL = {"student_layers": 2, "batch_size": 8, "epochs": 1, "epochs_per_layer": 1, "learning_rate": 1e-3}
JOBS = {
    "id": {"dropout": 0.0, "trial": _TRIAL | {"regime": "id", "embeddings": "train"}},
    "pid": {"dropout": 0.0, "trial": _TRIAL | {"regime": "pid", "batch_size": 7}},
    "dropout": {"dropout": 0.01, "trial": _TRIAL | {"regime": "sid"}},
    "cos": {"dropout": 0.0, "trial": _TRIAL | {"regime": "sid", "internal_losses": "cos"}},
    "always": {"dropout": 0.0, "trial": _TRIAL | {"regime": "sid", "soft_labels": "always"}},
    "head": {"dropout": 0.0, "trial": _TRIAL | {"regime": "pid", "top_trains": "head"}},
    # Attention maps give no gradient to most of a layer.
    "kl": {"dropout": 0.0, "trial": _TRIAL | {"regime": "pid", "internal_losses": "kl"}},
    "assisted": {"dropout": 0.0, "trial": _TRIAL | {"regime": "sid", "assistant_layers": 3}},
}


def targets_for(trial: Trial, targets: Targets, data: TaskData) -> dict[str, Targets]:
    """Return the arguments of `Distillation` that say who teaches a trial and with whom its student is compared."""
    if not trial.assistant_layers:
        return {"targets": targets}
    assistant = make_encoder(layers=trial.assistant_layers, seed=1)
    folder = targets.folder.with_name("assistant-targets")
    return {"targets": make_targets(folder, data, assistant), "reference": targets}


def run_processes(worker, *arguments: Any, processes: int = 2, seconds: float = 120) -> None:
    """Run `worker(rank, *arguments)` in spawned processes and raise the exception of one, if any."""
    context = mp.spawn(worker, arguments, nprocs=processes, join=False)
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=1):  # true once all have ended
            assert time.monotonic() < deadline, "the processes did not end"
    finally:
        for process in context.processes:
            process.kill()


def build_and_distill(rank: int, data_folder: Path, out: Path, barrier, yielded) -> None:
    """Do both in one process, since its start takes longer than the work."""
    torch.set_num_threads(1)
    build(rank, data_folder, out / "targets", barrier, yielded)
    distill(rank, data_folder, out / "targets", out)


def build(rank: int, data_folder: Path, folder: Path, barrier, yielded) -> None:
    """Build targets at the same time as the others and store the number of steps made by this process."""
    data, teacher = open_data(data_folder), make_encoder()
    barrier.wait(60)
    yielded[rank] = len(list(build_targets(folder, data, teacher, (2, 4), True)))


def distill(rank: int, data_folder: Path, target_folder: Path, out: Path) -> None:
    """Write every job's epochs and final weights, or its exception, to `out/<job>-<rank>.pt`."""
    data = open_data(data_folder)
    for name, job in JOBS.items():
        dist.init_process_group(
            "gloo",
            init_method=f"file://{out}/{name}.rendezvous",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=20),
        )
        torch.manual_seed(rank)  # earlier random numbers must not matter
        result: dict[str, Any] = {}
        try:
            targets = Targets(target_folder, data, make_encoder(dropout=job["dropout"]))
            trial = Trial(**job["trial"])
            distillation = Distillation(
                trial, data, world=DistributedContext(rank, 2), **targets_for(trial, targets, data)
            )
            result["metrics"] = [epoch.metrics for epoch in distillation]
            result["state"] = copy_state(distillation.student)
        except Exception as error:
            result["error"] = repr(error)
        torch.save(result, out / f"{name}-{rank}.pt")
        dist.destroy_process_group()
