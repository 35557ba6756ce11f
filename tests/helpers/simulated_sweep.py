"""Whole sweeps without Ray, with many workers that are simulated, and what they cost the driver.

Real: everything that `sweeps/run.py` does in the driver, and each trial's student, record and folder. Synthetic: the
epochs, and the order in which they end.
"""

from __future__ import annotations

import ctypes
import gc
import heapq
import itertools
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from ikd_ray.bench.machine import memory_bytes
from ikd_ray.bench.sweeps import SyntheticDistillation
from ikd_ray.config import SweepConfig
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.records import SPACE_FILE, STUDY_FILE, load_intact_trials, read_sweep
from ikd_ray.search.budget import Budget
from ikd_ray.search.space import load_space
from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.sweep import preparation, runner
from ikd_ray.sweep.artifacts import LoadedArtifacts
from ikd_ray.sweep.callback import SweepCallback
from ikd_ray.sweep.request import validate
from ikd_ray.sweep.resources import Node
from ikd_ray.sweep.trial import run_trial
from ikd_ray.sweep.trial_results import REPORT
from ikd_ray.terminal.console import Console
from tests.helpers.simulated_search import refuse

MAX_WAITING_CALLS = 200  # to MLflow, which is as fast as trials that take their time


class Usage(NamedTuple):
    """What the driver has used by the time that so many trials have ended."""

    ended: int
    search_s: float  # CPU time for suggestions, and for writing them to the study
    other_s: float  # CPU time for everything else
    memory: float  # resident bytes
    blocks: int  # of Python's memory


@dataclass
class SimulatedTrial:
    """A running trial, with the attributes of Tune's that the callback reads."""

    config: dict[str, Any]
    results: Iterator[dict[str, Any]]
    epoch_s: float  # simulated
    last_result: dict[str, Any] = field(default_factory=dict)
    error_file: str | None = None


class SimulatedTuner:
    """Runs a queue's trials on simulated workers, and calls the sweep's callback as Ray Tune does.

    Attributes:
        usage: the driver's, when each number of trials in `marks` had ended.
    """

    def __init__(self, sweep: Any, queue: TrialQueue, callback: SweepCallback, marks: Sequence[int]) -> None:
        self._queue, self._callback, self._tracker = queue, callback, sweep.async_tracker
        self._context, self._marks = sweep.context, {*marks}
        self._workers, self._world = (
            sweep.context.resources.concurrent,
            DistributedContext(device=torch.device("cpu")),
        )
        self._artifacts = LoadedArtifacts(sweep.context.artifacts, self._world.device)
        self._rng, self._worker_s, self._search_s = random.Random(0), 0.0, 0.0
        self.usage: list[Usage] = []

    def fit(self) -> None:
        """Run all trials; the epoch that ends next is the earliest in simulated time."""
        epochs: list[
            tuple[float, int, SimulatedTrial]
        ] = []  # (end, number of the trial, trial) of each worker
        now, ended = 0.0, 0
        while not self._queue.is_finished:
            while len(epochs) < self._workers and (trial := self._next_trial()):
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
        results = run_trial(self._context, config, self._artifacts, self._world)
        return SimulatedTrial(config, results, self._rng.uniform(0.5, 1.5))

    def _finish_epoch(self, trial: SimulatedTrial) -> None:
        start = time.thread_time()
        trial.last_result = next(trial.results)
        self._worker_s += time.thread_time() - start
        self._callback.on_trial_result(0, [], trial, trial.last_result)
        self._wait_for_mlflow(MAX_WAITING_CALLS)

    def _wait_for_mlflow(self, calls: int) -> None:
        while len(self._tracker._calls) > calls:
            time.sleep(0.005)

    def _measure(self, ended: int) -> None:
        self._wait_for_mlflow(0)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free does not count
        others = time.process_time() - self._worker_s - self._search_s
        self.usage.append(
            Usage(ended, self._search_s, others, memory_bytes("VmRSS"), sys.getallocatedblocks())
        )


def run_simulated_sweep(config: SweepConfig, log: Path, marks: Sequence[int]) -> list[Usage]:
    """Run `config.concurrent` workers' sweep in this process, with the terminal's lines in a file."""
    tuners: list[SimulatedTuner] = []

    def make_tuner(sweep: Any, queue: TrialQueue, callback: SweepCallback) -> SimulatedTuner:
        tuners.append(SimulatedTuner(sweep, queue, callback, marks))
        return tuners[-1]

    nodes = [Node(cpus=1)] * config.concurrent
    with (
        log.open("w") as file,
        patch.object(runner, "ray_cluster", lambda nested: nullcontext()),
        patch.object(runner, "cluster_nodes", lambda: nodes),
        patch.object(preparation, "cluster_nodes", lambda: nodes),
        patch.object(runner._Sweep, "_tuner", make_tuner),
    ):
        status = runner.run(validate(config), "simulated", Console(file), distillation=SyntheticDistillation)
    assert status == 0, log.read_text()[-2000:]
    return tuners[-1].usage


def open_resumed_queue(folder: Path, copy: Path, more: int) -> tuple[float, list[float]]:
    """Open the queue of an ended sweep as `--resume` does, with the study in another folder.

    Returns:
        The seconds for that, and for each of `more` suggestions, which know all results.
    """
    shutil.copy(folder / STUDY_FILE, copy)
    start = time.perf_counter()
    sweep, (trials, _) = read_sweep(folder), load_intact_trials(folder)
    budget = Budget(load_space(folder / SPACE_FILE), sweep.settings["trials"] + more)
    ended = {trial.number: trial for trial in trials}
    queue = TrialQueue(copy, budget, sweep.objectives, sweep.seed, 1, ended, more, refuse)
    times = [start, time.perf_counter()]
    for _ in range(more):
        config = queue.next()
        times.append(time.perf_counter())
        queue.finish(config["number"], trials[0].metrics)
    opened, *suggested = (after - before for before, after in itertools.pairwise(times))
    return opened, suggested
