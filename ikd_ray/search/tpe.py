"""Search by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optuna

from ikd_ray.search.candidates import Configuration
from ikd_ray.search.planned_work import Need
from ikd_ray.search.space import Space
from ikd_ray.search.study import Outcome, Sample, add_running, to_directions
from ikd_ray.search.windowed_storage import WindowedStorage

NUM_STARTUP_TRIALS = 10  # random trials before TPE models results


class TpeSearch:
    """The search in one method's space; TPE starts anew for each suggestion, with a seed of its own."""

    def __init__(self, space: Space, objectives: Mapping[str, str], seeds: int) -> None:
        """Start without trials; each configuration is trained with so many `seeds`."""
        self.min_results = NUM_STARTUP_TRIALS * seeds
        """Results below which suggestions are random."""
        directions = to_directions(objectives)
        signs = [1 if direction == "minimize" else -1 for direction in directions]
        self._space = space
        self._study = optuna.create_study(storage=WindowedStorage(signs), directions=directions)
        self._positions: dict[int, int] = {}  # of trials in the study, by their number in the sweep

    def add(self, number: int, sample: Sample) -> None:
        """Add a trial whose result is not visible yet."""
        self._positions[number] = len(self._positions)
        add_running(self._study, sample)

    def observe(self, number: int, outcome: Outcome) -> None:
        """Add the result of a trial."""
        self._study.tell(self._positions[number], outcome.values, outcome.state)

    def suggest(self, number: int, seed: int, assess: Callable[[Configuration], Need]) -> Sample:
        """Suggest the parameters of a trial, whatever it costs, and add it."""
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.min_results)
        trial = self._study.ask()
        self._space.suggest(trial)
        self._positions[number] = len(self._positions)
        return Sample(trial.params, trial.distributions)
