"""Build students from their teacher, and measure their size and latency."""

from __future__ import annotations

import bisect
import copy
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PretrainedConfig

from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.fast_layers import use_onednn

LATENCY_TOKENS, LATENCY_ID = 128, 5
"""Length of the sequence that latency is measured with, and the token id that it repeats."""
LATENCY_WARMUP, LATENCY_RUNS, LATENCY_ROUNDS = 3, 15, 30
LATENCY_TOLERANCE = 1.03
"""Ratio of the two shortest medians at which the measurement ends."""


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

    Args:
        teacher: the teacher.
        student_layers: number of layers of the student.
        init: "mapped" copies the layers of `layer_map`, "first" the lowest ones.
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


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def size_metrics(student: Encoder) -> dict[str, float]:
    """Return the number of parameters with and without embeddings, and the weights' megabytes (10^6 bytes)."""
    stored = sum(tensor.numel() * tensor.element_size() for tensor in student.parameters())
    return {
        "student/params": _count(student),
        "student/encoder_params": _count(student) - _count(student.embeddings),
        "student/size_mb": stored / 1e6,
    }


def latency_tokens(config: PretrainedConfig) -> int:
    """Return the length of the sequence that a model's latency is measured with."""
    return min(LATENCY_TOKENS, config.max_position_embeddings - 2)  # RoBERTa's positions start at 2


def latency_ms(student: Encoder) -> float:
    """Return the median milliseconds of a forward pass on the CPU with one thread and one sequence of 128 tokens.

    It depends on the architecture only, not on the weights.
    """
    return latencies_ms(student)[0]


def latencies_ms(student: Encoder, *others: Callable[[], object]) -> list[float]:
    """Return a student's `latency_ms`, and that of other implementations of the same forward pass.

    Other load on the machine makes a pass slower, so each is measured in turn until its two shortest medians agree.

    Args:
        student: the student.
        others: functions that run one forward pass each.
    """
    # Users of the student run transformers' own forward pass.
    model = copy.deepcopy(student.model).eval().cpu()
    use_onednn(model, False)
    ids = torch.full((1, latency_tokens(student.config)), LATENCY_ID)
    mask = torch.ones_like(ids)
    calls = [lambda: model(ids, mask), *others]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            medians = [sorted(_median_ms(call) for _ in range(2)) for call in calls]
            while not all(map(_agrees, medians)) and len(medians[0]) < LATENCY_ROUNDS:
                for times, call in zip(medians, calls, strict=True):
                    bisect.insort(times, _median_ms(call))
    finally:
        torch.set_num_threads(threads)
    return [times[0] for times in medians]


def _agrees(medians: list[float]) -> bool:
    return medians[1] <= LATENCY_TOLERANCE * medians[0]


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(LATENCY_WARMUP + LATENCY_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[LATENCY_WARMUP:]) * 1e3
