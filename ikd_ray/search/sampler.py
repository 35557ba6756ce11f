"""Suggestions that depend on the seed and on results alone, not on which trial ends first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.config import Trial, make_trial
from ikd_ray.distill.families import CLS_FAMILIES
from ikd_ray.records import SweepRecord
from ikd_ray.search.budget import MAX_SEED, Budget, TrialSpec
from ikd_ray.search.candidates import Configuration
from ikd_ray.search.cost_aware import CostAwareSearch
from ikd_ray.search.planned_work import (
    RELATIVE_COSTS,
    WHOLE_TOP_LAYER_COSTS,
    DataSize,
    EpochCosts,
    Need,
    PlannedWork,
)
from ikd_ray.search.space import DEFAULTS, Space
from ikd_ray.search.study import Outcome, Sample
from ikd_ray.search.tpe import TpeSearch
from ikd_ray.search.virtual_schedule import VirtualSchedule
from ikd_ray.storage.store import digest

UNKNOWN_SIZE = DataSize(1, 0)
"""Size assumed for a sweep whose record does not have it."""


class MethodSearch(Protocol):
    """The search in one method's space."""

    min_results: int
    """Results without which no suggestion depends on any."""

    def add(self, number: int, sample: Sample) -> None:
        """Add a trial whose parameters are given, or were suggested in an earlier run."""

    def observe(self, number: int, outcome: Outcome) -> None:
        """Add the result of a trial."""

    def suggest(self, number: int, seed: int, assess: Callable[[Configuration], Need]) -> Sample:
        """Suggest the parameters of a trial, and add it.

        Args:
            number: the trial's number.
            seed: decides what chance decides.
            assess: returns what a configuration still has to train.
        """


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a sweep on which suggestions depend, besides its space.

    Attributes:
        objectives: metrics with "max" or "min".
        seed: the sweep's seed.
        slots: trials that run at once.
        size: examples that trials train on.
        shares: whether trials reuse epochs of earlier ones.
        costs: costs of the parts of an epoch.
    """

    objectives: Mapping[str, str]
    seed: int
    slots: int = 1
    size: DataSize = UNKNOWN_SIZE
    shares: bool = True
    costs: EpochCosts = RELATIVE_COSTS

    @classmethod
    def of(cls, sweep: SweepRecord) -> SearchSettings:
        """Return the settings of a recorded sweep; what its record lacks, or has damaged, has the default."""
        slots, size = sweep.settings.get("foreseen"), UNKNOWN_SIZE
        has_whole_top_layer = sweep.teacher.get("model_type", "bert") not in CLS_FAMILIES
        with suppress(KeyError, TypeError, ValueError):
            examples = sweep.data["examples"]
            labelled, evaluation = int(examples["train"]), int(examples["evaluation"])
            size = DataSize(labelled, evaluation, int(examples.get("unlabelled", 0)))
        return cls(
            objectives=sweep.objectives,
            seed=sweep.seed,
            slots=slots if isinstance(slots, int) and slots > 0 else cls.slots,
            size=size,
            shares=not sweep.settings.get("no_share"),
            costs=WHOLE_TOP_LAYER_COSTS if has_whole_top_layer else cls.costs,
        )

    def planned_work(self) -> PlannedWork:
        """Return the work of no trials."""
        return PlannedWork(self.size, self.shares, self.costs)


class _MethodState:
    """A method's search, its planned work and its virtual clock, which no other method's trials change."""

    def __init__(self, search: MethodSearch, settings: SearchSettings, methods: int) -> None:
        self.search, self.work = search, settings.planned_work()
        # Methods take turns, so that each has its share of the slots. A single one would wait for its own last trial
        # while those of other methods run, and they would wait for it in turn.
        share = max(-(-settings.slots // methods), min(settings.slots, 2))
        self._schedule = VirtualSchedule(share, max(settings.slots - share, 0))
        self._numbers: list[int] = []  # of its search trials, in order
        self.visible: list[int] = []
        """Trials whose results the next suggestion may see, and that `search` has not observed yet, in order."""
        self._num_observed = 0

    @property
    def depends_on_results(self) -> bool:
        """True if the method's next suggestion depends on any result."""
        return self._num_observed + len(self.visible) >= self.search.min_results

    def schedule(self, number: int, trial: Trial) -> None:
        """Note the work of the method's next search trial, and which results the one after it sees."""
        self._numbers.append(number)
        self._schedule.add(self.work.add(trial))
        self.visible += [self._numbers[position] for position in self._schedule.pop_visible()]

    def observe(self, outcomes: Mapping[int, Outcome]) -> None:
        """Let the search see the visible results."""
        if not self.depends_on_results:
            return  # which of so few results are there depends on time
        # A trial whose record was deleted has no outcome when a lost suggestion is made again.
        ended = [number for number in self.visible if number in outcomes]
        for number in ended:
            self.search.observe(number, outcomes[number])
        self._num_observed += len(ended)
        self.visible = [number for number in self.visible if number not in outcomes]


class SeededSampler:
    """A sampler of which each suggestion sees the results that are visible by a virtual clock of its method.

    Results that come early wait. Each suggestion is seeded by (seed, number), so that a resumed sweep suggests what it
    would have. Further seeds of a configuration repeat its first suggestion, and retrained trials repeat the best
    configuration of their method.
    """

    def __init__(
        self,
        budget: Budget,
        settings: SearchSettings,
        make_search: Callable[[Space, Mapping[str, str], int], MethodSearch] | None = None,
    ) -> None:
        """Start without trials; `make_search` makes another search than the space names."""
        self.samples: dict[int, Sample] = {}
        """Searched parameters by trial number."""
        self._budget, self._settings = budget, settings
        self._outcomes: dict[int, Outcome] = {}
        make_search = make_search or _make_search
        self._methods = {
            method: _MethodState(
                make_search(space, settings.objectives, budget.seeds), settings, len(budget.methods)
            )
            for method, space in budget.spaces.items()
        }

    def is_ready(self, number: int) -> bool:
        """Return whether every trial has ended that the suggestion of trial `number`, the next one, depends on."""
        spec = self._budget.spec(number)
        if spec.retrain:
            return all(n in self._outcomes for each in self._budget.configurations(spec.method) for n in each)
        if self._budget.first_trial(number) != number or self._given(spec) is not None:
            return True
        state = self._methods[spec.method]
        return not state.depends_on_results or all(each in self._outcomes for each in state.visible)

    def suggest(self, number: int) -> Sample:
        """Suggest the parameters of trial `number`, the next one."""
        spec = self._budget.spec(number)
        source = self._best_trial(spec.method) if spec.retrain else self._budget.first_trial(number)
        given = self._given(spec)
        if source != number:
            self.add(number, self.samples[source])
        elif given is not None:
            self.add(number, self._budget.to_sample(spec.method, given))
        else:
            state = self._methods[spec.method]
            state.observe(self._outcomes)
            seed = int(digest(self._settings.seed, number)[:8], 16)
            own = {"seed": self._seed(spec)}
            self.samples[number] = state.search.suggest(
                number, seed, lambda configuration: state.work.assess(make_trial(own | configuration))
            )
            state.schedule(number, make_trial(self.params(number)))
        return self.samples[number]

    def add(self, number: int, sample: Sample) -> None:
        """Add trial `number`, the next one, with parameters that were suggested before."""
        self.samples[number] = sample
        spec = self._budget.spec(number)
        if not spec.retrain:
            state = self._methods[spec.method]
            state.search.add(number, sample)
            state.schedule(number, make_trial(self.params(number)))

    def record(self, number: int, outcome: Outcome) -> None:
        """Note how a trial ended."""
        self._outcomes[number] = outcome

    def params(self, number: int) -> dict[str, Any]:
        """Return the parameters of a trial, fixed ones and its seed included."""
        spec, sample = self._budget.spec(number), self.samples[number]
        return {"seed": self._seed(spec), **sample.params, **self._budget.constants(spec.method, sample)}

    def _seed(self, spec: TrialSpec) -> int:
        return (self._settings.seed + spec.seed) % MAX_SEED

    def _given(self, spec: TrialSpec) -> dict[str, Any] | None:
        """Return the configuration of a trial where the grid or the space's `start` has one."""
        if spec.retrain:
            return None
        if self._budget.grids:
            return self._budget.grids[spec.method][spec.configuration]
        start = self._budget.spaces[spec.method].start
        return DEFAULTS | start[spec.configuration] if spec.configuration < len(start) else None

    def _best_trial(self, method: str) -> int:
        """Return a trial of the configuration with the best mean over seeds; of equals the first suggested."""
        # A configuration that is already being retrained stays the best, even if a lost trial does better later.
        retrained = (number for number in self._budget.retrained(method) if number in self.samples)
        best = max(self._budget.configurations(method), key=self._mean_score)
        return next(retrained, best[0])

    def _mean_score(self, numbers: range) -> float:
        """Return the mean main objective of some trials, the higher the better; -inf if one failed."""
        objectives = self._settings.objectives
        main = main_metric(objectives)
        index, sign = list(objectives).index(main), 1 if objectives[main] == "max" else -1
        values = [self._outcomes[number].values if number in self._outcomes else None for number in numbers]
        scores = [sign * each[index] if each else -math.inf for each in values]
        return statistics.fmean(scores)


def _make_search(space: Space, objectives: Mapping[str, str], seeds: int) -> MethodSearch:
    return (
        TpeSearch(space, objectives, seeds)
        if space.sampler == "tpe"
        else CostAwareSearch(space, objectives, seeds)
    )
