"""Whole sweeps without Ray, whose many workers are simulated, and what they cost the driver.

Real: everything that `ikd run` does in the driver, and each trial's record and folder. Synthetic: the epochs, and
the order in which they end.
"""

from __future__ import annotations

import ctypes
import gc
import heapq
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import torch

from ikd_ray.bench.machine import memory_bytes
from ikd_ray.bench.sweeps import SyntheticDistillation
from ikd_ray.config import SweepConfig
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.sweep import run_preparation, runner
from ikd_ray.sweep.artifacts import LoadedArtifacts
from ikd_ray.sweep.callback import SweepCallback
from ikd_ray.sweep.request import validate
from ikd_ray.sweep.resources import Node
from ikd_ray.sweep.searcher import LiveTrialScheduler
from ikd_ray.sweep.trial import run_trial
from ikd_ray.sweep.trial_results import REPORT
from ikd_ray.terminal.console import Console

MAX_WAITING_CALLS = 200  # to MLflow, which keeps up with trials that take their time
CPU = DistributedContext(device=torch.device("cpu"))


class SharedStudentDistillation(SyntheticDistillation):
    """Synthetic epochs of one student for all trials of its depth: workers are not what is measured."""

    _students: ClassVar[dict[int, Encoder]] = {}

    def _build_student(self) -> Encoder:
        depth = self.trial.student_layers
        return self._students.get(depth) or self._students.setdefault(depth, super()._build_student())


class Usage(NamedTuple):
    """Time and memory that the driver had used when so many trials had ended."""

    ended: int
    search_s: float  # CPU time for suggestions, and for writing them to the study
    other_s: float  # CPU time for all else but the workers
    memory: float  # resident bytes


@dataclass
class SimulatedTrial:
    """A running trial, with the attributes of Tune's that the callback reads."""

    config: dict[str, Any]
    results: Iterator[dict[str, Any]]
    epoch_s: float  # simulated
    last_result: dict[str, Any] = field(default_factory=dict)


class SimulatedTuner:
    """Runs a queue's trials, calls the callback as Ray Tune does, and notes the `usage` at each of `marks`."""

    def __init__(
        self,
        sweep: Any,
        queue: TrialQueue,
        callback: SweepCallback,
        scheduler: LiveTrialScheduler,
        limit_s: None,
        marks: Sequence[int],
    ) -> None:
        self._context, self._queue, self._callback = sweep.context, queue, callback
        self._waiting_calls, self._marks = sweep.async_tracker._calls, marks
        self._artifacts = LoadedArtifacts(sweep.context.artifacts, CPU.device)
        self._rng, self._worker_s, self._search_s = random.Random(0), 0.0, 0.0
        self.usage: list[Usage] = []

    def fit(self) -> None:
        """Run all trials; the epoch that ends next is the earliest in simulated time."""
        epochs: list[tuple[float, int, SimulatedTrial]] = []  # (end, number of the trial, trial) by worker
        now, ended = 0.0, 0
        while not self._queue.is_finished:
            while len(epochs) < self._context.resources.concurrent and (trial := self._next_trial()):
                self._callback.on_trial_start(0, [], trial)
                heapq.heappush(epochs, (now + trial.epoch_s, trial.config["number"], trial))
            now, number, trial = heapq.heappop(epochs)
            self._finish_epoch(trial)
            if trial.last_result[REPORT].remaining:
                heapq.heappush(epochs, (now + trial.epoch_s, number, trial))
                continue
            self._callback.on_trial_complete(0, [], trial)
            ended += 1
            if ended in self._marks:
                self._measure(ended)

    def _next_trial(self) -> SimulatedTrial | None:
        start = time.thread_time()
        config = self._queue.next()
        self._search_s += time.thread_time() - start
        if config is None:
            return None
        results = run_trial(self._context, config, self._artifacts, CPU)
        return SimulatedTrial(config, results, self._rng.uniform(0.5, 1.5))

    def _finish_epoch(self, trial: SimulatedTrial) -> None:
        start = time.thread_time()
        trial.last_result = next(trial.results)
        self._worker_s += time.thread_time() - start
        self._callback.on_trial_result(0, [], trial, trial.last_result)
        self._wait_for_mlflow(MAX_WAITING_CALLS)

    def _wait_for_mlflow(self, calls: int = 0) -> None:
        while len(self._waiting_calls) > calls:
            time.sleep(0.005)

    def _measure(self, ended: int) -> None:
        self._wait_for_mlflow()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # freed memory does not count
        other_s = time.process_time() - self._worker_s - self._search_s
        self.usage.append(Usage(ended, self._search_s, other_s, memory_bytes("VmRSS")))


SIMULATED_CLUSTER = SimpleNamespace(status=None, stays=False, monitor=lambda tell_lost: nullcontext())


def run_simulated_sweep(config: SweepConfig, log: Path, marks: Sequence[int]) -> list[Usage]:
    """Run a sweep of `config.concurrent` workers; the terminal's lines go to `log`, `marks` as for the tuner."""
    tuners: list[SimulatedTuner] = []

    def make_tuner(*arguments: Any) -> SimulatedTuner:
        tuners.append(SimulatedTuner(*arguments, marks))
        return tuners[-1]

    nodes = [Node(cpus=1)] * config.concurrent
    with (
        log.open("w") as file,
        patch.object(runner, "ray_cluster", lambda nested: nullcontext(SIMULATED_CLUSTER)),
        patch.object(runner, "cluster_nodes", lambda: nodes),
        patch.object(run_preparation, "cluster_nodes", lambda: nodes),
        patch.object(runner._Sweep, "_tuner", make_tuner),
    ):
        end = runner.run(validate(config), "simulated", Console(file), distillation=SharedStudentDistillation)
    assert end.status == 0, log.read_text()[-2000:]
    return tuners[-1].usage
