"""Replay of searches on a table of finished trials, with simulated workers and the epochs that trials would share."""

from __future__ import annotations

import gzip
import heapq
import json
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ikd_ray.config import Trial, make_trial
from ikd_ray.records import TrialRecord
from ikd_ray.search.planned_work import DataSize, PlannedEpoch, plan_epochs

OVERHEAD_S = 0.5  # of a trial, besides its epochs


@dataclass(frozen=True)
class Row:
    """A finished trial of a table.

    Attributes:
        params: its parameters.
        size: the student's number of layers.
        stages: the stage of each epoch, from 1.
        seconds: time of each epoch, evaluation included.
        curves: other numbers of each epoch by name: `score` is the main metric, the higher the better.
    """

    params: dict[str, Any]
    size: int
    stages: list[int]
    seconds: list[float]
    curves: dict[str, list[float | None]]

    @property
    def score(self) -> float:
        """The main metric after the last epoch."""
        return _number(self.curves["score"][-1])

    @property
    def trial(self) -> Trial:
        """The trial's settings."""
        return make_trial(self.params)

    def epochs(self, size: DataSize) -> list[tuple[Hashable, float]]:
        """Return key and seconds of each epoch that was run; epochs with equal keys are the same."""
        return [(epoch.key, seconds) for _, epoch, seconds in self.planned_epochs(size)]

    def planned_epochs(self, size: DataSize) -> list[tuple[int, PlannedEpoch, float]]:
        """Return stage, plan and seconds of each epoch that was run; costs are those without an early end."""
        planned: dict[int, Iterator[PlannedEpoch]] = {}
        epochs = plan_epochs(self.trial, size, early_end=1.0)
        for stage, (_, group) in enumerate(groupby(epochs, lambda epoch: epoch.key[0]), 1):
            planned[stage] = iter(list(group))
        return [
            (stage, next(planned[stage]), seconds)
            for stage, seconds in zip(self.stages, self.seconds, strict=True)
        ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass(frozen=True)
class Table:
    """Finished trials of one search space on one data set."""

    name: str
    size: DataSize
    rows: list[Row]

    @property
    def total_s(self) -> float:
        """Seconds of all rows on one worker, shared epochs once."""
        trained: dict[Hashable, float] = {}
        for row in self.rows:
            trained |= dict(row.epochs(self.size))
        return sum(trained.values()) + OVERHEAD_S * len(self.rows)

    @property
    def sizes(self) -> list[int]:
        """All sizes, ascending."""
        return sorted({row.size for row in self.rows})

    @property
    def best(self) -> list[float]:
        """The best score up to each size."""
        return [max(row.score for row in self.rows if row.size <= size) for size in self.sizes]


CURVES = {"nll": "nll", "teacher_kl": "teacher_kl", "train_loss": "train/loss"}


def to_row(record: TrialRecord, metric: str) -> Row:
    """Return the row of a finished trial; `metric` is the main one, as in `holdout/mcc`."""
    split = metric.split("/")[0]
    names = {"score": metric} | {
        name: key if "/" in key else f"{split}/{key}" for name, key in CURVES.items()
    }
    return Row(
        record.params,
        record.params["student_layers"],
        [int(epoch["stage"]) for epoch in record.history],
        [
            round(sum(epoch.get(f"time/{part}_s", 0.0) for part in ("epoch", "evaluation", "reused")), 3)
            for epoch in record.history
        ],
        {name: [_rounded(epoch.get(key)) for epoch in record.history] for name, key in names.items()},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)


def write_table(path: Path, table: Table) -> None:
    """Write a table as compressed JSON."""
    document = {"name": table.name, "size": vars(table.size), "rows": [vars(row) for row in table.rows]}
    path.write_bytes(gzip.compress(json.dumps(document).encode(), mtime=0))


def read_table(path: Path) -> Table:
    """Read a table."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    return Table(document["name"], DataSize(**document["size"]), [Row(**row) for row in document["rows"]])


class Arm(Protocol):
    """A search that chooses among the rows of a table."""

    def choose(self, left: Sequence[int]) -> int | None:
        """Return the row of the next trial among those left; None: wait until another trial ends."""

    def end(self, number: int, row: int) -> None:
        """Note that trial `number`, of that row, has ended."""


@dataclass
class Progress:
    """Best scores over time: the front's steps."""

    times: list[float] = field(default_factory=list)
    volumes: list[float] = field(default_factory=list)

    def volume_at(self, moment: float) -> float:
        """Return the hypervolume at a moment."""
        index = np.searchsorted(self.times, moment, side="right")
        return self.volumes[index - 1] if index else 0.0

    def time_to(self, volume: float) -> float:
        """Return the first moment with at least that hypervolume; infinity without one."""
        return next((t for t, v in zip(self.times, self.volumes, strict=True) if v >= volume), math.inf)


class Hypervolume:
    """The area that a front dominates, sizes in layers, relative to that of the table's front."""

    def __init__(self, table: Table) -> None:
        self._sizes = np.array(table.sizes, dtype=float)
        self._widths = np.diff(self._sizes, append=self._sizes[-1] + 1)
        self._low = min(row.score for row in table.rows)
        self._best = np.full(len(self._sizes), self._low)
        self._whole = float(((np.array(table.best) - self._low) * self._widths).sum())

    def add(self, size: int, score: float) -> float:
        """Add a student, and return the share of the table's hypervolume."""
        self._best = np.where(self._sizes >= size, np.fmax(self._best, score), self._best)
        return float(((self._best - self._low) * self._widths).sum()) / self._whole


def replay(table: Table, arm: Arm, workers: int) -> Progress:
    """Run trials of a table in the order of an arm, on simulated workers.

    A trial costs the seconds of its epochs that no earlier trial has trained or is training.
    """
    progress, volume = Progress(), Hypervolume(table)
    left, trained = list(range(len(table.rows))), set[Hashable]()
    running: list[tuple[float, int, int]] = []
    now, number, waits = 0.0, 0, False
    epochs = [row.epochs(table.size) for row in table.rows]
    while left or running:
        if left and len(running) < workers and not waits:
            row = arm.choose(left)
            if row is None:
                waits = True
                continue
            left.remove(row)
            new = {key: seconds for key, seconds in epochs[row] if key not in trained}
            trained |= new.keys()
            heapq.heappush(running, (now + OVERHEAD_S + sum(new.values()), number, row))
            number += 1
            continue
        now, ended, row = heapq.heappop(running)
        waits = False
        arm.end(ended, row)
        progress.times.append(now)
        progress.volumes.append(volume.add(table.rows[row].size, table.rows[row].score))
    return progress


def replay_asha(table: Table, order: int, workers: int) -> Progress:
    """Run the trials of a table in random order under asynchronous successive halving, as Ray Tune's ASHA does it.

    After 1, 4 and 16 epochs a trial stops unless its score is in the best quarter of those that came so far (Li et al.,
    "A System for Massively Parallel Hyperparameter Tuning", 2020; `ASHAScheduler` with its defaults). A stopped trial
    gives the student of its last epoch.
    """
    progress, volume, trained = Progress(), Hypervolume(table), set[Hashable]()
    rungs: dict[int, list[float]] = {16: [], 4: [], 1: []}
    waiting = list(np.random.default_rng(order).permutation(len(table.rows)))
    epochs = [row.epochs(table.size) for row in table.rows]
    running: list[tuple[float, int, int]] = []  # end of an epoch, row, number of the epoch

    def start(now: float, row: int, epoch: int) -> None:
        key, seconds = epochs[row][epoch - 1]
        cost = 0.0 if key in trained else seconds
        trained.add(key)
        heapq.heappush(running, (now + cost + (OVERHEAD_S if epoch == 1 else 0.0), row, epoch))

    for _ in range(min(workers, len(waiting))):
        start(0.0, int(waiting.pop()), 1)
    while running:
        now, row, epoch = heapq.heappop(running)
        score = _number(table.rows[row].curves["score"][epoch - 1])
        if epoch < len(epochs[row]) and not (epoch in rungs and _is_stopped(rungs[epoch], score)):
            start(now, row, epoch + 1)
            continue
        progress.times.append(now)
        progress.volumes.append(volume.add(table.rows[row].size, score))
        if waiting:
            start(now, int(waiting.pop()), 1)
    return progress


def _is_stopped(rung: list[float], score: float) -> bool:
    cutoff = np.nanpercentile(rung, 75) if rung else -math.inf
    rung.append(score)
    return score < cutoff
