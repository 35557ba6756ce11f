"""Students: cut from their teacher, and measured."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PretrainedConfig

from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.fast_layers import use_onednn

LATENCY_TOKENS, LATENCY_ID = 128, 5  # how many, and which one
LATENCY_WARMUP, LATENCY_RUNS, LATENCY_ROUNDS = 3, 15, 30
LATENCY_AGREES = 1.03


def layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher layer that each student layer is matched with, uniform, both counted from 1.

    The top layers meet; twice as deep a teacher gives i -> 2i.

    Raises:
        ValueError: the student is deeper than its teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"a student of {student_layers} layers cannot come from {teacher_layers} layers")
    # Rounds half up: (i * T / S + 1/2), in whole numbers.
    return tuple(
        (2 * i * teacher_layers + student_layers) // (2 * student_layers)
        for i in range(1, student_layers + 1)
    )


def matched_layers(depths: Iterable[int], teacher_layers: int) -> list[int]:
    """The teacher's layers, ascending, that students of these depths are matched with (`layer_map`)."""
    return sorted({layer for depth in depths for layer in layer_map(depth, teacher_layers)})


def build_student(teacher: Encoder, student_layers: int, init: str) -> Encoder:
    """A student with copies of the teacher's embeddings, pooler, classifier and some of its layers.

    Args:
        init: "mapped" copies the layers of `layer_map`, "first" the lowest ones.
    """
    mapped = layer_map(student_layers, len(teacher.layers))
    chosen = mapped if init == "mapped" else range(1, student_layers + 1)
    kept = nn.ModuleList([teacher.layers[number - 1] for number in chosen])
    # deepcopy's memo stands in for the layer list, so that the layers left out are not copied.
    memo: dict[int, object] = {}
    memo[id(teacher.layers)] = copy.deepcopy(kept, memo)
    model = copy.deepcopy(teacher.model, memo)
    model.config.num_hidden_layers = student_layers
    return Encoder(model.requires_grad_(True))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def size_metrics(student: Encoder) -> dict[str, float]:
    """Parameters with and without embeddings, and the weights' megabytes (10^6 bytes) as stored."""
    stored = sum(tensor.numel() * tensor.element_size() for tensor in student.parameters())
    return {
        "student/params": _count(student),
        "student/encoder_params": _count(student) - _count(student.embeddings),
        "student/size_mb": stored / 1e6,
    }


def latency_tokens(config: PretrainedConfig) -> int:
    """How many tokens the sequence has that latency is measured with."""
    return min(LATENCY_TOKENS, config.max_position_embeddings - 2)  # RoBERTa's start at 2


def latency_ms(student: Encoder) -> float:
    """Median milliseconds of a forward pass on the CPU: one sequence of 128 tokens, one thread.

    It depends on the architecture alone.
    """
    return latencies_ms(student)[0]


def latencies_ms(student: Encoder, *others: Callable[[], object]) -> list[float]:
    """The same, and the median milliseconds of calls that do as much in another way.

    Whatever else runs makes them longer, so they are measured in turn until of each the two shortest medians agree.
    """
    # As its users will run it: transformers' own forward pass.
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
            while not all(map(_agree, medians)) and len(medians[0]) < LATENCY_ROUNDS:
                for found, call in zip(medians, calls, strict=True):
                    found.append(_median_ms(call))
                    found.sort()
    finally:
        torch.set_num_threads(threads)
    return [found[0] for found in medians]


def _agree(medians: list[float]) -> bool:
    return medians[1] <= LATENCY_AGREES * medians[0]


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(LATENCY_WARMUP + LATENCY_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[LATENCY_WARMUP:]) * 1e3
