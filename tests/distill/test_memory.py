"""Training takes no more memory the longer it goes on."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch

from ikd_ray.distill import training

STEPS = 60


def megabytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def fragmented(steps: int, given_back: bool) -> int:
    """What a process has taken, in MB, after steps on batches of ever other lengths."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 512), torch.nn.GELU(), torch.nn.Linear(512, 64)]
    model, before = torch.nn.Sequential(*layers), megabytes()
    for length in torch.randint(20, 128, (steps,)).tolist():
        model(torch.randn(32 * length, 64)).sum().backward()
        if given_back:
            training.trim_heap()
    return megabytes() - before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it does nothing")
def test_what_nobody_uses_goes_back():
    if training._malloc_trim() is None:
        pytest.skip("this C library has no malloc_trim")
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        kept, given_back = pool.starmap(fragmented, [(STEPS, False), (STEPS, True)], chunksize=1)
    assert given_back < kept / 2, f"{given_back} MB of {kept} MB"
