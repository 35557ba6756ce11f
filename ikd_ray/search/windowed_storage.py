"""In-memory Optuna storage that exposes the newest results and the Pareto front.

The only module that relies on how Optuna works inside: samplers read a study through `get_all_trials` of its storage,
and `Study.tell` writes through `set_trial_state_values`. If a later version reads or writes in another way, samplers
see all results: suggestions take longer in long sweeps, and `tests/search/test_windowed_storage.py` fails.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

WINDOW = 250  # newest results that TPE models; its cost grows with their number


class WindowedStorage(optuna.storages.InMemoryStorage):
    """A study in memory that hides complete trials, except the `WINDOW` newest and the Pareto front.

    TPE gives old trials little weight, but sorts all trials that it sees for every parameter it samples.
    """

    def __init__(self, signs: Sequence[int]) -> None:
        """Create an empty storage; each objective's sign is 1 if it is minimized, -1 if it is maximized."""
        super().__init__()
        self._signs = signs
        self._front: dict[int, tuple[float, ...]] = {}  # trial -> its values times `signs`: less is better
        self._complete: list[int] = []
        self._hidden: set[int] = set()

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write a trial's end, and update the window and the front."""
        changed = super().set_trial_state_values(trial_id, state, values)
        if state == TrialState.COMPLETE:
            number = self.get_trial_number_from_id(trial_id)
            assert values is not None
            costs = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
            if not any(_covers(other, costs) for other in self._front.values()):
                self._front = {n: other for n, other in self._front.items() if not _covers(costs, other)}
                self._front[number] = costs
            self._complete.append(number)
            self._hidden = set(self._complete[:-WINDOW]) - self._front.keys()
        return changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials that are not hidden."""
        trials = super().get_all_trials(study_id, deepcopy, states)
        return [trial for trial in trials if trial.number not in self._hidden] if self._hidden else trials


def _covers(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    """Return whether costs are at least as low as others in every objective."""
    return all(cost <= other for cost, other in zip(costs, others, strict=True))
