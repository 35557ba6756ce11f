"""Run a function in several processes. Imports little, since each process imports it anew."""

from __future__ import annotations

import time
from typing import Any

import torch.multiprocessing as mp


def run_processes(worker, *arguments: Any, processes: int = 2, seconds: float = 120) -> None:
    """Run `worker(rank, *arguments)` in spawned processes and raise the exception of one, if any."""
    context = mp.spawn(worker, arguments, nprocs=processes, join=False)
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=1):  # true once all have ended
            assert time.monotonic() < deadline, "the processes did not end"
    finally:
        for process in context.processes:
            process.kill()
