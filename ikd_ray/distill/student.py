"""Build students from their teacher, and measure their size."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from ikd_ray.distill.encoder import Encoder


def layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Return the teacher layer that each student layer is matched with, both counted from 1.

    The layers are spread uniformly and the top ones are matched: a teacher twice as deep gives i -> 2i.

    Raises:
        ValueError: the student is deeper than its teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"a student of {student_layers} layers cannot come from {teacher_layers} layers")
    # i * T / S rounded half up, in integers.
    return tuple(
        (2 * i * teacher_layers + student_layers) // (2 * student_layers)
        for i in range(1, student_layers + 1)
    )


def matched_layers(depths: Iterable[int], teacher_layers: int) -> list[int]:
    """Return the teacher's layers that students of some depths are matched with (`layer_map`), ascending."""
    return sorted({layer for depth in depths for layer in layer_map(depth, teacher_layers)})


def build_student(teacher: Encoder, student_layers: int, init: str) -> Encoder:
    """Build a student from copies of the teacher's embeddings, pooler, classifier and some of its layers.

    With `init` "mapped" these are the layers of `layer_map`, with "first" the lowest ones.
    """
    mapped = layer_map(student_layers, len(teacher.layers))
    chosen = mapped if init == "mapped" else range(1, student_layers + 1)
    layers = nn.ModuleList([teacher.layers[number - 1] for number in chosen])
    # deepcopy finds the student's layers in its memo, so that the teacher's other layers are not copied.
    memo: dict[int, object] = {}
    memo[id(teacher.layers)] = copy.deepcopy(layers, memo)
    model = copy.deepcopy(teacher.model, memo)
    model.config.num_hidden_layers = student_layers
    return Encoder(model.requires_grad_(True))


def size_metrics(student: Encoder) -> dict[str, float]:
    """Return the number of parameters with and without embeddings, and the weights' megabytes (10^6 bytes)."""
    stored = sum(tensor.numel() * tensor.element_size() for tensor in student.parameters())
    return {
        "student/params": _count(student),
        "student/encoder_params": _count(student) - _count(student.embeddings),
        "student/size_mb": stored / 1e6,
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
