"""Peaks: of matrix products and of memory."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from ikd_ray.bench import machine
from ikd_ray.bench.processes import alone, meet, together
from ikd_ray.distill.fast_layers import HAS_ONEDNN


def test_matrix_products():
    peaks = machine.matmul_peaks()
    assert list(peaks) == ["torch.mm", "oneDNN"][: 1 + HAS_ONEDNN]
    for peak in peaks.values():
        assert {"1024 x 1024 x 1024", "4096 x 384 x 1536"} <= set(peak)
        assert all(value > 0.01 for value in peak.values())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak does not start anew")
def test_peak_memory_starts_anew():
    held = np.ones(40 * 2**17)  # 40 MiB
    machine.reset_peak_memory()
    before = machine.peak_memory_mib()
    del held
    machine.reset_peak_memory()
    assert machine.peak_memory_mib() < before - 30
    np.ones(40 * 2**17).sum()
    assert machine.peak_memory_mib() > before - 10


def meeting(number: int) -> tuple[int, int]:
    meet()
    return number, os.getpid()


def test_processes():
    assert alone(os.getpid) != os.getpid()
    (first, one), (second, other) = together(meeting, [(1,), (2,)])
    assert (first, second) == (1, 2)
    assert one != other
