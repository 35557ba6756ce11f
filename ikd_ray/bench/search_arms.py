"""Searches that are compared on a table: those of the product, parts of them, and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from ikd_ray.bench.search_replay import Arm, Row, Table
from ikd_ray.search.budget import Budget
from ikd_ray.search.candidates import Configuration, Features
from ikd_ray.search.cost_aware import STARTUP_POWER, CostAwareSearch
from ikd_ray.search.planned_work import Need
from ikd_ray.search.sampler import MethodSearch, SearchSettings, SeededSampler
from ikd_ray.search.space import DEFAULTS, Space
from ikd_ray.search.study import Outcome, Sample, to_sample
from ikd_ray.search.tpe import NUM_STARTUP_TRIALS, TpeSearch

OBJECTIVES = {"dev/metric": "max", "student/params": "min"}
LAG = 5  # results per further worker that the search before this one waited for

MakeArm = Callable[[int], Arm]


def make_arms(table: Table, space: Space, workers: int) -> dict[str, MakeArm]:
    """Return the arms by name; each makes a search from the number of an order."""

    def cost_aware(**options: Any) -> MakeArm:
        def make(order: int) -> Arm:
            return SamplerArm(
                table, space, workers, order, lambda arm: _CostAwareOnTable(arm, space, **options)
            )

        return make

    return {
        "random": lambda order: RandomArm(order),
        "TPE with a lag (before)": lambda order: TpeArm(table, space, order, lag=LAG * (workers - 1)),
        "TPE": lambda order: TpeArm(table, space, order, lag=None),
        "A: cheap first": cost_aware(models=False, start=False),
        "C: start, then random": cost_aware(models=False, start=True, power=0.0),
        "A, C": cost_aware(models=False, start=True),
        "D: model": cost_aware(start=False, power=0.0),
        "C, D": cost_aware(start=True, power=0.0),
        "A, D": cost_aware(start=False),
        "A, C, D (product)": cost_aware(start=True),
    }


class RandomArm:
    """Rows in random order."""

    def __init__(self, order: int) -> None:
        self._rng = np.random.default_rng(order)

    def choose(self, left: Sequence[int]) -> int:
        """Return any row."""
        return int(self._rng.choice(left))

    def end(self, number: int, row: int) -> None:
        """Ignore the result."""


class SamplerArm:
    """The product's sampler, whose suggestions are rows."""

    def __init__(
        self,
        table: Table,
        space: Space,
        workers: int,
        order: int,
        make_search: Callable[[SamplerArm], MethodSearch],
    ) -> None:
        self.table = table
        self.left: Sequence[int] = []
        self.chosen: list[int] = []
        # Rows have the seed of their table, the sampler that of the order.
        self.configurations = [
            {name: value for name, value in row.params.items() if name != "seed"} for row in table.rows
        ]
        settings = SearchSettings(OBJECTIVES, order, workers, table.size)
        budget = Budget(replace(space, start=(), methods={"": {}}), len(table.rows))
        self._sampler = SeededSampler(budget, settings, lambda *_: make_search(self))

    def choose(self, left: Sequence[int]) -> int | None:
        """Return what the sampler suggests, once it can."""
        self.left = left
        number = len(self.chosen)
        if not self._sampler.is_ready(number):
            return None
        self._sampler.suggest(number)
        return self.chosen[-1]

    def end(self, number: int, row: int) -> None:
        """Record the result."""
        self._sampler.record(number, to_outcome(self.table.rows[row]))


def to_outcome(row: Row) -> Outcome:
    """Return the outcome of a row's trial."""
    if np.isnan(row.score):
        return Outcome(TrialState.FAIL, None)
    return Outcome(TrialState.COMPLETE, [row.score, float(row.size)])


class _CostAwareOnTable(CostAwareSearch):
    """The cost-aware search, or parts of it.

    Args:
        models: whether results count.
        start: whether the rows nearest to the default configuration of each depth come first.
        power: of the cost by which improvements are divided.
    """

    def __init__(
        self, arm: SamplerArm, space: Space, models: bool = True, start: bool = True, power: float = 1.0
    ) -> None:
        super().__init__(space, OBJECTIVES)
        self._arm, self._models, self._power = arm, models, power
        self._start = _start_rows(arm.table, self._features) if start else []

    def suggest(self, number: int, seed: int, assess: Callable[[Configuration], Need]) -> Sample:
        """Choose among the rows that are left."""
        arm, rng = self._arm, np.random.default_rng(seed)
        row = self._start[number] if number < len(self._start) else -1
        if row not in arm.left:
            rows = [arm.configurations[index] for index in arm.left]
            costs = np.array([assess(row).cost for row in rows]) ** self._power
            if self._models:
                row = arm.left[self.choose(rows, costs, rng)]
            else:
                weights = costs**-STARTUP_POWER
                row = int(rng.choice(arm.left, p=weights / weights.sum()))
        arm.chosen.append(row)
        sample = to_sample(self._space, arm.table.rows[row].params)
        self.add(number, sample)
        return sample


def _start_rows(table: Table, features: Features) -> list[int]:
    """Return, for each size, the row of standard distillation that is nearest to the defaults."""
    found = []
    for size in table.sizes:
        rows = [n for n, row in enumerate(table.rows) if row.size == size and row.params["regime"] == "kd"]
        wanted = features.encode([DEFAULTS | {"regime": "kd", "student_layers": size}])
        distances = ((features.encode([table.rows[n].params for n in rows]) - wanted) ** 2).sum(axis=1)
        found.append(rows[int(distances.argmin())])
    return found


class TpeArm:
    """Optuna's TPE, each of whose suggestions stands for the row nearest to it.

    Args:
        lag: results count in order, this many later; None: as soon as they are there.
    """

    def __init__(self, table: Table, space: Space, order: int, lag: int | None) -> None:
        self._table, self._space, self._order, self._lag = table, space, order, lag
        self._search = _TpeOnTable(space, OBJECTIVES, 1)
        self._features = Features(space)
        self._encoded = self._features.encode([row.params for row in table.rows])
        self._rows: list[int] = []
        self._ended: dict[int, int] = {}
        self._observed: set[int] = set()

    def choose(self, left: Sequence[int]) -> int | None:
        """Return the row nearest to what TPE suggests."""
        number = len(self._rows)
        visible = list(self._ended if self._lag is None else range(max(number - self._lag, 0)))
        if len(visible) >= NUM_STARTUP_TRIALS:
            if any(each not in self._ended for each in visible):
                return None
            for each in visible:
                if each not in self._observed:
                    self._search.observe(each, to_outcome(self._table.rows[self._ended[each]]))
                    self._observed.add(each)
        wanted = self._features.encode([self._search.ask(self._order * 100_003 + number)])
        distances = ((self._encoded[list(left)] - wanted) ** 2).sum(axis=1)
        row = left[int(distances.argmin())]
        self._rows.append(row)
        self._search.add(number, to_sample(self._space, self._table.rows[row].params))
        return row

    def end(self, number: int, row: int) -> None:
        """Note the result."""
        self._ended[number] = row


class _TpeOnTable(TpeSearch):
    """TPE that is told of another configuration than it suggested."""

    def ask(self, seed: int) -> dict[str, Any]:
        """Return a suggestion without a trial."""
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.min_results)
        trial = self._study.ask()
        self._space.suggest(trial)
        self._study.tell(trial, state=TrialState.FAIL)
        return dict(trial.params)

    def add(self, number: int, sample: Sample) -> None:
        """Add a trial beside the suggestions that became none."""
        super().add(number, sample)
        self._positions[number] = 2 * number + 1
