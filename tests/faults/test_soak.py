"""A soak: random faults strike random sweeps for as long as `--minutes` says.

`pytest tests/faults --minutes 60 --seed 100` runs rounds with the seeds 100, 101, ...; `--minutes 0 --seed 117` runs
the round with the seed 117 alone. A round is a sweep, and in some rounds a second one that shares its cache, in a
random setting; it ends when the sweeps have come to the numbers of an undisturbed one.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

from ikd_ray.records import read_trials
from ikd_ray.storage.remote import open_storage
from ikd_ray.sweep.sync import pull_students, pull_sweep
from tests.helpers.consistency import (
    assert_consistent,
    assert_no_epoch_lost,
    assert_same_students,
    damaged_entries,
    metric_history,
    mlflow_runs,
    saved_epochs,
)
from tests.helpers.faults import Fault, all_faults, find_faketime
from tests.helpers.soak_log import SOAK, RoundResult, SoakLog
from tests.helpers.soak_sweep import Setting, SoakRound, SoakSweep, draw_setting, open_round

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

MAX_FAULTS = 3  # of a round
LEFT_S = 30.0  # seconds in which the folder of a killed process may still be removed


def test_random_faults_lose_nothing_and_double_nothing(pytestconfig, run_round, tmp_path):
    seed, end = pytestconfig.getoption("seed"), time.monotonic() + 60 * pytestconfig.getoption("minutes")
    log = pytestconfig.stash[SOAK] = SoakLog(tmp_path / "soak.jsonl", [fault.name for fault in all_faults()])
    if not find_faketime():
        log.notes.append("no fault of the clock: there is no libfaketime with which Python's sleep works")
    while True:
        result = run_round(seed)
        log.add(result)
        print(f"seed {seed}: {result.seconds:.0f} s, {len(result.struck)} faults", *result.problems, sep="\n")
        if time.monotonic() >= end:
            break
        seed += 1
    failed = [result.seed for result in log.rounds if result.problems]
    assert not failed, f"seeds {failed}"


@pytest.fixture
def run_round(
    environment, arguments, undisturbed, machine, make_bucket, tmp_path
) -> Callable[[int], RoundResult]:
    """`run_round(seed)`: one round from its start to its checks."""

    def run(seed: int) -> RoundResult:
        rng = random.Random(seed)
        fault, setting = draw_first(seed, rng)
        size = (setting.trials, setting.workers, setting.concurrent)
        reference, start = undisturbed(*size).folder, time.monotonic()
        home, bucket = tmp_path / f"round-{seed}", make_bucket() if setting.s3 else ""
        home.mkdir()
        variables = machine(home.name) if bucket else environment
        with open_round(setting, variables, home, arguments(*size), bucket) as round:
            faults = strike(round, fault, rng)
            for sweep in round.sweeps:
                sweep.finish()
            problems = [problem for sweep in round.sweeps for problem in sweep.problems]
            problems += left_folders(round)
            lost = doubled = 0
            for sweep in round.sweeps:
                folder = download(bucket, sweep, home) if bucket else sweep.folder
                lost += count_lost(sweep, folder, round)
                doubled += count_doubled(sweep, folder, round)
                problems += differences(sweep, folder, round, reference, faults)
            statuses = {sweep.name: sweep.statuses for sweep in round.sweeps}
        if not problems:
            shutil.rmtree(home)
        seconds = time.monotonic() - start
        return RoundResult(seed, asdict(setting), round.struck, statuses, seconds, lost, doubled, problems)

    return run


def draw_first(seed: int, rng: random.Random) -> tuple[Fault, Setting]:
    """Return the first fault of a round, each kind in its turn, and a setting in which it is possible."""
    kinds = [fault for fault in all_faults() if "clock" not in fault.name or find_faketime()]
    fault = kinds[seed % len(kinds)]
    while not fault.applies(setting := draw_setting(rng)):
        pass
    return fault, setting


def strike(round: SoakRound, fault: Fault, rng: random.Random) -> list[Fault]:
    """Strike the first fault and further ones, each at a random moment, and return them."""
    possible = [fault for fault in all_faults() if fault.applies(round.setting)]
    faults = [fault, *rng.choices(possible, k=rng.randint(0, MAX_FAULTS - 1))]
    sweep = round.sweep
    for fault in faults:
        victim = ""
        while not (victim or sweep.is_over):
            if moment := sweep.wait_for_moment(rng):
                for one in round.sweeps if fault.spreads else [sweep]:
                    one.note_saved_epochs()
                    one.allowed |= {*fault.statuses}
                victim = fault.strike(round, rng)
                if victim:
                    round.struck.append((fault.name, victim, moment))
            elif sweep.has_ended:
                sweep.go_on()
            else:
                break
    return faults


def left_folders(round: SoakRound) -> list[str]:
    """Return descriptions of Ray's temporary folders that the sweeps left."""
    end = time.monotonic() + LEFT_S
    while (
        found := {path for sweep in round.sweeps for path in sweep.left_folders()}
    ) and time.monotonic() < end:
        time.sleep(1)
    return [f"folder left: {path}" for path in found]


def download(bucket: str, sweep: SoakSweep, home: Path) -> Path:
    """Return the folder of a sweep on a machine that has downloaded it from its bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home / "reader"))
        storage = open_storage(bucket)
        folder = storage.folder / sweep.name
        pull_sweep(storage, folder)
        pull_students(storage, folder, read_trials(folder))
    for lock in (folder / "trials").glob(".*.lock"):
        lock.unlink()
    return folder


def count_lost(sweep: SoakSweep, folder: Path, round: SoakRound) -> int:
    """Return how many trials are missing on disk, in the study and in MLflow, and saved epochs in the cache."""
    trials = round.setting.trials
    on_disk = {trial.number for trial in read_trials(folder) if trial.status == "finished"}
    in_study = {trial.number for trial in study_trials(folder) if trial.state.name == "COMPLETE"}
    finished = [run for run in trial_runs(sweep, round) if run.info.status == "FINISHED"]
    in_mlflow = {run.data.tags["ikd.trial"] for run in finished}
    now = saved_epochs(sweep.output)
    epochs = sum(now.get(path) != seconds for path, seconds in sweep.saved.items())
    return 3 * trials - len(on_disk) - len(in_study) - len(in_mlflow) + epochs


def count_doubled(sweep: SoakSweep, folder: Path, round: SoakRound) -> int:
    """Return how many trials of the study, runs and metrics of an epoch are there once more."""
    client, runs = MlflowClient(round.uri), trial_runs(sweep, round)
    seen = [Counter(trial.number for trial in study_trials(folder))]
    seen.append(Counter(run.data.tags["ikd.trial"] for run in runs))
    for run in runs:
        seen += [Counter(step for step, _ in metric_history(client, run, name)) for name in run.data.metrics]
    return sum(count - 1 for counts in seen for count in counts.values())


def study_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}").trials


def trial_runs(sweep: SoakSweep, round: SoakRound) -> list:
    return mlflow_runs(MlflowClient(round.uri), sweep.name)["trial"]


def assert_intact(output: Path) -> None:
    assert damaged_entries(output) == []


def differences(
    sweep: SoakSweep, folder: Path, round: SoakRound, reference: Path, faults: list[Fault]
) -> list[str]:
    """Return in what records, study, MLflow and cache differ from each other or from the undisturbed sweep."""
    trials, keeps_epochs = round.setting.trials, all(fault.keeps_epochs for fault in faults)
    checks: list[Callable[[], None]] = [
        lambda: assert_consistent(folder, round.uri, trials, warned=not keeps_epochs),
        lambda: assert_same_students(folder, reference, trials),
    ]
    if keeps_epochs:
        checks.append(lambda: assert_no_epoch_lost(sweep.folder, sweep.saved))
        checks.append(lambda: assert_intact(sweep.output))
    found = []
    for check in checks:
        try:
            check()
        except Exception as error:
            found.append(f"{sweep.name}: {type(error).__name__}: {error}")
    return found
