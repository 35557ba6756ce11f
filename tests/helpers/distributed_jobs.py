"""Functions that tests run in several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ikd_ray.config import Trial
from ikd_ray.data.tokens import TaskData, open_data
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.targets import Targets, build_targets
from tests.helpers.tiny_models import copy_state, make_encoder, make_targets

_TRIAL = {"student_layers": 2, "batch_size": 8, "epochs": 1, "epochs_per_layer": 1, "learning_rate": 1e-3}
JOBS = {
    "id": {"regime": "id", "embeddings": "train"},
    "pid": {"regime": "pid", "batch_size": 7},
    "dropout": {"regime": "sid"},
    "cos": {"regime": "sid", "internal_losses": "cos"},
    "always": {"regime": "sid", "soft_labels": "always"},
    "head": {"regime": "pid", "top_trains": "head"},
    "kl": {"regime": "pid", "internal_losses": "kl"},  # attention maps give no gradient to most of a layer
    "split": {"regime": "id", "batch_size": 7, "embeddings": "train"},
    "split-kl": {"regime": "pid", "internal_losses": "kl"},
    "assisted": {"regime": "sid", "assistant_layers": 3},
}


def create(
    name: str, data: TaskData, target_folder: Path, world: DistributedContext | None = None
) -> Distillation:
    """Create the trial of a job."""
    trial = Trial(**(_TRIAL | JOBS[name]))
    targets = Targets(target_folder, data, make_encoder(dropout=0.01 if name == "dropout" else 0.0))
    if not trial.assistant_layers:
        memory = StepMemory(2e-4 if name.startswith("split") else 1)
        return Distillation(trial, data, targets, world, memory=memory)
    assistant = make_encoder(layers=trial.assistant_layers, seed=1)
    taught = make_targets(target_folder.with_name("assistant-targets"), data, assistant)
    return Distillation(trial, data, taught, world, reference=targets)


@contextmanager
def process_group(rendezvous: Path, rank: int, size: int = 2) -> Iterator[None]:
    """Join the processes that meet at a file, and leave them after the block."""
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=timedelta(seconds=30)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_and_distill(rank: int, data_folder: Path, out: Path, barrier, yielded) -> None:
    """Build targets at the same time as the other process, then train every job of `JOBS` together with it.

    The number of steps of the build goes to `yielded`, a job's epochs and final weights, or its exception, to
    `out/<job>-<rank>.pt`.
    """
    torch.set_num_threads(1)
    data = open_data(data_folder)
    barrier.wait(60)
    yielded[rank] = len(list(build_targets(out / "targets", data, make_encoder(), (2, 4), True)))
    for name in JOBS:
        torch.manual_seed(rank)  # earlier random numbers must not matter
        result: dict[str, Any] = {}
        with process_group(out / f"{name}.rendezvous", rank):
            try:
                distillation = create(name, data, out / "targets", DistributedContext(rank, 2))
                result["metrics"] = [epoch.metrics for epoch in distillation]
                result["state"] = copy_state(distillation.student)
            except Exception as error:
                result["error"] = repr(error)
        torch.save(result, out / f"{name}-{rank}.pt")
