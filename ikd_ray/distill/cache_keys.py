"""Keys of saved epochs: digests of everything that determines a stage's numbers.

Two stages with one key compute the same, epoch by epoch, bit for bit on a CPU. Settings that only say when a stage
stops are not part of its key, so trials that differ in nothing else share its epochs.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy
import torch
import transformers

import ikd_ray
from ikd_ray.config import Precision, Trial
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.processor import ONEDNN, cpu_model
from ikd_ray.distill.regimes import REGIMES, Stage
from ikd_ray.distill.targets import Targets
from ikd_ray.storage import store

COMPUTING_MODULES = (
    "tasks",
    "storage.arrays",
    "data.encoding",
    "data.tokens",
    "data.splits",
    "data.batches",
    "distill.losses",
    "distill.regimes",
    "distill.memory",
    "distill.distributed",
    "distill.fast_layers",
    "distill.processor",
    "distill.attention",
    "distill.encoder_output",
    "distill.cls_pass",
    "distill.layer_stack",
    "distill.model_pass",
    "distill.encoder",
    "distill.student",
    "distill.targets",
    "distill.frozen_activations",
    "distill.evaluate",
    "distill.stage_training",
    "distill.loop",
)
"""Modules whose code determines the numbers of an epoch. Readers of data are not among them: the key has the
fingerprint of what they read."""
STOP_SETTINGS = ("epochs", "cosine_threshold")
ENVIRONMENT_VARIABLES = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
)
"""Variables by which the libraries below PyTorch choose how they compute."""


@cache
def code_digest(package: Path = Path(ikd_ray.__file__).parent) -> str:
    """Return a digest of the code that computes, as it is in a folder that holds the package.

    It is made of the syntax trees of `COMPUTING_MODULES`, so that comments, formatting, docstrings, messages of
    exceptions, and the modules' names and order do not count.
    """
    paths = (package.joinpath(*name.split(".")).with_suffix(".py") for name in COMPUTING_MODULES)
    trees = (_ArithmeticOnly().visit(ast.parse(path.read_text(encoding="utf-8"))) for path in paths)
    return store.digest(sorted(map(ast.dump, trees)))


class _ArithmeticOnly(ast.NodeTransformer):
    """Removes from a syntax tree what cannot change a number."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_docstring = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_docstring else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if str(node.module).partition(".")[0] == ikd_ray.__name__ else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Assert(node.test)


def environment(world: DistributedContext) -> list[object]:
    """Return what changes an epoch's last digits besides its settings: code, libraries, processor, threads."""
    device = world.device
    return [
        code_digest(),
        torch.__version__,
        numpy.__version__,  # the order of batches
        transformers.__version__,
        device.type,
        torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        cpu_model(),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        [os.environ.get(name) for name in ENVIRONMENT_VARIABLES],
        torch.get_num_threads(),
        ONEDNN,
        world.size,
        world.training_precision,
    ]


def precision_key(precision: Precision) -> list[str]:
    """Return what a precision adds to the key of a stored model: nothing where it is left to the machine.

    So a model that was trained on one machine is reused on another one.
    """
    return [] if precision == "auto" else [precision]


def start_key(
    trial: Trial,
    data: TaskData,
    targets: Targets,
    matched: tuple[int, ...],
    environments: Sequence[list[object]],
    reference: str = "",
) -> str:
    """Return the key of a student that has not been trained yet, and of how it will be trained.

    Args:
        trial: the student and its training.
        data: the task's tokenized examples.
        targets: the outputs of the model that teaches it.
        matched: that model's layer for each student layer, counted from 1.
        environments: `environment` of all processes that will train it, by rank.
        reference: fingerprint of the targets that it is compared with, where they are of another model.
    """
    settings = [trial.student_layers, trial.student_init, trial.seed, trial.learning_rate, trial.batch_size]
    settings.append(trial.train_fraction)  # with the seed it determines the examples
    imitates = any(stage.uses_teacher for stage in REGIMES[trial.regime](trial))
    if imitates and len(data.train.labelled_rows) < len(data.train):
        settings.append(trial.unlabelled_fraction)
    others = [reference] if reference else []
    return store.digest(list(environments), data.key, targets.fingerprint(matched), settings, *others)


def stage_key(
    parent: str, epochs: int, stage: Stage, frozen_stored: bool, memory: Sequence[float] = ()
) -> str:
    """Return the key of a stage's epochs.

    Args:
        parent: key of the stage before it, or the student's own (`start_key`).
        epochs: number of epochs that were taken of the parent.
        stage: its losses and trainable parts.
        frozen_stored: whether the output of the layers that the stage freezes is stored; computed again in other
            batches it differs in its last digits.
        memory: `StepMemory.key` of the stage.
    """
    return store.digest(parent, epochs, stage_settings(stage), frozen_stored, *memory)


def stage_settings(stage: Stage) -> dict[str, object]:
    """Return the fields of a stage that change its epochs' numbers: not when it ends, and no unused temperature."""
    settings = dict(vars(stage))
    # A learning rate that decays does so over a known number of epochs.
    for name in STOP_SETTINGS[1:] if stage.decays else STOP_SETTINGS:
        del settings[name]
    if not stage.soft:
        del settings["temperature"]
    return settings
