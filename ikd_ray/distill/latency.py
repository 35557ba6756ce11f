"""Measure the latency of a student's forward pass on the CPU."""

from __future__ import annotations

import bisect
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import torch

from ikd_ray.config import contradicting_depths, latency_tokens
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.fast_layers import use_pytorch_layers
from ikd_ray.distill.student import build_student

LATENCY_ID = 5
"""Token id that the measured sequence repeats."""
LATENCY_WARMUP, LATENCY_RUNS, LATENCY_ROUNDS = 3, 15, 30
LATENCY_REPEATS = 3
"""Times that latencies are measured again which contradict each other."""
LATENCY_TOLERANCE = 1.03
"""Ratio of the two shortest medians at which the measurement ends."""


def measure_latency(teacher: Encoder, depths: Iterable[int], known: Mapping[int, float]) -> dict[int, float]:
    """Return the CPU latency in milliseconds of a student of each depth; the teacher's own depth is the teacher.

    Latencies that contradict each other, since the machine was busy, are measured again; each depth keeps its least.

    Args:
        teacher: the model whose layers students have.
        depths: numbers of layers to measure.
        known: latencies that were measured before, which stay as they are.
    """

    def measure(depth: int) -> float:
        is_student = depth < len(teacher.layers)
        return latency_ms(build_student(teacher, depth, "first") if is_student else teacher)

    measured = {depth: measure(depth) for depth in depths}
    for _ in range(LATENCY_REPEATS):
        for depth in contradicting_depths({**known, **measured}) & measured.keys():
            measured[depth] = min(measured[depth], measure(depth))
    return measured


def latency_ms(student: Encoder) -> float:
    """Return the median milliseconds of a forward pass on the CPU, with one thread.

    The input is one sequence of `latency_tokens(...)` tokens. The result depends on the architecture only, not on the
    weights.
    """
    return latencies_ms(student)[0]


def latencies_ms(student: Encoder, *others: Callable[[], object]) -> list[float]:
    """Return a student's `latency_ms`, and that of other implementations of the same forward pass.

    Other load on the machine makes a pass slower, so each is measured in turn until its two shortest medians agree.
    """
    # Users of the student run transformers' own forward pass.
    model = copy.deepcopy(student.model).eval().cpu()
    use_pytorch_layers(model)
    ids = torch.full((1, latency_tokens(student.config.max_position_embeddings)), LATENCY_ID)
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
