"""The machine: its cores, the peak speed of its matrix products, and the memory of a process."""

from __future__ import annotations

import os
import resource
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ikd_ray.config import Device
from ikd_ray.distill.fast_layers import onednn_linear
from ikd_ray.distill.processor import HAS_ONEDNN, supports_bfloat16

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


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def matmul_peaks(device: Device = "cpu") -> dict[str, dict[str, float]]:
    """Measure the GFLOP/s of matrix products, the best of `REPEATS`: library -> shape -> speed.

    `torch.mm` is PyTorch's default, in float32; oneDNN is what this project uses where it is faster. In bfloat16 they
    are measured where the processor has it.
    """
    libraries: dict[str, tuple[Multiply, torch.dtype]] = {"torch.mm": (torch.mm, torch.float32)}
    if HAS_ONEDNN and device == "cpu":
        libraries["oneDNN"] = (lambda left, right: onednn_linear(left, right.t())), torch.float32
    if supports_bfloat16(torch.device(device)):
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
