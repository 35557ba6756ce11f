"""The exit status of a sweep and what the user is told, with trials that are fakes."""

from __future__ import annotations

import io
import shutil
import sqlite3
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from optuna.exceptions import StorageInternalError

from ikd_ray.records import TrialRecord, read_sweep
from ikd_ray.search.space import Choice, Space
from ikd_ray.sweep import runner
from ikd_ray.sweep.trial_context import TUNE_FOLDER
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.console import Console
from tests.helpers.sample_sweep import make_sweep
from tests.helpers.simulated_sweep import SIMULATED_CLUSTER

TRIALS = 2
STUDY_ERROR = StorageInternalError("An exception is raised during the commit.")
STUDY_ERROR.__cause__ = sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*statuses)`: the exit status of a sweep of two trials that ended so, or raised, and its output."""
    folder, output = make_sweep(tmp_path / "outputs", TRIALS, weights=False), io.StringIO()
    config = SimpleNamespace(name="first", uri=None, output="outputs", workers_per_trial=1, minutes=None)
    record = read_sweep(folder)
    inputs = {"dataset": Mock(generated=False, test=None), "teacher_source": Mock(), "warnings": []}
    space = Space(params={"regime": Choice(values=("kd", "pid", "sid"))})
    inputs["budget"] = SimpleNamespace(spaces={"": space})
    request, console = SimpleNamespace(folder=folder, config=config, output=Mock(), **inputs), Console(output)

    def run(*statuses: str, error: BaseException | None = None, complete: bool = True) -> tuple[int, str]:
        metrics = {"dev/mcc": 0.5, "student/params": 100.0}
        params = {"regime": "kd", "student_layers": 1}
        trials = [
            TrialRecord(f"t{i:03}", i, params, [4], status, metrics if status == "finished" else {})
            for i, status in enumerate(statuses)
        ]

        def run_trials(_: object) -> list[TrialRecord]:
            if error:
                raise error
            return trials

        tracker = Mock(uri="sqlite:///mlflow.db", experiment_name="ikd-cola", redact_error=str)
        async_tracker = Mock(complete=complete, error=None)
        sweep = runner._Sweep(request, record, Mock(), tracker, async_tracker, Mock(), console)
        monkeypatch.setattr(runner._Sweep, "_run_trials", run_trials)
        monkeypatch.setattr(runner, "ray_cluster", lambda nested: nullcontext(SIMULATED_CLUSTER))
        monkeypatch.setattr(runner, "pull_students", Mock())
        monkeypatch.setattr(runner, "publish_front", Mock())
        monkeypatch.setattr(runner, "_run_locked", lambda *_: sweep.run())
        return runner.run(request, "", console).status, output.getvalue()

    run.config = config
    return run


@pytest.mark.parametrize(
    ("statuses", "status"),
    [(("finished", "failed"), 0), (("failed", "failed"), 1), (("finished",), 130), (("failed",), 130)],
)
def test_the_exit_status_is_that_of_the_trials(run, statuses, status):
    found, output = run(*statuses)
    assert found == status
    assert ("--resume first" in output) == (len(statuses) < TRIALS)
    assert ("ikd export --task cola --name first" in output) == ("finished" in statuses)


@pytest.mark.parametrize(("interrupted", "status"), [(False, 0), (True, 130)])
def test_time_completes_a_sweep_unless_the_user_interrupts_it(
    run, tmp_path, monkeypatch, interrupted, status
):
    run.config.minutes = 5.0
    monkeypatch.setattr(interrupts, "was_interrupted", lambda: interrupted)
    found, output = run("finished")  # of two trials
    assert found == status
    assert "--resume first" in output
    recorded = read_sweep(tmp_path / "outputs" / "first")
    assert bool(recorded.settings.get("time_is_up")) == (not interrupted)


def test_regimes_that_no_trial_has_are_named(run):
    assert "not tried" not in run("finished")[1], "--resume may try them"
    assert "not tried: regime pid, sid; give more --trials" in run("finished", "finished")[1]


def test_what_tune_left_is_removed_also_where_no_trial_was_left_to_run(run, tmp_path):
    left = tmp_path / "outputs" / "first" / TUNE_FOLDER
    (left / "tune").mkdir(parents=True)
    run("finished", "finished")
    assert not left.exists()


def test_a_signal_to_the_whole_group_counts_as_an_interrupt(run, monkeypatch):
    """Ray's processes end by it, too, and that may be noticed first."""
    monkeypatch.setattr(runner.interrupts, "was_interrupted", lambda: True)
    found, output = run(error=runner.ClusterLostError())
    assert found == 130
    assert "interrupted" in output
    # The sweep itself interrupts Tune where it cannot go on.
    found, output = run(error=runner.SweepStoppedError("the disk is full"))
    assert found == 1
    assert "interrupted" not in output.splitlines()[-1]


def test_an_mlflow_store_that_is_away_is_a_warning(run):
    found, output = run("finished", "finished", complete=False)
    assert found == 0
    assert "MLflow lacks a part of this sweep (it does not answer)" in output
    assert "--resume first delivers it" in output


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "no space left on device"),
        (FileNotFoundError(2, "No such file", "outputs/cache/x"), 1, "No such file: 'outputs/cache/x'"),
        (STUDY_ERROR, 1, "OperationalError: disk I/O error"),
        (runner.SweepStoppedError("3 trials in a row lost their process"), 1, "lost their process"),
        (runner.ClusterLostError(), 1, "Ray's own processes died"),
    ],
)
def test_a_sweep_that_cannot_go_on_says_why_and_how_to_resume_it(run, capsys, error, status, words):
    found, output = run(error=error)
    assert found == status
    assert words in output + capsys.readouterr().err
    assert "go on: ikd run --resume first" in output


def test_an_unexpected_error_is_raised_after_saying_how_to_resume(run, capsys):
    with pytest.raises(ZeroDivisionError):
        run(error=ZeroDivisionError())
    assert "the sweep ended with an unexpected error" in capsys.readouterr().err


def test_a_deleted_sweep_leaves_its_name_free(run, tmp_path, capsys):
    folder = tmp_path / "outputs" / "first"
    shutil.rmtree(folder)
    (folder / TUNE_FOLDER).mkdir(parents=True)
    found, output = run(error=runner.SweepStoppedError("t000: deleted while the sweep ran"))
    assert found == 1
    assert "deleted while the sweep ran" in capsys.readouterr().err
    assert "go on: the same command does" in output
    assert not folder.exists()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (
            "sqlite:///my runs.db",
            "sqlite:///my runs.db, experiment e: mlflow ui --backend-store-uri 'sqlite:///my runs.db'",
        ),
        ("http://ann:secret@host", "http://host, experiment e"),
    ],
)
def test_the_summary_says_how_to_see_the_sweep_in_mlflow(uri, shown):
    assert runner._describe_store(Mock(uri=uri, experiment_name="e")) == shown
