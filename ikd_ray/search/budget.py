"""Which trial a number stands for: a method's configuration, with a seed. Every method gets as many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ikd_ray.errors import UsageError
from ikd_ray.search.space import Space

TRIALS = 8  # configurations of each method, where neither the command nor a grid says
SEEDS = 2**31


@dataclass(frozen=True)
class TrialSpec:
    """What a trial is in its sweep."""

    method: str
    configuration: int  # of the method, from 0
    seed: int  # added to the sweep's own
    again: bool = False  # the method's best configuration, whichever that will be, and not `configuration`


class Budget:
    """The trials of a sweep in their order.

    Methods take turns, so that a sweep that was cut off has tried as many configurations of each. The seeds of a
    configuration follow one another; the best ones' further seeds come last.
    """

    def __init__(self, space: Space, trials: int | None) -> None:
        """
        Args:
            trials: configurations of each method; none: `TRIALS`, or all of a grid.

        Raises:
            UsageError: no method's grid has so many.
        """
        self.spaces = {name: space.of(name) for name in space.methods}
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
            configurations = (trials or TRIALS) * len(self.methods)
        self.searched = configurations * self.seeds
        """Trials that search; the best configurations' others follow."""
        self.total = self.searched + len(self.methods) * self._best_seeds

    def place(self, number: int) -> TrialSpec:
        """Of a trial by its number, from 0."""
        if self._best_seeds and number >= self.searched:
            turn, which = divmod(number - self.searched, len(self.methods))
            return TrialSpec(self.methods[which], 0, self.seeds + turn, again=True)
        turn, seed = divmod(number, self.seeds)
        if self._grid:
            return TrialSpec(*self._grid[turn], seed)
        configuration, which = divmod(turn, len(self.methods))
        return TrialSpec(self.methods[which], configuration, seed)

    def seeds_of(self, place: TrialSpec) -> int:
        """That its configuration is trained with, in the search or again."""
        return self._best_seeds if place.again else self.seeds

    def first(self, number: int) -> int:
        """The trial that has the configuration's first seed."""
        return number - number % self.seeds

    def turn(self, number: int) -> int:
        """Which of its method's trials one is that searches, from 0."""
        place = self.place(number)
        return place.configuration * self.seeds + place.seed

    def again(self, method: str) -> range:
        """The numbers of a method's best configuration's further seeds."""
        return range(self.searched + self.methods.index(method), self.total, len(self.methods))

    def searching(self, method: str) -> Iterator[range]:
        """The numbers of each of a method's configurations, a number a seed."""
        for first in range(0, self.searched, self.seeds):
            if self.place(first).method == method:
                yield range(first, first + self.seeds)
