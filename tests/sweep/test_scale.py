"""Long sweeps of 200 simulated workers: no trial is lost, and one costs no more the more there are.

`python -m pytest -m long tests/sweep/test_scale.py -s` prints a column of the table in `ikd_ray/bench/README.md`.
"""

from __future__ import annotations

import shutil
import statistics
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ikd_ray.bench.sweeps import DEFAULT_SPACE, write_inputs
from ikd_ray.config import SweepConfig
from ikd_ray.records import SPACE_FILE, STUDY_FILE, load_intact_trials, read_sweep, read_trials
from ikd_ray.search.budget import Budget
from ikd_ray.search.sampler import SearchSettings
from ikd_ray.search.space_file import load_space
from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.sweep.local_processes import run_alone
from ikd_ray.tracking.tracker import TRIAL, Tracker
from tests.helpers.simulated_search import read_states, refuse
from tests.helpers.simulated_sweep import Usage, run_simulated_sweep

pytestmark = [pytest.mark.long, pytest.mark.timeout(6 * 3600)]

WORKERS = 200
LAG = 2 * WORKERS  # trials before the first suggestion that sees results
SEARCH, OTHER, MEMORY = "suggestion, CPU ms a trial", "all else, CPU ms a trial", "memory, kB a trial"
MAX_GROWTH = 1.5  # of each, from the second quarter to the last
SLACK = {SEARCH: 0.0, OTHER: 0.0, MEMORY: 20.0}  # the memory of a process varies by some MB
SUGGESTIONS = 20  # that see all results
METHODS = """\
seeds: 5
best_seeds: 5
methods:
  KD: {regime: kd}
  PID: {regime: pid}
params:
  student_layers: 3
  learning_rate: {float: [5.0e-5, 4.0e-4], log: true}
  temperature: {float: [1, 10], log: true}
  lambda: {float: [0.01, 1], log: true}
  epochs: 3
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a folder with a tiny teacher of six layers, data, and the spaces."""
    folder = tmp_path_factory.mktemp("scale")
    write_inputs(folder)
    shutil.copy(DEFAULT_SPACE, folder)
    (folder / "methods.yaml").write_text(METHODS)
    return folder


@pytest.fixture(scope="module", params=["default", "methods"])
def simulated(request, home) -> tuple[Path, list[Usage]]:
    """Return the folder of an ended sweep, and what its driver used at the quarters."""
    name, trials = request.param, request.config.getoption("trials")
    config = SweepConfig(
        task="cola",
        data_dir=home / "glue",
        teacher=str(home / "teacher"),
        space=home / f"{name}.yaml",
        # Two methods train each of their configurations with five seeds.
        trials=trials // 10 if name == "methods" else trials,
        concurrent=WORKERS,
        output=home / "outputs",
        name=name,
        tracking_uri=f"sqlite:///{home}/{name}.db",
    )
    # From the first suggestion that sees results to the last one: all workers are busy.
    quarters = [LAG - WORKERS + quarter * (trials - LAG) // 4 for quarter in range(5)]
    return config.output / name, run_alone(run_simulated_sweep, config, home / f"{name}.log", quarters)


def test_every_trial_is_in_records_study_and_mlflow_once(simulated, home, command):
    """Some of 200 trials that end at the same time might be lost, or written twice."""
    folder, _ = simulated
    sweep, trials = read_sweep(folder), read_trials(folder)
    ids = [trial.id for trial in trials]
    assert [trial.number for trial in trials] == list(range(sweep.trials))
    assert read_states(folder) == ["COMPLETE"] * sweep.trials
    tracker = Tracker(sweep.settings["tracking_uri"], "cola")
    runs = tracker.find_trial_runs(tracker.find_parent_run(sweep))
    assert sorted(run.data.tags[TRIAL] for run in runs) == sorted(ids)
    checked = command("report", "--check", folder.name, cwd=home).stdout
    ended = f"{len(ids)} of {len(ids)} trials have ended, {len(ids)} of them finished"
    assert f"{ended}; 0 differences" in checked


def test_the_last_trials_cost_no_more(simulated, home, command):
    """A cost that grows with the number of trials would make a long sweep take ever longer."""
    folder, usage = simulated
    costs = [_cost(*pair) for pair in pairwise(usage)]
    second, last = costs[1], costs[3]
    print(f"\n{folder.name}: {read_sweep(folder).trials} trials; second quarter, last quarter")
    for what in second:
        _show(what, second[what], last[what])
    _show("memory of the driver, MB", usage[1].memory / 1e6, usage[-1].memory / 1e6)
    for file in (folder / STUDY_FILE, home / f"{folder.name}.db"):
        _show(f"{file.name}, MB", file.stat().st_size / 1e6)
    _show_commands(folder, home, command)
    limits = {what: MAX_GROWTH * max(second[what], 0) + SLACK[what] for what in second}
    too_much = {what: (last[what], limit) for what, limit in limits.items() if last[what] > limit}
    assert not too_much, f"in the last quarter, and the limit: {too_much}"


def _cost(before: Usage, after: Usage) -> dict[str, float]:
    trials = after.ended - before.ended
    return {
        SEARCH: 1e3 * (after.search_s - before.search_s) / trials,
        OTHER: 1e3 * (after.other_s - before.other_s) / trials,
        MEMORY: (after.memory - before.memory) / 1e3 / trials,
    }


def _show(what: str, *values: float) -> None:
    print(f"{what:<45}" + "".join(f"{value:>10.2f}" for value in values))


def _show_commands(folder: Path, home: Path, command) -> None:
    """Show the seconds of what reads all trials of an ended sweep."""
    for script, *flags in (
        ("report", "--check", folder.name),
        ("report", "--task", "cola", "--name", folder.name),
        ("export", "--task", "cola", "--name", folder.name, "--list"),
        ("cache", "list"),
    ):
        start = time.perf_counter()
        command(script, *flags, cwd=home)
        _show(f"{script}.py {' '.join(flags)}, s", time.perf_counter() - start)
    # The number of trials of a sweep with `best_seeds` is fixed.
    more = 0 if folder.name == "methods" else SUGGESTIONS
    opened, *suggested = time_resumed_queue(folder, home, more)
    _show("opening the queue of the resumed sweep, s", opened)
    if suggested:
        _show("a suggestion that sees all results, s", statistics.median(suggested))


def time_resumed_queue(folder: Path, copy: Path, more: int) -> list[float]:
    """Open the queue of an ended sweep as `--resume` does, with a copy of its study, for `more` trials one by one.

    Returns:
        The seconds for opening it, and for each suggestion.
    """
    shutil.copy(folder / STUDY_FILE, copy)
    start = time.perf_counter()
    sweep, (trials, _) = read_sweep(folder), load_intact_trials(folder)
    budget = Budget(load_space(folder / SPACE_FILE), sweep.settings["trials"] + more)
    ended = {trial.number: trial for trial in trials}
    queue = TrialQueue(copy, budget, SearchSettings.of(sweep), ended, more, refuse)
    seconds = [time.perf_counter() - start]
    for _ in range(more):
        start = time.perf_counter()
        number = queue.next()["number"]
        seconds.append(time.perf_counter() - start)
        queue.finish(number, trials[0].metrics)
    return seconds
