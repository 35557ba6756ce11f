"""Ctrl-C in every phase of a sweep: it ends within seconds, leaves nothing behind and says how to go on."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from ikd_ray.records import read_trials
from tests.helpers.consistency import damaged_entries, trial_metrics
from tests.helpers.run_command import SweepExit, SweepProcess, run_sweep_process, sweep_flags, wait_for_epochs

pytestmark = pytest.mark.long

SPACE = """
sampler: grid
params: {regime: {choice: [id, kd, hard]}, student_layers: 2, epochs: 3, batch_size: 16}
teacher: {epochs: 2}
"""
LIMIT_S = 10
INTERRUPTED = 130


def arguments(large: Path, home: Path, name: str, *more: object) -> list[object]:
    return sweep_flags(large, home, name, SPACE, "--concurrent", 1, *more)


def line(words: str, delay: float = 0.0):
    """Return a wait for `delay` seconds after the next line with these words."""

    def wait(sweep: SweepProcess) -> None:
        sweep.wait_for(words)
        time.sleep(delay)

    return wait


def until(condition, after: str = ""):
    """Return a wait for a condition, which is not looked at before a line has the words `after`."""

    def wait(sweep: SweepProcess) -> None:
        if after:
            sweep.wait_for(after)
        sweep.wait_until(lambda: condition(sweep))

    return wait


def imports(sweep: SweepProcess) -> bool:
    """Return whether the process has begun to import what the first line needs."""
    return any("pydantic_core" in module.path for module in sweep.tree.alive()[0].memory_maps())


def epochs(home: Path, count: int):
    """Return a wait until a trial has started, and `count` epochs are saved."""
    return lambda sweep: wait_for_epochs(sweep, home / "outputs", count)


def faults(phase: str, ended: SweepExit, hint: str) -> list[str]:
    """Return a description of what a clean end would not have, if anything."""
    found = []
    if ended.status != INTERRUPTED:
        found.append(f"exit status {ended.status}")
    if ended.seconds > LIMIT_S:
        found.append(f"it took {ended.seconds:.1f} s")
    if any(word in ended.text for word in ("Traceback", "Exception ignored", "KeyboardInterrupt")):
        found.append("a traceback")
    if not ended.tells_to_resume(hint):
        found.append(f"no line that tells of {hint!r}")
    if ended.processes:
        found.append(f"processes left: {ended.processes}")
    if ended.folders:
        found.append(f"folders left: {ended.folders}")
    summary = f"{phase}: {ended.seconds:.1f} s; {'; '.join(found) or 'clean'}"
    print(summary)
    return [f"{summary}\n{ended.text}"] if found else []


def assert_interruptible(environment, home: Path, given: list[object], name: str, phases) -> None:
    """Interrupt one command in each phase, with `--resume` once the sweep has a record: each ends cleanly."""
    found, record = [], home / "outputs" / name / "sweep.json"
    for phase, wait, group in phases:
        with run_sweep_process(environment, home, ["--resume", name] if record.exists() else given) as sweep:
            wait(sweep)
            sweep.interrupt(group)
            ended = sweep.end()
        found += faults(phase, ended, f"--resume {name}" if record.exists() else "the same command")
        if ended.status == 0:  # it came to its end: there is no further phase
            break
    assert not found, "\n".join(found)


def assert_finishes(command, home: Path, whole: Path, name: str, given: list[object]) -> None:
    """Assert that the sweep goes on to the numbers of one that nobody interrupted."""
    command("run", *given, cwd=home)
    assert trial_metrics(home / "outputs" / name) == trial_metrics(whole / "outputs" / "whole")
    assert (home / "outputs" / name / "pareto.png").is_file()


@pytest.fixture(scope="module")
def whole(large, command, tmp_path_factory):
    """Return the home of a sweep that nobody interrupted."""
    home = tmp_path_factory.mktemp("whole")
    command("run", *arguments(large, home, "whole"), cwd=home)
    return home


@pytest.fixture
def prepared(whole, tmp_path) -> Path:
    """Return a home with the teacher and its targets, but no epoch of a trial."""
    ignored = shutil.ignore_patterns("stages")
    shutil.copytree(whole / "outputs/cache", tmp_path / "outputs/cache", ignore=ignored)
    return tmp_path


def test_before_the_first_trial_the_same_command_goes_on(large, environment, command, whole, tmp_path):
    given = arguments(large, tmp_path, "cut")
    phases = [
        ("importing", until(imports), False),
        ("reading data and teacher", line("reading data and teacher ...", 1), False),
        ("starting Ray, at once", line("teacher: "), False),
        ("starting Ray", until(lambda sweep: len(sweep.tree.alive()) > 1, "teacher: "), False),
        ("starting Ray, later", line("teacher: ", 3), True),
        ("opening MLflow", line("opening MLflow ...", 0.5), False),
        ("tokenizing", line("tokenizing ..."), False),
        ("fine-tuning", line("teacher epoch 1/"), False),
        ("storing targets", line("storing the teacher's targets ...", 0.5), True),
        ("measuring latency", line("measuring students' latency ..."), False),
        ("opening the sweep", line("measuring students' latency: done"), False),
    ]
    assert_interruptible(environment, tmp_path, given, "cut", phases)
    recorded = (tmp_path / "outputs/cut/sweep.json").exists()
    assert_finishes(command, tmp_path, whole, "cut", ["--resume", "cut"] if recorded else given)


def test_a_sweep_with_a_record_is_resumed(large, environment, command, whole, prepared):
    phases = [
        ("before the first epoch", line("trials, 1 at a time", 2), False),
        ("a trial starts", line("started: "), True),
        ("mid-epoch", epochs(prepared, 1), False),
        ("mid-epoch, the whole group", epochs(prepared, 2), True),
        ("between trials", line("finished in"), False),
    ]
    assert_interruptible(environment, prepared, arguments(large, prepared, "cut"), "cut", phases)
    assert_finishes(command, prepared, whole, "cut", ["--resume", "cut"])


def test_a_trial_that_makes_no_progress_is_not_waited_for(large, environment, command, whole, prepared):
    with run_sweep_process(environment, prepared, arguments(large, prepared, "cut")) as sweep:
        wait_for_epochs(sweep, prepared / "outputs")
        [trial] = sweep.tree.find("trial")
        trial.suspend()
        sweep.interrupt()
        ended = sweep.end()
    found = faults("suspended trial", ended, "--resume cut")
    assert not found, "\n".join(found)
    assert_finishes(command, prepared, whole, "cut", ["--resume", "cut"])


@pytest.mark.parametrize(("words", "delay"), [("sweep ended", 0.1), ("Pareto front", 0.0), ("export: ", 0.5)])
def test_after_the_last_trial(large, environment, command, whole, tmp_path, words, delay):
    """Plots and summary are made and Ray is shut down: it is cut off, or ends in a moment anyway."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with run_sweep_process(environment, tmp_path, arguments(large, tmp_path, "again")) as sweep:
        line(words, delay)(sweep)
        sweep.interrupt()
        ended = sweep.end()
    if ended.status == 0:
        assert ended.seconds <= LIMIT_S
        assert (ended.processes, ended.folders) == ([], set())
        assert (ended.errors, "export: " in ended.output) == ("", True)
    else:
        found = faults(words, ended, "--resume again")
        assert not found, "\n".join(found)
    assert_finishes(command, tmp_path, whole, "again", ["--resume", "again"])


def test_while_all_trials_wait_for_another_sweep(large, environment, command, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    stages = list((tmp_path / "outputs/cache/stages").glob("[!.]*"))
    with ExitStack() as locks:
        for stage in stages:
            locks.enter_context(FileLock(stage.parent / ".locks" / stage.name))
            for epoch in stage.iterdir():
                shutil.rmtree(epoch)
        phases = [("waiting", line("waits for epoch 1", 1), False)]
        given = arguments(large, tmp_path, "waits")
        assert_interruptible(environment, tmp_path, given, "waits", phases)
    assert_finishes(command, tmp_path, whole, "waits", ["--resume", "waits"])


def test_a_trial_of_two_workers(large, environment, command, prepared):
    given = [*arguments(large, prepared, "two", "--workers-per-trial", 2), "--trials", 1]
    phases = [
        ("two workers start", line("started: ", 4), False),
        ("two workers, mid-epoch", epochs(prepared, 1), False),
        ("two workers, the whole group", epochs(prepared, 2), True),
    ]
    assert_interruptible(environment, prepared, given, "two", phases)
    command("run", "--resume", "two", cwd=prepared)
    [trial] = read_trials(prepared / "outputs" / "two")
    assert (trial.status, len(trial.history)) == ("finished", 3)


@pytest.mark.parametrize("pause", [0.05, 0.5, 2.0])
def test_a_second_ctrl_c_does_no_harm(large, environment, command, whole, prepared, pause):
    with run_sweep_process(environment, prepared, arguments(large, prepared, "cut")) as sweep:
        wait_for_epochs(sweep, prepared / "outputs")
        sweep.interrupt()
        time.sleep(pause)
        sweep.interrupt()
        ended = sweep.end()
    assert ended.seconds <= LIMIT_S
    assert ended.status != 0
    assert (ended.processes, ended.folders) == ([], set()), ended.errors
    assert damaged_entries(prepared / "outputs") == []
    assert_finishes(command, prepared, whole, "cut", ["--resume", "cut"])
