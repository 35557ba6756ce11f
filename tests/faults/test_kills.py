"""Processes of a sweep are killed at seeded moments; it goes on, loses nothing and comes to the same numbers.

`pytest tests/faults/test_kills.py --kills 20` is the long form; `--kill-seed` chooses the moments; `-rA` shows them.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3

import pytest

from tests.helpers.consistency import assert_consistent, assert_no_epoch_lost, saved_epochs, trial_metrics
from tests.helpers.killed_sweep import NAME, KilledSweep, draw_kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

URI = "sqlite:///{}/mlflow.db"

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


def test_a_killed_sweep_loses_nothing_and_comes_to_the_same(
    kills, trials, workers, concurrent, environment, arguments, undisturbed, tmp_path
):
    if workers * concurrent > (os.cpu_count() or 1):
        pytest.skip("one CPU: no room for two workers, or for two trials at once")
    reference = undisturbed(trials, workers)
    sweep = KilledSweep(environment, tmp_path)
    sweep.run(arguments(trials, workers, concurrent), kills, workers)
    assert_consistent(sweep.folder, URI.format(tmp_path), trials)
    assert_no_epoch_lost(sweep.folder, sweep.saved)
    mine, theirs = trial_metrics(sweep.folder), trial_metrics(reference.folder)
    if concurrent == 1:
        assert mine == theirs
    else:  # with fewer threads each, the last digits differ
        assert mine.keys() == theirs.keys()
        assert all(mine[name]["params"] == theirs[name]["params"] for name in mine)
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
def test_the_consistency_check_notices(damage, undisturbed, tmp_path):
    reference = undisturbed(TRIALS, 1)
    shutil.copytree(reference.home, tmp_path / "home")
    folder = tmp_path / "home" / "outputs" / NAME
    assert_consistent(folder, URI.format(tmp_path / "home"), TRIALS)
    if damage in DAMAGE:
        database, statement = DAMAGE[damage]
        path = (folder if database == "study.db" else tmp_path / "home") / database
        with sqlite3.connect(path) as connection:
            assert connection.execute(statement).rowcount
    else:
        shutil.rmtree(folder / "trials" / "t007")
    with pytest.raises(AssertionError):
        assert_consistent(folder, URI.format(tmp_path / "home"), TRIALS)


def test_the_consistency_check_notices_an_epoch_trained_again(undisturbed):
    reference = undisturbed(TRIALS, 1)
    saved = saved_epochs(reference.home / "outputs")
    assert saved
    assert_no_epoch_lost(reference.folder, saved)
    with pytest.raises(AssertionError, match="trained again"):
        assert_no_epoch_lost(reference.folder, {path: seconds + 1e-6 for path, seconds in saved.items()})
