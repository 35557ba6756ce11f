"""Which trial comes next: Optuna through Ray Tune, the same in every run with the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from sqlalchemy.exc import DatabaseError

from ikd_ray.data.store import digest, is_full
from ikd_ray.distill.checkpoint import Busy
from ikd_ray.errors import in_one_line
from ikd_ray.report.records import STUDY, STUDY_FILE, TrialRecord, set_aside
from ikd_ray.sweep.results import FAILED, REPORT, WAITS
from ikd_ray.sweep.space import Space

STARTUP = 10  # random trials before TPE models what it has seen
WINDOW = 250  # the newest results that TPE models; its cost grows with their number

Outcome = tuple[TrialState, list[float] | None]


def open_study(sweep: Path) -> optuna.storages.RDBStorage:
    """The sweep's study database, which optuna-dashboard can open too.

    One that is damaged goes to `damaged/`: all that a sweep goes on by is in the trials' records, too.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = (sweep / STUDY_FILE).resolve()
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    except (DatabaseError, StorageInternalError) as error:
        if is_full(error):
            raise
        set_aside(sweep, path)
        return optuna.storages.RDBStorage(f"sqlite:///{path}")


def begin_study_again(sweep: Path, objectives: Mapping[str, str]) -> None:
    """A new study of the same trials, of which none has ended; the one that was there goes to `damaged/`."""
    known = optuna.load_study(study_name=STUDY, storage=open_study(sweep)).get_trials(deepcopy=False)
    set_aside(sweep, sweep / STUDY_FILE)
    study = optuna.create_study(
        storage=open_study(sweep), study_name=STUDY, directions=_directions(objectives)
    )
    for trial in known:
        _add(study, trial.params, trial.distributions)


def _directions(objectives: Mapping[str, str]) -> list[Literal["minimize", "maximize"]]:
    return ["minimize" if mode == "min" else "maximize" for mode in objectives.values()]


def _add(study: optuna.Study, params: dict[str, Any], distributions: dict[str, Any]) -> None:
    """A running trial as a whole: what is killed leaves no half of one."""
    study.add_trial(
        optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
    )


def outcome(metrics: Mapping[str, float], objectives: Iterable[str]) -> Outcome:
    """What the study has of a trial that ended with these metrics; without its objectives it failed."""
    values = [metrics.get(name, math.nan) for name in objectives]
    failed = any(map(math.isnan, values))
    return (TrialState.FAIL, None) if failed else (TrialState.COMPLETE, values)


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

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
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
        trials = super().get_all_trials(study_id, deepcopy, states)
        return [trial for trial in trials if trial.number not in self._hidden] if self._hidden else trials


def _covers(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return all(cost <= other for cost, other in zip(costs, others, strict=True))


class OrderedSearch(Searcher):
    """Suggestions that depend on the seed and on results alone, never on which trial ends first.

    Suggestion n sees the results of trials 0 .. n - lag - 1, told in order; results that come early wait. The
    sampler starts anew for each suggestion, seeded by (seed, n), so a resumed sweep suggests what it would have.

    Two studies: the sampler reads one in memory, and the one on disk is written once when a trial is suggested
    and once when it ends. What the trials' own records say counts, whatever a killed driver left in the study.
    """

    def __init__(
        self,
        space: Space,
        objectives: Mapping[str, str],
        seed: int,
        concurrent: int,
        storage: optuna.storages.BaseStorage,
        ended: Mapping[int, TrialRecord],
        trials: int,
        halt: Callable[[str], None],
    ) -> None:
        """Opens the study in `storage`, or goes on with the one that is there.

        Args:
            concurrent: trials that run at once.
            ended: the records of trials that need not run again, by number.
            trials: how many are to run.
            halt: called with a reason when the study cannot be written; nothing is suggested any more.
        """
        super().__init__()
        self._space, self._seed, self._objectives = space, seed, list(objectives)
        self._grid = space.grid() if space.sampler == "grid" else []
        # Room for a trial that takes as long as five beside it, which may have found their epochs trained, before
        # anyone waits for it.
        self._lag = 5 * (concurrent - 1)
        directions = _directions(objectives)
        signs = [1 if direction == "minimize" else -1 for direction in directions]
        self._kept = optuna.create_study(
            storage=storage, study_name=STUDY, directions=directions, load_if_exists=True
        )
        self._seen = optuna.create_study(storage=RecentStorage(signs), directions=directions)
        self._outcomes: dict[int, Outcome] = {}
        self._untold: list[int] = []  # trials whose outcome the sampler has not seen, in order
        self._left = trials  # to be suggested
        self._halt, self._stopped = halt, False
        self._running: dict[str, dict[str, Any]] = {}  # Tune's trial id -> what it was given
        self._stumbled: dict[int, dict[str, Any]] = {}  # ended for Tune; `fail` or `again` says what is next
        self._waiting: list[tuple[dict[str, Any], Busy | None]] = []
        self._interrupted: list[tuple[int, dict[str, Any]]] = []  # numbers and parameters
        self._next = 0
        self._go_on(ended)

    def _go_on(self, ended: Mapping[int, TrialRecord]) -> None:
        """Take up what an earlier run left in the study on disk; what that lacks of ended trials it gets now."""
        known = self._kept.get_trials(deepcopy=False)
        for number in range(max([len(known), *(number + 1 for number in ended)])):
            record = ended.get(number)
            if number < len(known):
                params = known[number].params
                _add(self._seen, params, known[number].distributions)
            elif record:
                trial = optuna.trial.FixedTrial(record.params)
                self._space.suggest(trial)
                for study in (self._seen, self._kept):
                    _add(study, trial.params, trial.distributions)
            else:
                self._tell_before(number - self._lag)
                params = self._suggested(number)
            self._untold.append(number)
            self._next = number + 1
            if record:
                self._end(number, record.metrics)
            else:
                self._interrupted.append((number, params))

    # Ray's own annotation forgets `Searcher.FINISHED`.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's `number` and `params`; none while it must wait for others.

        One that comes again has besides what `again` or `Waits` brought.
        """
        if self._stopped:
            return Searcher.FINISHED
        suggestion = self._ready() or (self._left and self._new())
        if suggestion:
            self._running[trial_id] = suggestion
            return suggestion
        if self._stopped:  # the study could not be written
            return Searcher.FINISHED
        return None if self._left or self._waiting or self._running else Searcher.FINISHED

    def _ready(self) -> dict[str, Any] | None:
        for place, (given, busy) in enumerate(self._waiting):
            if busy is None or busy.ready():
                del self._waiting[place]
                return given
        return None

    def _new(self) -> dict[str, Any] | None:
        if self._interrupted:
            number, params = self._interrupted.pop(0)
        else:
            number = self._next
            if not self._tell_before(number - self._lag):
                return None
            try:
                params = self._suggested(number)
            except StorageInternalError as error:
                self._refused(error)
                return None
            self._untold.append(number)
            self._next += 1
        self._left -= 1
        constants = self._space.suggest(optuna.trial.FixedTrial(params))
        return {"number": number, "params": {"seed": self._seed, **params, **constants}}

    def _suggested(self, number: int) -> dict[str, Any]:
        """The searched parameters of a new trial, which is in both studies from now on."""
        trial = self._ask(number)
        self._space.suggest(trial)
        _add(self._kept, trial.params, trial.distributions)
        return trial.params

    def _ask(self, number: int) -> optuna.Trial:
        if number < len(self._grid):
            self._seen.enqueue_trial(self._grid[number])
        seed = int(digest(self._seed, number)[:8], 16)
        self._seen.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        return self._seen.ask()

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

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note how a trial ended; one that was stopped before its end stays open for a later run.

        Of one that ended badly the driver, which hears of it next, says what is to become.
        """
        given, result = self._running.pop(trial_id, None), result or {}
        last = result.get(REPORT)
        if given is None:
            return
        if error or FAILED in result:
            self._stumbled[given["number"]] = given
        elif WAITS in result:
            waits = result[WAITS]
            self._waiting.append((given | {"warnings": waits.warnings}, waits.busy))
        elif last and last.remaining == 0:
            self._end(given["number"], last.metrics)

    def again(self, number: int, warnings: list[str]) -> None:
        """A trial that ended badly is handed out again, with what it has warned of so far."""
        self._waiting.append((self._stumbled.pop(number) | {"warnings": warnings}, None))

    def finished(self, number: int, metrics: Mapping[str, float]) -> None:
        """A trial ended badly, but not before it had finished."""
        del self._stumbled[number]
        self._end(number, metrics)

    def fail(self, number: int, final: bool = True) -> None:
        """A trial that ended badly has failed, which is on disk by now; if not for good, a later run tries again."""
        del self._stumbled[number]
        self._end(number, {}, write=final)

    def _end(self, number: int, metrics: Mapping[str, float], write: bool = True) -> None:
        self._outcomes[number] = state, values = outcome(metrics, self._objectives)
        if not write:
            return
        try:
            self._kept.tell(number, values, state, skip_if_finished=True)
        except StorageInternalError as error:
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        self._stopped = True
        self._halt(f"the study cannot be written: {in_one_line(error.__cause__ or error)}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial's epochs say nothing to the sampler."""

    def save(self, checkpoint_path: str) -> None:
        """Tune's snapshots are not what a sweep goes on by: the study is."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
