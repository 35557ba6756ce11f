"""Suggestions of the TPE sampler that depend on the seed and on results alone, not on which trial ends first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.search.budget import Budget, TrialSpec
from ikd_ray.search.space import DEFAULTS
from ikd_ray.search.study import Outcome, Sample, add_running, to_directions
from ikd_ray.search.windowed_storage import WindowedStorage
from ikd_ray.storage.store import digest

NUM_STARTUP_TRIALS = 10  # random trials before TPE models results


@dataclass
class _MethodState:
    """The sampler's view of one method's trials."""

    study: optuna.Study
    unobserved: list[int] = field(default_factory=list)
    """Trials whose outcome is not in `study` yet, in order."""
    num_observed: int = 0


class SeededSampler:
    """A sampler whose suggestion n sees the results of trials 0 .. n - lag - 1 of its own method, in order.

    Results that come early wait. TPE starts anew for each suggestion, seeded by (seed, n), so that a resumed sweep
    suggests what it would have. Further seeds of a configuration repeat its first suggestion, and retrained trials
    repeat the best configuration of their method.
    """

    def __init__(self, budget: Budget, objectives: Mapping[str, str], seed: int, lag: int) -> None:
        """Start without trials. The objectives are metrics with "max" or "min"."""
        self.samples: dict[int, Sample] = {}
        """Searched parameters by trial number."""
        self._budget, self._seed, self._lag = budget, seed, lag
        self._num_startup = NUM_STARTUP_TRIALS * budget.seeds
        directions = to_directions(objectives)
        signs = [1 if direction == "minimize" else -1 for direction in directions]
        main = list(objectives).index(main_metric(objectives))
        self._main = main, signs[main]  # index and sign of the main objective
        self._outcomes: dict[int, Outcome] = {}
        self._methods = {
            method: _MethodState(optuna.create_study(storage=WindowedStorage(signs), directions=directions))
            for method in budget.methods
        }

    def is_ready(self, number: int) -> bool:
        """Return whether every trial has ended that the suggestion of trial `number` depends on."""
        spec = self._budget.spec(number)
        if spec.retrain:
            return all(n in self._outcomes for each in self._budget.configurations(spec.method) for n in each)
        return self._is_start(spec) or self._observe(self._methods[spec.method], number - self._lag)

    def suggest(self, number: int) -> Sample:
        """Suggest the parameters of trial `number`, the next one."""
        spec = self._budget.spec(number)
        if spec.retrain:
            source = self._best_trial(spec.method)
        else:
            source = self._budget.first_trial(number)
            self._observe(self._methods[spec.method], number - self._lag)
        if source != number:
            self.add(number, self.samples[source])
        elif self._budget.grids:
            row = self._budget.grids[spec.method][spec.configuration]
            self.add(number, self._budget.to_sample(spec.method, row))
        elif self._is_start(spec):
            row = DEFAULTS | self._budget.start(spec.method)[spec.configuration]
            self.add(number, self._budget.to_sample(spec.method, row))
        else:
            state = self._methods[spec.method]
            seed = int(digest(self._seed, number)[:8], 16)
            state.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._num_startup)
            trial = state.study.ask()
            self._budget.spaces[spec.method].suggest(trial)
            state.unobserved.append(number)
            self.samples[number] = Sample(trial.params, trial.distributions)
        return self.samples[number]

    def _is_start(self, spec: TrialSpec) -> bool:
        return not spec.retrain and spec.configuration < len(self._budget.start(spec.method))

    def add(self, number: int, sample: Sample) -> None:
        """Add trial `number`, the next one, with parameters that were suggested before."""
        self.samples[number] = sample
        spec = self._budget.spec(number)
        if not spec.retrain:
            add_running(self._methods[spec.method].study, sample)
            self._methods[spec.method].unobserved.append(number)

    def record(self, number: int, outcome: Outcome) -> None:
        """Note how a trial ended."""
        self._outcomes[number] = outcome

    def _observe(self, state: _MethodState, horizon: int) -> bool:
        """Add the results of trials below `horizon` to a study; return False if one that matters is missing."""
        below = [number for number in state.unobserved if number < horizon]
        if state.num_observed + len(below) < self._num_startup:
            # TPE ignores so few results, and which of them are there already depends on time.
            return True
        if any(number not in self._outcomes for number in below):
            return False
        for number in below:
            outcome = self._outcomes[number]
            state.study.tell(self._budget.position(number), outcome.values, outcome.state)
        state.unobserved = state.unobserved[len(below) :]
        state.num_observed += len(below)
        return True

    def _best_trial(self, method: str) -> int:
        """Return a trial of the configuration with the best mean over seeds; of equals the first suggested."""
        # A configuration that is already being retrained stays the best, even if a lost trial does better later.
        retrained = (number for number in self._budget.retrained(method) if number in self.samples)
        best = max(self._budget.configurations(method), key=self._mean_score)
        return next(retrained, best[0])

    def _mean_score(self, numbers: range) -> float:
        """Return the mean main objective of some trials, the higher the better; -inf if one failed."""
        index, sign = self._main
        values = [self._outcomes[number].values if number in self._outcomes else None for number in numbers]
        scores = [-sign * each[index] if each else -math.inf for each in values]
        return statistics.fmean(scores)
