"""Searches on a model of a recorded table, which says how any configuration would end.

A table has few rows of each size, so that a search which likes cheap trials too much soon runs out of them there. On a
regression of the rows it does not (Eggensperger et al., "Efficient Benchmarking of Hyperparameter Optimizers via
Surrogates", 2015). A forest of so few rows is smoother than the truth, so each repetition adds a random function.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import TrialState
from sklearn.ensemble import RandomForestRegressor

from ikd_ray.analysis.intervals import paired_t_interval
from ikd_ray.bench.search_arms import OBJECTIVES
from ikd_ray.bench.search_replay import Table
from ikd_ray.config import make_trial
from ikd_ray.search.budget import Budget
from ikd_ray.search.candidates import Configuration, Features, draw
from ikd_ray.search.cost_aware import CostAwareSearch
from ikd_ray.search.gaussian_process import GaussianProcess
from ikd_ray.search.planned_work import Need, PlannedWork
from ikd_ray.search.sampler import MethodSearch, SearchSettings, SeededSampler
from ikd_ray.search.space import Space
from ikd_ray.search.study import Outcome, Sample, to_sample
from ikd_ray.search.tpe import TpeSearch

BUDGETS = (1.0, 1.5, 2.0, 3.0, 6.0)
"""Moments at which searches are compared, in times of the work of the space's start."""
TREES = 300
PRODUCT = "cost_aware"
MAX_TRIALS = 10_000
SEED_DEVIATION = 0.015
"""Standard deviation of MCC between seeds of a configuration on CoLA, from the depth table of this folder's README."""
FREQUENCIES = 400  # of the random function

MakeSearch = Callable[[Space, Mapping[str, str], int], MethodSearch]


class TableModel:
    """Expected scores of all configurations of a space: those of a random forest, and a random function.

    The function is drawn from a Gaussian process with Matérn's covariance (smoothness 5/2, length scale 1), by random
    Fourier features (Rahimi and Recht, 2007). Together with the noise of seeds it varies as much as the forest errs.
    """

    def __init__(self, table: Table, space: Space) -> None:
        self._features, rows = Features(space), [row for row in table.rows if np.isfinite(row.score)]
        points = self._features.encode([row.params for row in rows])
        scores, sizes = np.array([row.score for row in rows]), np.array([row.size for row in rows])
        self._forest = RandomForestRegressor(
            TREES, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=0
        ).fit(points, scores)
        errors = scores - self._forest.oob_prediction_
        self._roughness = {
            size: np.sqrt(max(errors[sizes == size].var() - SEED_DEVIATION**2, 0.0)) for size in table.sizes
        }
        self._dimensions = points.shape[1]

    def draw_landscape(self, order: int) -> Callable[[Configuration], float]:
        """Return a function that returns the expected score of a configuration; each order has another one."""
        rng = np.random.default_rng(order)
        shape = FREQUENCIES, self._dimensions
        frequencies = rng.normal(size=shape) / np.sqrt(rng.chisquare(5, size=(FREQUENCIES, 1)) / 5)
        phases = rng.uniform(0, 2 * np.pi, FREQUENCIES)

        def expect(params: Configuration) -> float:
            point = self._features.encode([params])
            wave = np.sqrt(2 / FREQUENCIES) * np.cos(point @ frequencies.T + phases).sum()
            rough = self._roughness[params["student_layers"]] * wave
            return float(self._forest.predict(point)[0] + rough)

        return expect


class RandomSearch:
    """A search that draws every configuration at random."""

    min_results = MAX_TRIALS

    def __init__(self, space: Space, objectives: Mapping[str, str], seeds: int) -> None:
        self._space = space

    def add(self, number: int, sample: Sample) -> None:
        """Ignore a trial."""

    def observe(self, number: int, outcome: Outcome) -> None:
        """Ignore a result."""

    def suggest(self, number: int, seed: int, assess: Callable[[Configuration], Need]) -> Sample:
        """Draw a configuration."""
        return to_sample(self._space, draw(self._space, np.random.default_rng(seed)))


class _WithoutMainFeature(CostAwareSearch):
    """The cost-aware search whose model treats the depth as it does every other parameter."""

    def make_model(self, points: np.ndarray, scores: np.ndarray) -> GaussianProcess:
        return GaussianProcess(points, scores)


ARMS: dict[str, tuple[MakeSearch, bool]] = {
    "random": (RandomSearch, False),
    "start, random": (RandomSearch, True),
    "TPE": (TpeSearch, False),
    "start, TPE": (TpeSearch, True),
    "start, depth as any parameter": (_WithoutMainFeature, True),
    PRODUCT: (CostAwareSearch, True),
}
"""Searches by name, and whether they begin with the space's start."""


def simulate_searches(table: Table, space: Space, workers: int, orders: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each search: mean score over sizes at some moments, and the difference from the product.

    The score of a size is the expected one of the student that did best among those of at most that size.

    Args:
        table: the recorded trials.
        space: the default space.
        workers: trials at once.
        orders: repetitions with other seeds and other noise.
    """
    model, start = TableModel(table, space), _start_cost(table, space) / workers
    frames = {
        name: pd.DataFrame(
            [
                _simulate(
                    model, table, space if begins else replace(space, start=()), make, workers, order, start
                )
                for order in range(orders)
            ],
            columns=BUDGETS,
        )
        for name, (make, begins) in ARMS.items()
    }
    for name, frame in frames.items():
        row = {"table": table.name, "workers": workers, "search": name}
        row |= {f"at {budget:g} starts": frame[budget].mean() for budget in BUDGETS}
        found = paired_t_interval(frame[2.0], frames[PRODUCT][2.0])
        yield row | {"at 2 starts - product's": f"{found.mean:+.4f} ± {found.half_width:.4f}"}


def _start_cost(table: Table, space: Space) -> float:
    work = PlannedWork(table.size)
    return sum(work.add(make_trial(params)) for params in space.start)


def _simulate(
    model: TableModel, table: Table, space: Space, make: MakeSearch, workers: int, order: int, start: float
) -> list[float]:
    """Return the mean expected score over sizes at each of `BUDGETS`; 0 for a size without a student."""
    sampler = SeededSampler(
        Budget(space, MAX_TRIALS), SearchSettings(OBJECTIVES, order, workers, table.size), make
    )
    work, sizes, expect = PlannedWork(table.size), np.array(table.sizes), model.draw_landscape(order)
    # Of the student that did best among those of at most each size.
    observed, expected = np.zeros(len(sizes)), np.zeros(len(sizes))
    found = dict.fromkeys(BUDGETS, 0.0)
    running: list[tuple[float, int]] = []
    now, number = 0.0, 0
    while now <= BUDGETS[-1] * start:
        while len(running) < workers and sampler.is_ready(number):
            sampler.suggest(number)
            heapq.heappush(running, (now + work.add(make_trial(sampler.params(number))), number))
            number += 1
        now, ended = heapq.heappop(running)
        params = sampler.params(ended)
        truth, size = expect(params), params["student_layers"]
        score = truth + SEED_DEVIATION * np.random.default_rng((order, ended)).normal()
        sampler.record(ended, Outcome(TrialState.COMPLETE, [score, float(size)]))
        better = (sizes >= size) & (score > observed)
        observed[better], expected[better] = score, truth
        found |= {budget: float(expected.mean()) for budget in BUDGETS if now <= budget * start}
    return list(found.values())
