"""In-memory Optuna storage that exposes the newest results and the Pareto front.

The only module that relies on how Optuna works inside: samplers read a study through `get_all_trials` of its storage,
and `Study.tell` writes through `set_trial_state_values`. If a later version reads or writes in another way, samplers
see all results: suggestions take longer in long sweeps, and `tests/search/test_windowed_storage.py` fails.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Container, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

WINDOW = 250  # newest results that TPE models; its cost grows with their number


class WindowedStorage(optuna.storages.InMemoryStorage):
    """A study in memory that hides ended trials, except the `WINDOW` newest complete ones and the Pareto front.

    TPE gives old trials little weight, but sorts all trials that it sees for every parameter it samples. No call takes
    longer in a study with more hidden trials.
    """

    def __init__(self, signs: Sequence[int]) -> None:
        """Create an empty storage; each objective's sign is 1 if it is minimized, -1 if it is maximized."""
        super().__init__()
        self._signs = signs
        # Ids of the visible trials; a trial may be in the last two at once.
        self._running: set[int] = set()
        self._newest: deque[int] = deque(maxlen=WINDOW)
        self._front: dict[int, tuple[float, ...]] = {}  # its values times `signs`: less is better

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a running trial."""
        trial_id = super().create_new_trial(study_id, template_trial)
        self._running.add(trial_id)
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write a trial's end, and update the window and the front."""
        changed = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._running.discard(trial_id)
        if state == TrialState.COMPLETE:
            assert values is not None
            costs = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
            if not any(_covers(other, costs) for other in self._front.values()):
                self._front = {n: other for n, other in self._front.items() if not _covers(costs, other)}
                self._front[trial_id] = costs
            self._newest.append(trial_id)
        return changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials that are not hidden."""
        trials = (self.get_trial(each) for each in sorted({*self._running, *self._newest, *self._front}))
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found


def _covers(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    """Return whether costs are at least as low as others in every objective."""
    return all(cost <= other for cost, other in zip(costs, others, strict=True))
