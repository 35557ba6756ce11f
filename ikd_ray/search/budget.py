"""Which trial a number stands for: a method's configuration, with a seed. Every method gets as many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ikd_ray.errors import UsageError
from ikd_ray.search.space import Space

DEFAULT_TRIALS = 8  # configurations of each method, where neither the command nor a grid says
SEEDS = 2**31


@dataclass(frozen=True)
class TrialSpec:
    """What a trial is in its sweep."""

    method: str
    configuration: int  # of the method, from 0
    seed: int  # added to the sweep's own
    retrain: bool = False  # the method's best configuration, whichever that will be, and not `configuration`


class Budget:
    """The trials of a sweep in their order.

    Methods take turns, so that a sweep that was cut off has tried as many configurations of each. The seeds of a
    configuration follow one another; the best ones' further seeds come last.
    """

    def __init__(self, space: Space, trials: int | None) -> None:
        """
        Args:
            trials: configurations of each method; none: `DEFAULT_TRIALS`, or all of a grid.

        Raises:
            UsageError: no method's grid has so many.
        """
        self.spaces = {name: space.for_method(name) for name in space.methods}
        """Of each method."""
        self.methods = list(self.spaces)
        self.seeds, self._best_seeds = space.seeds, space.best_seeds
        self.grids: dict[str, list[dict[str, Any]]] = {}
        """Of each method its configurations, where the space is a grid."""
        self._grid: list[tuple[str, int]] = []  # a method and one of its configurations, in turn
        if space.sampler == "grid":
            self.grids = {name: own.grid() for name, own in self.spaces.items()}
            sizes = {name: len(rows) for name, rows in self.grids.items()}
            most = max(sizes.values())
            if trials and trials > most:
                raise UsageError(f"--trials {trials}: the grid has {most}; give at most that")
            self._grid = [(name, i) for i in range(most) for name, size in sizes.items() if i < size]
            configurations = sum(i < (trials or most) for _, i in self._grid)
        else:
            configurations = (trials or DEFAULT_TRIALS) * len(self.methods)
        self.search_trials = configurations * self.seeds
        """Trials that search; the best configurations' others follow."""
        self.total = self.search_trials + len(self.methods) * self._best_seeds

    def spec(self, number: int) -> TrialSpec:
        """Of a trial by its number, from 0."""
        if self._best_seeds and number >= self.search_trials:
            turn, which = divmod(number - self.search_trials, len(self.methods))
            return TrialSpec(self.methods[which], 0, self.seeds + turn, retrain=True)
        turn, seed = divmod(number, self.seeds)
        if self._grid:
            return TrialSpec(*self._grid[turn], seed)
        configuration, which = divmod(turn, len(self.methods))
        return TrialSpec(self.methods[which], configuration, seed)

    def seed_count(self, place: TrialSpec) -> int:
        """That its configuration is trained with, in the search or again."""
        return self._best_seeds if place.retrain else self.seeds

    def first_trial(self, number: int) -> int:
        """The trial that has the configuration's first seed."""
        return number - number % self.seeds

    def position(self, number: int) -> int:
        """Which of its method's trials one is that searches, from 0."""
        place = self.spec(number)
        return place.configuration * self.seeds + place.seed

    def retrained(self, method: str) -> range:
        """The numbers of a method's best configuration's further seeds."""
        return range(self.search_trials + self.methods.index(method), self.total, len(self.methods))

    def configurations(self, method: str) -> Iterator[range]:
        """The numbers of each of a method's configurations, a number a seed."""
        for first in range(0, self.search_trials, self.seeds):
            if self.spec(first).method == method:
                yield range(first, first + self.seeds)
