"""The machine: cores, measurements in processes of their own, peak speed of matrix products, peak memory."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ikd_ray.distill.fast_layers import HAS_ONEDNN, onednn_linear

SHAPES = (  # rows, inner, columns: square products, and an encoder's
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 384, 384),
    (4096, 384, 1536),
    (4096, 1536, 384),
)
REPEATS = 10
Result = TypeVar("Result")
_SPAWN = multiprocessing.get_context("spawn")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Return the load average of the last minute, where the system has it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def prepare(threads: int) -> None:
    """Set a new process's threads, and import what its first optimizer would import (a second)."""
    torch.set_num_threads(threads)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


def run_alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a new process, which ends with it."""
    with ProcessPoolExecutor(1, _SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def run_together(function: Callable[..., Result], calls: list[tuple[Any, ...]]) -> list[Result]:
    """Call a function several times at once, in a process each, with a barrier as the last argument.

    The function must wait at the barrier once, so that the calls start their work at the same time.
    """
    with _SPAWN.Manager() as manager, ProcessPoolExecutor(len(calls), _SPAWN) as pool:
        barrier = manager.Barrier(len(calls))
        pending = [pool.submit(function, *arguments, barrier) for arguments in calls]
        return [call.result() for call in pending]


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Let processes that start within the block put their temporary files, which some libraries leave, in a folder."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def matmul_peaks() -> dict[str, dict[str, float]]:
    """Measure the GFLOP/s of float32 matrix products, the best of `REPEATS`: library -> shape -> speed.

    `torch.mm` is PyTorch's default; oneDNN is what this project uses where it is faster.
    """
    multiply: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch.mm": torch.mm}
    if HAS_ONEDNN:
        multiply["oneDNN"] = lambda left, right: onednn_linear(left, right.t())
    return {
        name: {" x ".join(map(str, shape)): _gflops(function, *shape) for shape in SHAPES}
        for name, function in multiply.items()
    }


def _gflops(multiply: Callable[[Tensor, Tensor], Tensor], rows: int, inner: int, columns: int) -> float:
    left, right = torch.rand(rows, inner), torch.rand(inner, columns)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        multiply(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(seconds) / 1e9


def reset_peak_memory() -> None:
    """Let `peak_memory_mib` start from what is resident now; without effect outside Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """Return this process's peak resident memory in MiB (2^20 bytes), resident pages of memory maps included."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
