"""What determines a stage's numbers: the key under which its epochs are saved and found.

Two stages with one key compute the same, epoch by epoch, bit for bit on a CPU. What only says when a stage stops
is no part of its key, so trials that differ in nothing else share its epochs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy
import torch
import transformers

import ikd_ray
from ikd_ray.config import Trial
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.fast_layers import ONEDNN, cpu_model
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.targets import Targets
from ikd_ray.storage import store

STOP_RULE = ("epochs", "cosine_threshold")
VARIABLES = (  # of the environment, by which the libraries below PyTorch choose how they compute
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
)


@cache
def _code() -> str:
    """The code that computes: whoever changes it gets new numbers, or must not be told that they are the same."""
    root = Path(ikd_ray.__file__).parent
    files = [
        root / "tasks.py",
        *sorted((root / "data").glob("*.py")),
        *sorted((root / "distill").glob("*.py")),
    ]
    return store.digest([[path.name, store.file_sha256(path)] for path in files])


def environment(world: DistributedContext) -> list[object]:
    """Whatever changes the last digits besides what is computed."""
    device = world.device
    return [
        _code(),
        torch.__version__,
        numpy.__version__,  # the order of batches
        transformers.__version__,
        device.type,
        torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        cpu_model(),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        [os.environ.get(name) for name in VARIABLES],
        torch.get_num_threads(),
        ONEDNN,
        world.size,
    ]


def start_key(
    trial: Trial,
    data: TaskData,
    targets: Targets,
    matched: tuple[int, ...],
    environments: Sequence[list[object]],
    reference: str = "",
) -> str:
    """The key of a student that has not been trained yet, and of how it will be.

    Args:
        targets: of who teaches it.
        matched: the teaching model's layer of each student layer, counted from 1.
        environments: of all processes that will train it, by rank.
        reference: fingerprint of the targets that it is compared with, where these are others.
    """
    settings = [trial.student_layers, trial.student_init, trial.seed, trial.learning_rate, trial.batch_size]
    settings.append(trial.train_fraction)  # with the seed it says which examples are seen
    others = [reference] if reference else []
    return store.digest(list(environments), data.key, targets.fingerprint(matched), settings, *others)


def stage_key(parent: str, epochs: int, stage: Stage, prefix: bool) -> str:
    """The key of a stage's epochs.

    Args:
        parent: key of the stage before it, or the student's own (`start_key`).
        epochs: how many of the parent's were taken.
        prefix: whether the output of the layers that the stage freezes is stored; computed again in other
            batches it differs in its last digits.
    """
    fields = dataclasses.asdict(stage)
    # A rate that decays does so over a known number of epochs.
    for name in STOP_RULE[1:] if stage.decays else STOP_RULE:
        del fields[name]
    if not stage.soft:
        del fields["temperature"]
    return store.digest(parent, epochs, fields, prefix)
