"""Ctrl-C at every phase of a sweep: a clean end within seconds, nothing left behind, and a line to go on with."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from ikd_ray.records import read_trials
from tests.helpers.run_command import (
    SweepExit,
    SweepProcess,
    damaged_entries,
    run_sweep_process,
    saved_epochs,
    sweep_flags,
    trial_metrics,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

SPACE = """
sampler: grid
params: {regime: {choice: [id, kd, hard]}, student_layers: 2, epochs: 3, batch_size: 16}
teacher: {epochs: 2}
"""
LIMIT_S = 10
INTERRUPTED = 130


def arguments(large: Path, home: Path, name: str, *more: object) -> list[object]:
    (home / "space.yaml").write_text(SPACE)
    return [*sweep_flags(large, home / "space.yaml", name), "--concurrent", "1", *more]


def line(words: str, later: float = 0.0):
    """The moment so many seconds after the next line that has these words."""

    def reached(sweep: SweepProcess) -> None:
        sweep.wait_for(words)
        time.sleep(later)

    return reached


def until(condition, words: str = ""):
    """The moment when the condition holds; not looked at before a line has these words."""

    def reached(sweep: SweepProcess) -> None:
        if words:
            sweep.wait_for(words)
        sweep.wait_until(lambda: condition(sweep))

    return reached


def imports(sweep: SweepProcess) -> bool:
    """Whether it has begun to import what the first line needs."""
    return any("pydantic_core" in module.path for module in sweep.processes()[0].memory_maps())


def epochs(home: Path, least: int):
    """Whether so many epochs are saved: then the next one runs."""
    return lambda sweep: len(saved_epochs(home / "outputs")) >= least


def wrongs(phase: str, ended: SweepExit, hint: str) -> list[str]:
    """What a clean end would not have, told so that it can be mended."""
    found, text = [], ended.output + ended.errors
    if ended.status != INTERRUPTED:
        found.append(f"exit status {ended.status}")
    if ended.seconds > LIMIT_S:
        found.append(f"it took {ended.seconds:.1f} s")
    if any(word in text for word in ("Traceback", "Exception ignored", "KeyboardInterrupt")):
        found.append("a traceback")
    if not any(line.startswith("go on: ") and hint in line for line in text.splitlines()):
        found.append(f"no line that tells of {hint!r}")
    if ended.processes:
        found.append(f"processes left: {ended.processes}")
    if ended.folders:
        found.append(f"folders left: {ended.folders}")
    told = f"{phase}: {ended.seconds:.1f} s; {'; '.join(found) or 'clean'}"
    print(told)
    return [f"{told}\n{text}"] if found else []


def go_through(environment, home: Path, given: list[object], name: str, phases) -> list[str]:
    """One command, interrupted in one phase after the other; once the sweep is there, `--resume`."""
    found, made = [], home / "outputs" / name / "sweep.json"
    for phase, reached, group in phases:
        with run_sweep_process(environment, home, ["--resume", name] if made.exists() else given) as sweep:
            reached(sweep)
            sweep.interrupt(group)
            ended = sweep.end()
        found += wrongs(phase, ended, f"--resume {name}" if made.exists() else "the same command")
        if ended.status == 0:  # it went on to its end: there is no further phase to look at
            break
    return found


def assert_finishes(command, home: Path, whole: Path, name: str, given: list[object]) -> None:
    """As if nothing had happened."""
    done = command("run", *given, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert trial_metrics(home / "outputs" / name) == trial_metrics(whole / "outputs" / "whole")
    assert (home / "outputs" / name / "pareto.png").is_file()


@pytest.fixture(scope="module")
def whole(large, command, tmp_path_factory):
    """The home of a sweep that nobody disturbed."""
    home = tmp_path_factory.mktemp("whole")
    done = command("run", *arguments(large, home, "whole"), cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def test_before_the_first_trial_the_same_command_goes_on(large, environment, command, whole, tmp_path):
    given = arguments(large, tmp_path, "cut")
    phases = [
        ("importing", until(imports), False),
        ("reading data and teacher", line("reading data and teacher ...", 1), False),
        ("starting Ray, at once", line("teacher: "), False),
        ("starting Ray", until(lambda sweep: len(sweep.processes()) > 1, "teacher: "), False),
        ("starting Ray, later", line("teacher: ", 3), True),
        ("opening MLflow", line("opening MLflow ...", 0.5), False),
        ("tokenizing", line("tokenizing ..."), False),
        ("fine-tuning", line("teacher epoch 1/"), False),
        ("storing targets", line("storing the teacher's targets ...", 0.5), True),
        ("measuring latency", line("measuring students' latency ..."), False),
        ("opening the sweep", line("measuring students' latency: done"), False),
    ]
    found = go_through(environment, tmp_path, given, "cut", phases)
    assert not found, "\n".join(found)
    made = (tmp_path / "outputs/cut/sweep.json").exists()
    assert_finishes(command, tmp_path, whole, "cut", ["--resume", "cut"] if made else given)


def with_cache_of(whole: Path, home: Path) -> None:
    """What trials share, but none of their epochs."""
    shutil.copytree(whole / "outputs/cache", home / "outputs/cache", ignore=shutil.ignore_patterns("stages"))


def test_a_sweep_that_is_there_is_resumed(large, environment, command, whole, tmp_path):
    with_cache_of(whole, tmp_path)
    phases = [
        ("before the first epoch", line("trials, 1 at a time", 2), False),
        ("a trial starts", line("started: "), True),
        ("mid-epoch", until(epochs(tmp_path, 1), "started: "), False),
        ("mid-epoch, the whole group", until(epochs(tmp_path, 2), "started: "), True),
        ("between trials", line("finished in"), False),
    ]
    found = go_through(environment, tmp_path, arguments(large, tmp_path, "cut"), "cut", phases)
    assert not found, "\n".join(found)
    assert_finishes(command, tmp_path, whole, "cut", ["--resume", "cut"])


def busy(sweep: SweepProcess) -> list[psutil.Process]:
    """Ray's processes that are at work for a trial; what each is busy with is its name."""
    names = {process: "".join(process.cmdline()[:1]) for process in sweep.processes()}
    others = ("IDLE", "Agent")
    return [
        process
        for process, name in names.items()
        if name.startswith("ray::") and not any(other in name for other in others)
    ]


def test_an_epoch_that_lasts_is_not_waited_for(large, environment, command, whole, tmp_path):
    """The trial's process does not get anywhere any more: as far as others can see, an epoch of an hour."""
    with_cache_of(whole, tmp_path)
    with run_sweep_process(environment, tmp_path, arguments(large, tmp_path, "cut")) as sweep:
        until(epochs(tmp_path, 1), "started: ")(sweep)
        [trial] = busy(sweep)
        trial.suspend()
        sweep.interrupt()
        ended = sweep.end()
    found = wrongs("an epoch that lasts", ended, "--resume cut")
    assert not found, "\n".join(found)
    assert_finishes(command, tmp_path, whole, "cut", ["--resume", "cut"])


@pytest.mark.parametrize(("words", "later"), [("sweep ended", 0.1), ("Pareto front", 0.0), ("export: ", 0.5)])
def test_when_the_trials_are_done(large, environment, command, whole, tmp_path, words, later):
    """While plots and summary are made, and while Ray goes down: cut off, or done in a moment anyway."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with run_sweep_process(environment, tmp_path, arguments(large, tmp_path, "again")) as sweep:
        line(words, later)(sweep)
        sweep.interrupt()
        ended = sweep.end()
    if ended.status == 0:
        assert ended.seconds <= LIMIT_S
        assert (ended.processes, ended.folders) == ([], set())
        assert (ended.errors, "export: " in ended.output) == ("", True)
    else:
        found = wrongs(words, ended, "--resume again")
        assert not found, "\n".join(found)
    assert_finishes(command, tmp_path, whole, "again", ["--resume", "again"])


def test_while_all_trials_wait_for_another_sweep(large, environment, command, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    stages = list((tmp_path / "outputs/cache/stages").glob("[!.]*"))
    with ExitStack() as held:
        for stage in stages:
            held.enter_context(FileLock(stage.parent / ".locks" / stage.name))
            for epoch in stage.iterdir():
                shutil.rmtree(epoch)
        phases = [("waiting", line("waits for epoch 1", 1), False)]
        found = go_through(environment, tmp_path, arguments(large, tmp_path, "waits"), "waits", phases)
    assert not found, "\n".join(found)
    assert_finishes(command, tmp_path, whole, "waits", ["--resume", "waits"])


def test_a_trial_of_two_workers(large, environment, command, whole, tmp_path):
    with_cache_of(whole, tmp_path)
    given = [*arguments(large, tmp_path, "two", "--workers-per-trial", 2), "--trials", 1]
    phases = [
        ("two workers start", line("started: ", 4), False),
        ("two workers, mid-epoch", until(epochs(tmp_path, 1), "started: "), False),
        ("two workers, the whole group", until(epochs(tmp_path, 2), "started: "), True),
    ]
    found = go_through(environment, tmp_path, given, "two", phases)
    assert not found, "\n".join(found)
    done = command("run", "--resume", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    [trial] = read_trials(tmp_path / "outputs" / "two")
    assert trial.status == "finished"
    assert len(trial.history) == 3


@pytest.mark.parametrize("pause", [0.05, 0.5, 2.0])
def test_a_second_ctrl_c_harms_nothing(large, environment, command, whole, tmp_path, pause):
    with_cache_of(whole, tmp_path)
    with run_sweep_process(environment, tmp_path, arguments(large, tmp_path, "cut")) as sweep:
        sweep.wait_for("started: ")
        until(epochs(tmp_path, 1))(sweep)
        sweep.interrupt()
        time.sleep(pause)
        sweep.interrupt()
        ended = sweep.end()
    assert ended.seconds <= LIMIT_S
    assert ended.status != 0
    assert (ended.processes, ended.folders) == ([], set()), ended.errors
    assert damaged_entries(tmp_path / "outputs") == []
    assert_finishes(command, tmp_path, whole, "cut", ["--resume", "cut"])
