"""Which trial comes next: Optuna through Ray Tune, the same in every run with the same seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from ikd_ray.data.store import digest
from ikd_ray.sweep.space import Space

STUDY = "ikd"
STARTUP = 10  # random trials before TPE models what it has seen
FAILED = "failed"  # key of a result that ends a trial without metrics: the reason


def trial_id(number: int) -> str:
    """A trial's name, the same in the study, in MLflow and on disk."""
    return f"t{number:03d}"


def open_storage(sweep: Path) -> optuna.storages.RDBStorage:
    """The sweep's study database, which optuna-dashboard can open too."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.RDBStorage(f"sqlite:///{(sweep / 'study.db').resolve()}")


class OrderedSearch(OptunaSearch):
    """OptunaSearch whose suggestions depend on the seed and on results alone, never on which trial ends first.

    Suggestion n sees the results of trials 0 .. n - lag - 1, told in order; results that come early wait. The
    sampler starts anew for each suggestion, seeded by (seed, n), so a resumed sweep suggests what it would have.
    """

    def __init__(
        self,
        space: Space,
        objectives: Mapping[str, str],
        seed: int,
        concurrent: int,
        storage: optuna.storages.BaseStorage,
        ended: Mapping[int, Mapping[str, float] | None],
    ) -> None:
        """Opens the study in `storage`, or goes on with the one that is there.

        Args:
            concurrent: trials that run at once.
            ended: what earlier trials of the study came to, by number; nothing for those that failed.
        """
        self._results: dict[int, Mapping[str, Any] | None] = dict(ended)
        self._seed_of_sweep = seed
        # Room for a trial three times as long as its neighbours before anyone waits for it.
        self._lag = 3 * (concurrent - 1)
        super().__init__(
            space.suggest,
            metric=list(objectives),
            mode=list(objectives.values()),
            study_name=STUDY,
            storage=storage,
        )
        known = self._ot_study.get_trials(deepcopy=False)
        self._interrupted = [t for t in known if t.state == TrialState.RUNNING and t.number not in ended]
        self._open = {
            t.number: optuna.trial.Trial(self._ot_study, t._trial_id)
            for t in known
            if t.state == TrialState.RUNNING and t.number in ended
        }
        if space.sampler == "grid" and not known:
            for point in space.grid():
                self._ot_study.enqueue_trial(point)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's `number` and `params`; none while it must wait for a result."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            self._ot_trials[trial_id] = optuna.trial.Trial(self._ot_study, frozen._trial_id)
        else:
            number = self._next_number()
            if not self._tell_before(number - self._lag):
                return None
            seed = int(digest(self._seed_of_sweep, number)[:8], 16)
            self._ot_study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        params = {"seed": self._seed_of_sweep, **super().suggest(trial_id)}
        trial = self._ot_trials[trial_id]
        self._open[trial.number] = trial
        return {"number": trial.number, "params": params}

    def _next_number(self) -> int:
        trials = self._ot_study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if trials:
            return trials[0].number
        return len(self._ot_study.get_trials(deepcopy=False))

    def _tell_before(self, horizon: int) -> bool:
        """Tell the results of trials below `horizon`; false if one that matters is still missing."""
        if horizon >= STARTUP and any(
            number not in self._results for number in self._open if number < horizon
        ):
            return False
        self._tell([n for n in sorted(self._open) if n < horizon and n in self._results])
        return True

    def _tell(self, numbers: list[int]) -> None:
        for number in numbers:
            trial, result = self._open.pop(number), self._results[number]
            values = [result.get(name) for name in self.metric] if result and FAILED not in result else []
            if values and all(value is not None for value in values):
                self._ot_study.tell(trial, values)
            else:
                self._ot_study.tell(trial, state=TrialState.FAIL)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Note how a trial ended; one that was stopped before its end stays open for a later run."""
        whole = error or (result and (FAILED in result or result.get("remaining") == 0))
        if trial_id in self._ot_trials and whole:
            self._results[self._ot_trials[trial_id].number] = None if error else result

    def finish(self) -> None:
        """Tell what still waits to be told; trials without a result stay open for a later run."""
        self._tell([number for number in sorted(self._open) if number in self._results])
