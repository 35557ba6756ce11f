"""What a run of the benchmark found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ikd_ray.bench.epochs import Store, Timing
from ikd_ray.bench.floor import Work


@dataclass(frozen=True)
class Row:
    """An epoch's seconds, and how they compare. None where there is nothing to compare with."""

    name: str
    seconds: float
    seconds_per_layer: float | None  # by the layers passed forward and backward
    evaluation_s: float | None
    over_floor: float | None  # seconds by the floor's
    over_exact_floor: float | None
    faster_than: dict[str, float]  # another row's seconds by this one's


@dataclass(frozen=True)
class Memory:
    """MiB of a process that trains one trial."""

    idle: float  # with data, targets and teacher open
    peak_above_idle: dict[str, float]  # by regime


@dataclass(frozen=True)
class Concurrency:
    """`trials` trials' epochs one after the other with all threads, and at once with `threads_each`."""

    trials: int
    threads_each: int
    in_turn_s: float
    at_once_s: float  # until the last one ends
    gain: float  # the former by the latter


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    task: str
    data: str
    teacher: str
    examples: int
    tokens: int
    student_layers: int
    batch_size: int
    cores: int
    threads: int
    load_before: float | None  # where others run, all times are too long
    peak_gflops: float  # the most that torch.mm reached: the floor's
    best_gflops: float  # the most that anything reached: the exact floor's
    gflops_at_start: dict[str, dict[str, float]]  # by who computes and by the matrix product's shape
    gflops_at_end: dict[str, dict[str, float]]
    padding_of_plan: float  # share of tokens
    padding_of_random: float
    rows: list[Row]
    store: Store
    memory: Memory
    concurrency: Concurrency


def mean_of_stages(name: str, stages: Sequence[Timing]) -> Timing:
    """The mean epoch of stages that take equally many epochs."""
    count = len(stages)
    evaluations = [stage.evaluation_s for stage in stages if stage.evaluation_s is not None]
    assert len(evaluations) == count
    return Timing(
        name,
        sum(stage.seconds for stage in stages) / count,
        sum(stage.layers for stage in stages) / count,
        sum(evaluations) / count,
    )


def rows(
    timings: Sequence[Timing],
    others: Sequence[Timing],
    work: Work,
    gflops: tuple[float, float],
    constant_input: bool,
) -> list[Row]:
    """A row for each timing, compared with the floor and with each of the others, which get rows too.

    Args:
        gflops: the peaks of the floor and of the exact one.
        constant_input: whether the timings' embeddings are frozen; the others' train.
    """
    made = [_row(timing, work, gflops, constant_input, others) for timing in timings]
    return made + [_row(other, work, gflops, False, ()) for other in others]


def _row(
    timing: Timing, work: Work, gflops: tuple[float, float], constant_input: bool, others: Sequence[Timing]
) -> Row:
    layers = timing.layers
    could, at_best = (peak * 1e9 * timing.seconds for peak in gflops)  # operations in the time taken
    return Row(
        name=timing.name,
        seconds=timing.seconds,
        seconds_per_layer=timing.seconds / layers if layers else None,
        evaluation_s=timing.evaluation_s,
        over_floor=could / work.flops(layers) if layers else None,
        over_exact_floor=at_best / work.exact_flops(layers, constant_input) if layers else None,
        faster_than={other.name: other.seconds / timing.seconds for other in others},
    )
