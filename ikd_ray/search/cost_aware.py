"""Search by the expected improvement of the Pareto front per unit of the training that a configuration still needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ikd_ray.search.acquisition import Front
from ikd_ray.search.candidates import Configuration, Features, draw, mutate
from ikd_ray.search.gaussian_process import GaussianProcess
from ikd_ray.search.planned_work import Need
from ikd_ray.search.space import DEFAULTS, Space
from ikd_ray.search.study import Outcome, Sample, to_sample

MIN_RESULTS = 4  # results before a model of them chooses
STARTUP_POWER = 1.5  # before that, probability falls with this power of the cost
RANDOM_CANDIDATES = 128
MUTATED_CANDIDATES = 128
WINDOW = 200  # newest results that the model is fitted to, besides the best of each size
MAX_PENDING = 100  # newest trials without a result that the model takes into account
SIZES = "student/"
"""Prefix of the objectives that depend on a student's size alone."""


@dataclass(frozen=True)
class _Result:
    configuration: Configuration
    size: float
    values: tuple[float, ...]
    """The modelled objectives, the higher the better; NaN in a trial that failed."""


class CostAwareSearch:
    """The search in one method's space.

    Until `min_results` are visible and every size was tried, suggestions depend on costs alone. A student's size is
    known before it is trained. So the search models its other objectives, weighted at random if there are several, as
    ParEGO does (Knowles, 2006), and computes in closed form by how much a candidate is expected to improve the front.
    """

    def __init__(self, space: Space, objectives: Mapping[str, str], seeds: int = 1) -> None:
        """Start without trials.

        Args:
            space: the space.
            objectives: metrics with "max" or "min".
            seeds: trials of each configuration.
        """
        self.min_results = MIN_RESULTS * seeds
        self._space, self._features = space, Features(space)
        self._modelled = [
            (index, 1 if direction == "max" else -1)
            for index, (name, direction) in enumerate(objectives.items())
            if not name.startswith(SIZES)
        ]
        directions = {direction for name, direction in objectives.items() if name.startswith(SIZES)}
        # The sign with which fewer layers are better; 0: their number does not matter.
        self._size_sign = 0 if not directions else 1 if "min" in directions else -1
        depths = space.possible_values("student_layers")
        self._sizes = sorted({self._size_sign * depth for depth in depths})
        self._tried: list[Configuration] = []
        self._num_tried: Counter[float] = Counter()  # by size
        self._pending: dict[int, Configuration] = {}
        self._results: list[_Result] = []
        self._best: dict[tuple[int, float], int] = {}
        """Index of the best result, by modelled objective and size."""

    def add(self, number: int, sample: Sample) -> None:
        """Add a trial whose result is not visible yet."""
        self._pending[number] = sample.params
        self._tried.append(sample.params)
        self._num_tried[self._size(sample.params)] += 1

    def observe(self, number: int, outcome: Outcome) -> None:
        """Add the result of a trial."""
        configuration = self._pending.pop(number)
        values = tuple(
            sign * outcome.values[index] if outcome.values else math.nan for index, sign in self._modelled
        )
        if not all(map(math.isfinite, values)):
            values = (math.nan,) * len(values)
        size, position = self._size(configuration), len(self._results)
        self._results.append(_Result(configuration, size, values))
        for objective, value in enumerate(values):
            best = self._best.get((objective, size))
            if not math.isnan(value) and (best is None or value > self._results[best].values[objective]):
                self._best[objective, size] = position

    def suggest(self, number: int, seed: int, assess: Callable[[Configuration], Need]) -> Sample:
        """Suggest the parameters of a trial, and add it."""
        rng = np.random.default_rng(seed)
        candidates = self._candidates(rng)
        needs = [assess(candidate) for candidate in candidates]
        # What an earlier trial trains would cost next to nothing, and tell nothing.
        if any(need.is_new for need in needs):
            candidates = [each for each, need in zip(candidates, needs, strict=True) if need.is_new]
            needs = [need for need in needs if need.is_new]
        costs = np.array([need.cost for need in needs])
        # Threads cost more than they save on small matrices.
        with threadpool_limits(limits=1, user_api="blas"):
            chosen = self.choose(candidates, costs, rng)
        sample = to_sample(self._space, candidates[chosen])
        self.add(number, sample)
        return sample

    def choose(self, candidates: Sequence[Configuration], costs: np.ndarray, rng: np.random.Generator) -> int:
        """Return the index of the best candidate."""
        sizes = np.array([self._size(candidate) for candidate in candidates])
        counts = np.array([self._num_tried[size] for size in sizes])
        if len(self._results) < self.min_results or not self._best or not counts.all():
            # Cheap ones more often, of the sizes that were tried least.
            weights = np.where(counts == counts.min(), costs**-STARTUP_POWER, 0.0)
            return int(rng.choice(len(candidates), p=weights / weights.sum()))
        results = self._modelled_results()
        scores, worst = _scores(results, rng)
        model = self.make_model(self._features.encode([result.configuration for result in results]), scores)
        scored = [result.size for result in results]
        if self._pending:
            # Trials that run are taken to end as expected, so that those beside them differ from them.
            running = list(self._pending.values())[-MAX_PENDING:]
            scores = np.concatenate([scores, model.assume(self._features.encode(running))])
            scored += map(self._size, running)
        front = Front.of(self._sizes, np.array(scored), scores, worst)
        expected = model.predict(self._features.encode(candidates))
        improvement = front.expected_improvement(sizes, expected.mean, expected.deviation)
        return int(np.argmax(np.log(np.maximum(improvement, 1e-300)) - np.log(costs)))

    def make_model(self, points: np.ndarray, scores: np.ndarray) -> GaussianProcess:
        """Return a model of scores (n) at points (n, features).

        Scores depend on the depth more than on anything else.
        """
        return GaussianProcess(points, scores, main=self._features.column("student_layers"))

    def _size(self, configuration: Configuration) -> float:
        """Return the number of layers, negative where more are better; 0 where it is no objective."""
        return self._size_sign * configuration.get("student_layers", DEFAULTS["student_layers"])

    def _candidates(self, rng: np.random.Generator) -> list[Configuration]:
        candidates = [draw(self._space, rng) for _ in range(RANDOM_CANDIDATES)]
        if self._tried:
            # Those made from earlier ones share their first stages, where only what follows is changed.
            sources = rng.integers(len(self._tried), size=MUTATED_CANDIDATES)
            candidates += [mutate(self._space, self._tried[index], rng) for index in sources]
        return candidates

    def _modelled_results(self) -> list[_Result]:
        """Return the newest results, and the best of each size in each objective."""
        if len(self._results) <= WINDOW:
            return self._results
        kept = {*range(len(self._results) - WINDOW, len(self._results)), *self._best.values()}
        return [self._results[index] for index in sorted(kept)]


def _scores(results: Sequence[_Result], rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return one score of each result, the higher the better, and the lowest one of those that finished."""
    values = np.array([result.values for result in results])
    is_finished = ~np.isnan(values).any(axis=1)
    finished = values[is_finished]
    if finished.shape[1] > 1:
        low, high = finished.min(axis=0), finished.max(axis=0)
        loss = (high - finished) / np.maximum(high - low, 1e-12) * rng.dirichlet(np.ones(finished.shape[1]))
        finished = -(loss.max(axis=1) + 0.05 * loss.sum(axis=1))[:, None]
    column = finished[:, 0]
    # An outlier among bad scores would flatten the differences of all others.
    lower, middle = np.quantile(column, [0.25, 0.5])
    column = np.maximum(column, lower - 5 * (middle - lower) if middle > lower else -math.inf)
    worst = float(column.min())
    # A failed trial is worse than the worst that finished, which may be good for its size.
    scores = np.full(len(results), worst - max(float(column.std()), 1e-3 * abs(worst), 1e-9))
    scores[is_finished] = column
    return scores, worst
