"""Which trial comes next: Optuna through Ray Tune, the same in every run with the same seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from ikd_ray.data.store import digest
from ikd_ray.sweep.results import FAILED, REPORT, WAITS, Waits
from ikd_ray.sweep.space import Space

STUDY = "ikd"
STARTUP = 10  # random trials before TPE models what it has seen
WINDOW = 250  # the newest results that TPE models; its cost grows with their number

Outcome = tuple[TrialState, list[float] | None]


def open_storage(sweep: Path) -> optuna.storages.RDBStorage:
    """The sweep's study database, which optuna-dashboard can open too."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.RDBStorage(f"sqlite:///{(sweep / 'study.db').resolve()}")


class RecentStorage(optuna.storages.InMemoryStorage):
    """A study in memory that shows of its complete trials the `WINDOW` newest and the Pareto front.

    TPE itself weighs old trials down, and sorts all that it is shown for every parameter it samples.
    """

    def __init__(self, signs: Sequence[int]) -> None:
        """`signs`: 1 for an objective that is minimized, -1 for one that is maximized."""
        super().__init__()
        self._signs = signs
        self._front: dict[int, tuple[float, ...]] = {}  # trial -> its values times `signs`: less is better
        self._complete: list[int] = []
        self._hidden: set[int] = set()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values=None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        if state == TrialState.COMPLETE:
            number = self.get_trial_number_from_id(trial_id)
            costs = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
            if not any(_covers(other, costs) for other in self._front.values()):
                self._front = {n: other for n, other in self._front.items() if not _covers(costs, other)}
                self._front[number] = costs
            self._complete.append(number)
            self._hidden = set(self._complete[:-WINDOW]) - self._front.keys()
        return changed

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states=None) -> list:
        trials = super().get_all_trials(study_id, deepcopy, states)
        return [trial for trial in trials if trial.number not in self._hidden] if self._hidden else trials


def _covers(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return all(cost <= other for cost, other in zip(costs, others, strict=True))


class OrderedSearch(Searcher):
    """Suggestions that depend on the seed and on results alone, never on which trial ends first.

    Suggestion n sees the results of trials 0 .. n - lag - 1, told in order; results that come early wait. The
    sampler starts anew for each suggestion, seeded by (seed, n), so a resumed sweep suggests what it would have.

    Two studies: the sampler reads one in memory, and the one on disk is written once when a trial is suggested
    and once when it ends.
    """

    def __init__(
        self,
        space: Space,
        objectives: Mapping[str, str],
        seed: int,
        concurrent: int,
        storage: optuna.storages.BaseStorage,
        ended: Mapping[int, Mapping[str, float] | None],
        trials: int,
    ) -> None:
        """Opens the study in `storage`, or goes on with the one that is there.

        Args:
            concurrent: trials that run at once.
            ended: what earlier trials of the study came to, by number; nothing for those that failed.
            trials: how many are to run.
        """
        super().__init__()
        self._space, self._seed, self._objectives = space, seed, list(objectives)
        self._grid = space.grid() if space.sampler == "grid" else []
        # Room for a trial that takes as long as five beside it, which may have found their epochs trained, before
        # anyone waits for it.
        self._lag = 5 * (concurrent - 1)
        signs = [1 if mode == "min" else -1 for mode in objectives.values()]
        directions = ["minimize" if sign > 0 else "maximize" for sign in signs]
        self._kept = optuna.create_study(
            storage=storage, study_name=STUDY, directions=directions, load_if_exists=True
        )
        self._seen = optuna.create_study(storage=RecentStorage(signs), directions=directions)
        self._outcomes: dict[int, Outcome] = {}
        self._untold: list[int] = []  # trials whose outcome the sampler has not seen, in order
        self._left = trials  # to be suggested
        self._stopped = False
        self._running: dict[str, dict[str, Any]] = {}  # Tune's trial id -> what it was given
        self._waiting: list[tuple[dict[str, Any], Waits]] = []
        self._interrupted: list[optuna.trial.FrozenTrial] = []
        self._failed: list[int] = []  # trials whose failure is not on disk yet
        self._go_on(ended)

    def _go_on(self, ended: Mapping[int, Mapping[str, float] | None]) -> None:
        """Take up what an earlier run left in the study on disk."""
        known = self._kept.get_trials(deepcopy=False)
        self._next = len(known)
        for kept in known:
            self._add(self._seen, kept.params, kept.distributions)
            self._untold.append(kept.number)
            if kept.state != TrialState.RUNNING:
                self._outcomes[kept.number] = (kept.state, kept.values)
            elif kept.number in ended:  # the driver died before it heard
                self._end(kept.number, ended[kept.number])
            else:
                self._interrupted.append(kept)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's `number` and `params`; none while it must wait for others.

        One that has waited comes again, with what `Waits.resumption` says.
        """
        self.finish()
        if self._stopped:
            return Searcher.FINISHED
        suggestion = self._ready() or (self._left and self._new())
        if suggestion:
            self._running[trial_id] = suggestion
            return suggestion
        return None if self._left or self._waiting or self._running else Searcher.FINISHED

    def stop(self) -> None:
        """Suggest nothing more: Tune, where no trial runs, listens to nobody but its search."""
        self._stopped = True

    def _ready(self) -> dict[str, Any] | None:
        for place, (given, waits) in enumerate(self._waiting):
            if waits.busy.ready():
                del self._waiting[place]
                return given | waits.resumption()
        return None

    def _new(self) -> dict[str, Any] | None:
        if self._interrupted:
            kept = self._interrupted.pop(0)
            number, params = kept.number, kept.params
            constants = self._space.suggest(optuna.trial.FixedTrial(params))
        else:
            number = self._next
            if not self._tell_before(number - self._lag):
                return None
            trial = self._ask(number)
            constants, params = self._space.suggest(trial), trial.params
            self._add(self._kept, params, trial.distributions)
            self._untold.append(number)
            self._next += 1
        self._left -= 1
        return {"number": number, "params": {"seed": self._seed, **params, **constants}}

    def _ask(self, number: int) -> optuna.Trial:
        if number < len(self._grid):
            self._seen.enqueue_trial(self._grid[number])
        seed = int(digest(self._seed, number)[:8], 16)
        self._seen.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        return self._seen.ask()

    @staticmethod
    def _add(study: optuna.Study, params: dict[str, Any], distributions: dict[str, Any]) -> None:
        """A running trial as a whole: what is killed leaves no half of one."""
        study.add_trial(
            optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        )

    def _tell_before(self, horizon: int) -> bool:
        """Tell the results of trials below `horizon`; false if one that matters is still missing."""
        if horizon < STARTUP:
            return (
                True  # so few tell the sampler nothing, and those that came by now would be a matter of time
            )
        below = [number for number in self._untold if number < horizon]
        if any(number not in self._outcomes for number in below):
            return False
        for number in below:
            state, values = self._outcomes.pop(number)
            self._seen.tell(number, values, state)
            self._untold.remove(number)
        return True

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Note how a trial ended; one that was stopped before its end stays open for a later run."""
        given = self._running.pop(trial_id, None)
        last = (result or {}).get(REPORT)
        if given is None:
            return
        number = given["number"]
        if error or FAILED in (result or {}):
            self._end(number, None)
        elif WAITS in (result or {}):
            self._waiting.append((given, result[WAITS]))
        elif last and last.remaining == 0:
            self._end(number, last.metrics)

    def _end(self, number: int, metrics: Mapping[str, float] | None) -> None:
        values = [(metrics or {}).get(name, math.nan) for name in self._objectives]
        failed = any(map(math.isnan, values))
        self._outcomes[number] = (TrialState.FAIL, None) if failed else (TrialState.COMPLETE, values)
        if failed:
            self._failed.append(number)
        else:
            self._kept.tell(number, values)

    def finish(self) -> None:
        """Write to disk which trials failed.

        Tune tells the search of a failure before the callback that records it: a driver killed between the two
        must find the trial still running, and so run it again.
        """
        for number in self._failed:
            self._kept.tell(number, state=TrialState.FAIL)
        self._failed.clear()

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        """A trial's epochs say nothing to the sampler."""

    def save(self, checkpoint_path: str) -> None:
        """Tune's snapshots are not what a sweep goes on by: the study is."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
