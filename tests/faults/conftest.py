"""Fixtures of the tests that kill processes: the sweep, and the same sweep undisturbed."""

from __future__ import annotations

from functools import cache

import pytest

from tests.helpers.consistency import assert_consistent
from tests.helpers.killed_sweep import NAME, KilledSweep
from tests.helpers.run_command import sweep_flags, write_inputs
from tests.helpers.soak_log import SOAK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of a soak."""
    if log := config.stash.get(SOAK, None):
        terminalreporter.section("soak")
        for line in log.table():
            terminalreporter.write_line(line)


SPACE = """
params:
  regime: {choice: [hard, kd, id, pid, sid]}
  student_layers: 2
  epochs_per_layer: {int: [2, 4], when: {regime: [pid, sid]}}
  lambda: {float: [0.1, 1.0], when: {regime: [kd, id, pid, sid]}}
  epochs: 6
  batch_size: 8
teacher: {epochs: 1}
"""
SEED = 11  # its trials: pid, hard, sid, pid, kd, sid, id, sid


@pytest.fixture(scope="session")
def arguments(tmp_path_factory):
    """`arguments(trials, workers, concurrent)`: flags of a sweep whose first trials are always the same."""
    root = write_inputs(tmp_path_factory.mktemp("inputs"), train=400, dev=100)
    flags = sweep_flags(root, root, NAME, SPACE, "--seed", SEED)

    def make(trials: int, workers: int, concurrent: int) -> list[object]:
        return [*flags, "--trials", trials, "--workers-per-trial", workers, "--concurrent", concurrent]

    return make


@pytest.fixture(scope="session")
def undisturbed(environment, arguments, tmp_path_factory):
    """`undisturbed(trials, workers)`: a sweep in which nothing is killed, one trial at a time unless told otherwise."""

    @cache
    def run(trials: int, workers: int, concurrent: int = 1) -> KilledSweep:
        home = tmp_path_factory.mktemp(f"undisturbed-{workers}")
        sweep = KilledSweep(environment, home)
        sweep.run(arguments(trials, workers, concurrent), [], workers)
        assert_consistent(sweep.folder, f"sqlite:///{home / 'mlflow.db'}", trials)
        assert not sweep.left
        return sweep

    return run
