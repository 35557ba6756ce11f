"""The machine: measurements in processes of their own, peak speed of matrix products, memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
import timeit
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ikd_ray.config import Device
from ikd_ray.distill.fast_layers import HAS_ONEDNN, onednn_linear, supports_bfloat16

SHAPES = (  # rows, inner, columns: square products, and an encoder's
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 384, 384),
    (4096, 384, 1536),
    (4096, 1536, 384),
)
GPU_SHAPES = ((8192, 8192, 8192),)
BFLOAT16 = "torch.mm in bfloat16"
REPEATS = 10
Multiply = Callable[[Tensor, Tensor], Tensor]
Result = TypeVar("Result")
_SPAWN = multiprocessing.get_context("spawn")
_barrier: threading.Barrier | None = None  # of the calls that run at once


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_alone(function: Callable[..., Result], *arguments: Any, threads: int | None = None) -> Result:
    """Call a function in a new process, which ends with it.

    `threads` are torch's in that process; None if the function does not compute there.
    """
    with ProcessPoolExecutor(1, _SPAWN, _prepare, (threads,)) as pool:
        return pool.submit(function, *arguments).result()


def run_together(function: Callable[..., Result], calls: list[tuple[Any, ...]], threads: int) -> list[Result]:
    """Call a function several times at once, in a process each, with a barrier as the last argument.

    The function must wait at the barrier once, so that the calls start their work at the same time.
    """
    barrier = _SPAWN.Barrier(len(calls))
    with ProcessPoolExecutor(len(calls), _SPAWN, _prepare, (threads, barrier)) as pool:
        pending = [pool.submit(_call_with_barrier, function, *arguments) for arguments in calls]
        return [call.result() for call in pending]


def _call_with_barrier(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments, _barrier)


def _prepare(threads: int | None, barrier: threading.Barrier | None = None) -> None:
    global _barrier
    _barrier = barrier  # a process can only inherit it, not receive it with a call
    if threads is not None:
        torch.set_num_threads(threads)
        # Import what a first optimizer would import, which takes a second.
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


def matmul_peaks(device: Device = "cpu") -> dict[str, dict[str, float]]:
    """Measure the GFLOP/s of matrix products, the best of `REPEATS`: library -> shape -> speed.

    `torch.mm` is PyTorch's default, in float32; oneDNN is what this project uses where it is faster. In bfloat16 they
    are measured where the processor has it.
    """
    libraries: dict[str, tuple[Multiply, torch.dtype]] = {"torch.mm": (torch.mm, torch.float32)}
    if HAS_ONEDNN and device == "cpu":
        libraries["oneDNN"] = (lambda left, right: onednn_linear(left, right.t())), torch.float32
    if device == "cuda" or supports_bfloat16():
        libraries[BFLOAT16] = torch.mm, torch.bfloat16
    shapes = (*SHAPES, *(GPU_SHAPES if device == "cuda" else ()))
    return {
        name: {" x ".join(map(str, shape)): _gflops(multiply, shape, dtype, device) for shape in shapes}
        for name, (multiply, dtype) in libraries.items()
    }


def _gflops(multiply: Multiply, shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> float:
    rows, inner, columns = shape
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    left, right = torch.rand(rows, inner, **options), torch.rand(inner, columns, **options)

    def run() -> None:
        multiply(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = min(timeit.repeat(run, number=1, repeat=REPEATS))
    return 2 * rows * inner * columns / seconds / 1e9


def reset_peak_memory() -> None:
    """Let `memory_bytes("VmHWM")` start from what is resident now; without effect outside Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def memory_bytes(field: str) -> float:
    """Return this process's resident memory, memory maps included.

    Args:
        field: the name in Linux's /proc/self/status: `VmRSS` for the current value, `VmHWM` for the peak. Elsewhere
            both are the peak.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return 2**10 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))
