"""Build students from their teacher, and measure their size."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

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
    memo: dict[int, Any] = {}
    memo[id(teacher.layers)] = copy.deepcopy(layers, memo)
    model = copy.deepcopy(teacher.model, memo)
    _fit_to_layers(model.config, memo[id(teacher.layers)], mapped)
    return Encoder(model.requires_grad_(True))


def _fit_to_layers(config: Any, layers: nn.ModuleList, matched: Sequence[int]) -> None:
    """Change a configuration to that of a model with some of its layers, and those to what it makes, in place.

    Where a family's layers differ in how far their attention reaches, each layer gets that of the teacher's layer that
    it is matched with: local attention cannot imitate a global one.

    Args:
        config: a Hugging Face configuration of the whole model.
        layers: the layers of the model now.
        matched: the layer of the whole model that each is matched with, from 1.
    """
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number - 1] for number in matched]
    if config.model_type == "modernbert":
        layers[0].attn_norm = nn.Identity()  # as in the first layer of any model of the family
        layer: Any
        for number, (layer, kind) in enumerate(zip(layers, config.layer_types, strict=True)):
            layer.layer_idx = layer.attn.layer_idx = number
            layer.attention_type = kind
            layer.attn.sliding_window = config.sliding_window + 1 if kind == "sliding_attention" else None


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
