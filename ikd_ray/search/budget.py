"""The trials of a sweep: the method, configuration and seed of each trial number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FixedTrial

from ikd_ray.errors import UsageError
from ikd_ray.records import SweepRecord
from ikd_ray.search.space import Space
from ikd_ray.search.study import Sample, to_sample

MIN_DEFAULT_TRIALS = 8  # configurations of each method, unless the command or a grid says otherwise
MAX_SEED = 2**31


@dataclass(frozen=True)
class TrialSpec:
    """Specification of a trial."""

    method: str
    configuration: int
    """Index among the method's configurations."""
    seed: int
    """Added to the sweep's seed."""
    retrain: bool = False
    """True if the method's best configuration is trained, whichever that will be, not `configuration`."""


def default_trials(space: Space) -> int:
    """Return how many configurations of each method a sweep tries by default, where the space is no grid.

    They cover what the search begins with, and every depth, and then search as long again.
    """
    return max(MIN_DEFAULT_TRIALS, 2 * len(space.start), 2 * len(space.possible_values("student_layers")))


def recorded_trials(space: Space, trials: int | None, total: int) -> int | None:
    """Return the trials of each method of a sweep that was begun with `trials`, and has `total` in all.

    A sweep keeps the number that was the default when it began.
    """
    if trials or space.sampler == "grid":
        return trials
    return (total - len(space.methods) * space.best_seeds) // (len(space.methods) * space.seeds)


def recorded_space(space: Space, sweep: SweepRecord) -> Space:
    """Return the space of a recorded sweep: `cost_aware` did not exist when those without `examples` began."""
    begun_before = space.sampler == "cost_aware" and "examples" not in sweep.data
    return replace(space, sampler="tpe") if begun_before else space


class Budget:
    """The trials of a sweep in order.

    Methods take turns, so that an interrupted sweep has tried equally many configurations of each. The seeds of a
    configuration follow one another; the further seeds of the best configurations come last.
    """

    def __init__(self, space: Space, trials: int | None) -> None:
        """Plan so many trials of each method of a space (None: `default_trials`, or all of a grid).

        Raises:
            UsageError: no method's grid has as many configurations.
        """
        self.spaces = {name: space.for_method(name) for name in space.methods}
        """The space of each method."""
        self.methods = list(self.spaces)
        self.seeds, self._best_seeds = space.seeds, space.best_seeds
        self.grids: dict[str, list[dict[str, Any]]] = {}
        """Configurations of each method, where the space is a grid."""
        self._grid: list[tuple[str, int]] = []  # (method, configuration) in the order of the trials
        if space.sampler == "grid":
            self.grids = {name: own.grid() for name, own in self.spaces.items()}
            sizes = {name: len(rows) for name, rows in self.grids.items()}
            most = max(sizes.values())
            if trials and trials > most:
                raise UsageError(f"--trials {trials}: the grid has {most}; give at most that")
            self._grid = [(name, i) for i in range(most) for name, size in sizes.items() if i < size]
            configurations = sum(i < (trials or most) for _, i in self._grid)
        else:
            configurations = (trials or default_trials(space)) * len(self.methods)
        self.search_trials = configurations * self.seeds
        """Number of trials that search; those that retrain the best configurations follow them."""
        self.total = self.search_trials + len(self.methods) * self._best_seeds

    def spec(self, number: int) -> TrialSpec:
        """Return the specification of trial `number` (0-based)."""
        if self._best_seeds and number >= self.search_trials:
            turn, index = divmod(number - self.search_trials, len(self.methods))
            return TrialSpec(self.methods[index], 0, self.seeds + turn, retrain=True)
        turn, seed = divmod(number, self.seeds)
        if self._grid:
            return TrialSpec(*self._grid[turn], seed)
        configuration, index = divmod(turn, len(self.methods))
        return TrialSpec(self.methods[index], configuration, seed)

    def seed_count(self, spec: TrialSpec) -> int:
        """Return the number of trials with the same configuration, in the search or retrained."""
        return self._best_seeds if spec.retrain else self.seeds

    def first_trial(self, number: int) -> int:
        """Return the number of the search trial with the first seed of trial `number`'s configuration."""
        return number - number % self.seeds

    def retrained(self, method: str) -> range:
        """Return the numbers of the trials that retrain a method's best configuration."""
        return range(self.search_trials + self.methods.index(method), self.total, len(self.methods))

    def configurations(self, method: str) -> Iterator[range]:
        """Yield the trial numbers of each of a method's configurations."""
        for first in range(0, self.search_trials, self.seeds):
            if self.spec(first).method == method:
                yield range(first, first + self.seeds)

    def constants(self, method: str, sample: Sample) -> dict[str, Any]:
        """Return the parameters that a method's space fixes, given those that it searches."""
        return self.spaces[method].suggest(FixedTrial(sample.params))

    def to_sample(self, method: str, params: Mapping[str, Any]) -> Sample:
        """Return the searched ones of a trial's parameters, with their distributions."""
        return to_sample(self.spaces[method], params)
