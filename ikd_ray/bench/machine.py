"""What this machine can do, and what a process takes of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ikd_ray.distill.fast_layers import HAS_ONEDNN, onednn_linear

SHAPES = (  # rows, inner, columns: square ones, and an encoder's own
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 384, 384),
    (4096, 384, 1536),
    (4096, 1536, 384),
)
REPEATS = 10


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """Processes that wanted to run in the last minute, on average; none where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def prepare(threads: int) -> None:
    """Make a new process ready to be timed: its threads, and what its first optimizer imports (a second)."""
    torch.set_num_threads(threads)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


def matmul_peaks() -> dict[str, dict[str, float]]:
    """GFLOP/s of float32 matrix products, the best of `REPEATS`, by who computes them and by shape.

    `torch.mm` is what PyTorch takes by itself, `oneDNN` what the project takes where that is faster.
    """
    peaks = {"torch.mm": {_name(shape): _gflops(torch.mm, *shape) for shape in SHAPES}}
    if HAS_ONEDNN:
        peaks["oneDNN"] = {_name(shape): _gflops(_onednn, *shape) for shape in SHAPES}
    return peaks


def _onednn(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return onednn_linear(left, right.t())


def _name(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _gflops(multiply: Callable[[Tensor, Tensor], Tensor], rows: int, inner: int, columns: int) -> float:
    left, right = torch.rand(rows, inner), torch.rand(inner, columns)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        multiply(left, right)
        times.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(times) / 1e9


def reset_peak_memory() -> None:
    """Let `peak_memory_mib` count from what is resident now. Where the system is not Linux, it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """The most of this process that was resident in memory, MiB (2^20 bytes).

    Pages of memory-mapped files count while they are resident, though the system could take them back.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
