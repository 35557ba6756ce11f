"""Which trial comes next: Optuna through Ray Tune, the same in every run with the same seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from sqlalchemy.exc import DatabaseError

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.distill.epoch_cache import PendingEpoch
from ikd_ray.errors import first_line
from ikd_ray.records import STUDY, STUDY_FILE, TrialRecord, quarantine
from ikd_ray.search.budget import SEEDS, Budget, TrialSpec
from ikd_ray.search.windowed_storage import WindowedStorage
from ikd_ray.storage.store import digest, is_disk_full
from ikd_ray.sweep.results import FAILED, PAUSED, REPORT

STARTUP = 10  # random trials before TPE models what it has seen

METHOD = "method"  # among a trial's parameters in the study on disk, where there are several

Outcome = tuple[TrialState, list[float] | None]
Given = tuple[dict[str, Any], dict[str, BaseDistribution]]  # a trial's searched parameters


def open_study(sweep: Path) -> optuna.storages.RDBStorage:
    """The sweep's study database, which optuna-dashboard can open too.

    One that is damaged goes to `damaged/`: all that a sweep goes on by is in the trials' records, too.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = (sweep / STUDY_FILE).resolve()
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    except (DatabaseError, StorageInternalError) as error:
        if is_disk_full(error):
            raise
        quarantine(sweep, path)
        return optuna.storages.RDBStorage(f"sqlite:///{path}")


def begin_study_again(sweep: Path, objectives: Mapping[str, str]) -> None:
    """A new study of the same trials, of which none has ended; the one that was there goes to `damaged/`."""
    known = optuna.load_study(study_name=STUDY, storage=open_study(sweep)).get_trials(deepcopy=False)
    quarantine(sweep, sweep / STUDY_FILE)
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


def _without_method(trial: FrozenTrial) -> Given:
    """What was searched of a trial in the study on disk."""
    params, distributions = dict(trial.params), dict(trial.distributions)
    params.pop(METHOD, None)
    distributions.pop(METHOD, None)
    return params, distributions


def outcome(metrics: Mapping[str, float], objectives: Iterable[str]) -> Outcome:
    """What the study has of a trial that ended with these metrics; without its objectives it failed."""
    values = [metrics.get(name, math.nan) for name in objectives]
    failed = any(map(math.isnan, values))
    return (TrialState.FAIL, None) if failed else (TrialState.COMPLETE, values)


class OrderedSearch(Searcher):
    """Suggestions that depend on the seed and on results alone, never on which trial ends first.

    Suggestion n sees the results of trials 0 .. n - lag - 1 of its own method, told in order; results that come early
    wait. The sampler starts anew for each suggestion, seeded by (seed, n), so a resumed sweep suggests what it would
    have. A configuration's further seeds are suggested as its first one was, and the best one's when all have ended
    that it was the best of.

    The sampler reads studies in memory, one a method; the one on disk is written once when a trial is suggested
    and once when it ends. What the trials' own records say counts, whatever a killed driver left in the study.
    """

    def __init__(
        self,
        budget: Budget,
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
            budget: what is searched, and what each trial's number stands for.
            concurrent: trials that run at once.
            ended: the records of trials that need not run again, by number.
            trials: how many are to run.
            halt: called with a reason when the study cannot be written; nothing is suggested any more.
        """
        super().__init__()
        self._budget, self._seed, self._objectives = budget, seed, list(objectives)
        self._startup = STARTUP * budget.seeds
        # Room for a trial that takes as long as five beside it, which may have found their epochs trained, before
        # anyone waits for it.
        self._lag = 5 * (concurrent - 1)
        directions = _directions(objectives)
        signs = [1 if direction == "minimize" else -1 for direction in directions]
        self._kept = optuna.create_study(
            storage=storage, study_name=STUDY, directions=directions, load_if_exists=True
        )
        self._seen = {
            method: optuna.create_study(storage=WindowedStorage(signs), directions=directions)
            for method in budget.methods
        }
        self._given: dict[int, Given] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._main = list(objectives).index(main_metric(objectives))
        self._sign = signs[self._main]
        self._worth: dict[int, float] = {}  # ended trial -> its main objective, more is better; failed: -inf
        self._told = dict.fromkeys(budget.methods, 0)
        self._untold: dict[str, list[int]] = {method: [] for method in budget.methods}
        """By method the trials whose outcome the sampler has not seen, in order."""
        self._left = trials  # to be suggested
        self._halt, self._stopped = halt, False
        self._running: dict[str, dict[str, Any]] = {}  # Tune's trial id -> what it was given
        self._unresolved: dict[
            int, dict[str, Any]
        ] = {}  # ended for Tune; `fail` or `retry` says what is next
        self._waiting: list[tuple[dict[str, Any], PendingEpoch | None]] = []
        self._interrupted: list[int] = []
        self._next = 0
        self._go_on(ended)

    def _go_on(self, ended: Mapping[int, TrialRecord]) -> None:
        """Take up what an earlier run left in the study on disk; what that lacks of ended trials it gets now."""
        known = self._kept.get_trials(deepcopy=False)
        for number in range(max([len(known), *(number + 1 for number in ended)])):
            record, place = ended.get(number), self._budget.spec(number)
            if number < len(known):
                self._take(number, place, _without_method(known[number]))
            elif record:
                trial = optuna.trial.FixedTrial(record.params)
                self._budget.spaces[place.method].suggest(trial)
                self._take(number, place, (trial.params, trial.distributions))
                self._keep(number, place)
            else:
                if not place.retrain:
                    self._tell_before(number - self._lag, place.method)
                self._suggest(number, place)
            self._next = number + 1
            if record:
                self._end(number, record.metrics)
            elif number < self._budget.total:
                self._interrupted.append(number)

    # Ray's own annotation forgets `Searcher.FINISHED`.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's `number` and `params`; none while it must wait for others.

        One that comes again has besides what `retry` or `Paused` brought.
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
        for place, (given, pending) in enumerate(self._waiting):
            if pending is None or pending.ready():
                del self._waiting[place]
                return given
        return None

    def _new(self) -> dict[str, Any] | None:
        if self._interrupted:
            number = self._interrupted.pop(0)
            place = self._budget.spec(number)
        else:
            number = self._next
            place = self._budget.spec(number)
            if not self._is_time(number, place):
                return None
            try:
                self._suggest(number, place)
            except StorageInternalError as error:
                self._refused(error)
                return None
            self._next += 1
        self._left -= 1
        params, _ = self._given[number]
        constants = self._budget.spaces[place.method].suggest(optuna.trial.FixedTrial(params))
        seed = (self._seed + place.seed) % SEEDS
        return {
            "number": number,
            "method": place.method,
            "retrained": place.retrain,
            "seeds": self._budget.seed_count(place),
            "params": {"seed": seed, **params, **constants},
        }

    def _is_time(self, number: int, place: TrialSpec) -> bool:
        """Whether all has ended that the suggestion depends on."""
        if place.retrain:
            return all(n in self._worth for each in self._budget.configurations(place.method) for n in each)
        return self._tell_before(number - self._lag, place.method)

    def _suggest(self, number: int, place: TrialSpec) -> None:
        """A new trial, which is in the studies from now on."""
        first = self._best(place.method) if place.retrain else self._budget.first_trial(number)
        if first == number:
            trial = self._ask(number, place)
            self._budget.spaces[place.method].suggest(trial)
            self._given[number] = trial.params, trial.distributions
            self._untold[place.method].append(number)
        else:
            self._take(number, place, self._given[first])
        self._keep(number, place)

    def _take(self, number: int, place: TrialSpec, given: Given) -> None:
        """A trial of which nobody asks the sampler. If it searches, the sampler will see what comes of it."""
        self._given[number] = given
        if not place.retrain:
            _add(self._seen[place.method], *given)
            self._untold[place.method].append(number)

    def _keep(self, number: int, place: TrialSpec) -> None:
        params, distributions = self._given[number]
        if len(self._budget.spaces) > 1:
            params = {METHOD: place.method, **params}
            distributions = {METHOD: CategoricalDistribution(list(self._budget.spaces)), **distributions}
        _add(self._kept, params, distributions)

    def _ask(self, number: int, place: TrialSpec) -> optuna.Trial:
        study = self._seen[place.method]
        if self._budget.grids:
            study.enqueue_trial(self._budget.grids[place.method][place.configuration])
        seed = int(digest(self._seed, number)[:8], 16)
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup)
        return study.ask()

    def _best(self, method: str) -> int:
        """A trial of the configuration whose seeds have the best mean; of equals that of the one suggested first."""

        def worth(numbers: range) -> float:
            return statistics.fmean(self._worth.get(number, -math.inf) for number in numbers)

        # What has begun to be trained again stays the one, also if a trial that was lost then did better since.
        begun = (number for number in self._budget.retrained(method) if number in self._given)
        return next(begun, None) or max(self._budget.configurations(method), key=worth)[0]

    def _tell_before(self, horizon: int, method: str) -> bool:
        """Tell the method's results of trials below `horizon`; false if one that matters is still missing."""
        below = [number for number in self._untold[method] if number < horizon]
        if self._told[method] + len(below) < self._startup:
            # So few tell the sampler nothing, and those that came by now would be a matter of time.
            return True
        if any(number not in self._outcomes for number in below):
            return False
        for number in below:
            state, values = self._outcomes.pop(number)
            self._seen[method].tell(self._budget.position(number), values, state)
            self._untold[method].remove(number)
        self._told[method] += len(below)
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
            self._unresolved[given["number"]] = given
        elif PAUSED in result:
            waits = result[PAUSED]
            self._waiting.append((given | {"warnings": waits.warnings}, waits.pending))
        elif last and last.remaining == 0:
            self._end(given["number"], last.metrics)

    def retry(self, number: int, warnings: list[str]) -> None:
        """A trial that ended badly is handed out again, with what it has warned of so far."""
        self._waiting.append((self._unresolved.pop(number) | {"warnings": warnings}, None))

    def finished(self, number: int, metrics: Mapping[str, float]) -> None:
        """A trial ended badly, but not before it had finished."""
        del self._unresolved[number]
        self._end(number, metrics)

    def fail(self, number: int, final: bool = True) -> None:
        """A trial that ended badly has failed, which is on disk by now; if not for good, a later run tries again."""
        del self._unresolved[number]
        self._end(number, {}, write=final)

    def _end(self, number: int, metrics: Mapping[str, float], write: bool = True) -> None:
        state, values = outcome(metrics, self._objectives)
        self._worth[number] = -self._sign * values[self._main] if values else -math.inf
        if not self._budget.spec(number).retrain:
            self._outcomes[number] = state, values
        if not write:
            return
        try:
            self._kept.tell(number, values, state, skip_if_finished=True)
        except StorageInternalError as error:
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        self._stopped = True
        self._halt(f"the study cannot be written: {first_line(error.__cause__ or error)}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial's epochs say nothing to the sampler."""

    def save(self, checkpoint_path: str) -> None:
        """Tune's snapshots are not what a sweep goes on by: the study is."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
