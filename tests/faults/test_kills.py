"""Processes of a sweep are killed; it goes on, loses nothing and comes to the same.

`pytest tests/faults/test_kills.py --kills 20` is the long form; `--kill-seed` chooses the moments.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3

import pytest

from tests.helpers.consistency import assert_consistent, assert_no_epoch_lost
from tests.helpers.killed_sweep import NAME, KilledSweep, draw_kill
from tests.helpers.run_command import saved_epochs, trial_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

IN_TURN = ("driver", "trial", "raylet", "worker")
TRIALS = 8
PER_SWEEP = 3  # kills; of workers, whose trials take long to start, all are of one sweep


def pytest_generate_tests(metafunc):
    if "kills" not in metafunc.fixturenames:
        return
    wanted, seed = (metafunc.config.getoption(option) for option in ("kills", "kill_seed"))
    rng = random.Random(seed)
    kills = [draw_kill(IN_TURN[turn % len(IN_TURN)], rng) for turn in range(wanted)]
    workers = [kill for kill in kills if kill.victim == "worker"]
    others = [kill for kill in kills if kill.victim != "worker"]
    cases = [
        (others[first : first + PER_SWEEP], TRIALS, 1, 1 + turn % 2)
        for turn, first in enumerate(range(0, len(others), PER_SWEEP))
    ]
    if workers:
        # Each trial costs a start of Ray Train: the quick form has no time for eight.
        cases.append((workers, TRIALS if len(workers) > 1 else 2, 2, 1))
    names = ["+".join(kill.victim for kill in case[0]) + f", {case[3]} at once" for case in cases]
    metafunc.parametrize(("kills", "trials", "workers", "concurrent"), cases, ids=names)


def test_nothing_is_lost(
    kills, trials, workers, concurrent, environment, arguments, undisturbed, tell, tmp_path
):
    if workers * concurrent > (os.cpu_count() or 1):
        pytest.skip("one CPU: no room for two workers, or for two trials at once")
    calm = undisturbed(trials, workers)
    sweep = KilledSweep(environment, tmp_path, tell)
    sweep.run(arguments(trials, workers, concurrent), kills, workers)
    assert_consistent(tmp_path, NAME, trials)
    assert_no_epoch_lost(tmp_path, NAME, sweep.kept)
    mine, theirs = trial_metrics(sweep.folder), trial_metrics(calm.folder)
    if concurrent == 1:
        assert mine == theirs
    else:  # with fewer threads each, the last digits differ
        assert {name: trial["params"] for name, trial in mine.items()} == {
            name: trial["params"] for name, trial in theirs.items()
        }
    assert not sweep.left, "\n".join(sweep.left)


DAMAGE = {
    "a trial twice": ("study.db", "INSERT INTO trials (number, study_id, state) VALUES (8, 1, 'COMPLETE')"),
    "a trial that runs": ("study.db", "UPDATE trials SET state = 'RUNNING' WHERE number = 3"),
    "another value": ("study.db", "UPDATE trial_values SET value = value + 1e-9 WHERE trial_id = 4"),
    "a run that runs": ("mlflow.db", "UPDATE runs SET status = 'RUNNING' WHERE name LIKE '%t003'"),
    "a run that is deleted": (
        "mlflow.db",
        "UPDATE runs SET lifecycle_stage = 'deleted' WHERE name LIKE '%t003'",
    ),
    "an epoch twice": (
        "mlflow.db",
        "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics "
        "WHERE key = 'dev/mcc' AND step = 2",
    ),
    "an epoch missing": ("mlflow.db", "DELETE FROM metrics WHERE key = 'train/loss' AND step = 2"),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "a record missing"])
def test_the_check_notices(damage, undisturbed, tmp_path):
    calm = undisturbed(TRIALS, 1)
    shutil.copytree(calm.home, tmp_path / "home")
    folder = tmp_path / "home" / "outputs" / NAME
    assert_consistent(tmp_path / "home", NAME, TRIALS)
    if damage in DAMAGE:
        database, statement = DAMAGE[damage]
        path = (folder if database == "study.db" else tmp_path / "home") / database
        with sqlite3.connect(path) as connection:
            assert connection.execute(statement).rowcount
    else:
        shutil.rmtree(folder / "trials" / "t007")
    with pytest.raises(AssertionError):
        assert_consistent(tmp_path / "home", NAME, TRIALS)


def test_the_check_notices_an_epoch_trained_again(undisturbed):
    calm = undisturbed(TRIALS, 1)
    kept = saved_epochs(calm.home / "outputs")
    assert kept
    assert_no_epoch_lost(calm.home, NAME, kept)
    with pytest.raises(AssertionError, match="trained again"):
        assert_no_epoch_lost(calm.home, NAME, {path: seconds + 1e-6 for path, seconds in kept.items()})
