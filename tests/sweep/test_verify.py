"""Verification of a sweep: study, MLflow runs and tables against the records of its trials."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace

import optuna
import pytest
from mlflow import MlflowClient

from ikd_ray.config import make_trial
from ikd_ray.errors import UsageError
from ikd_ray.records import (
    STUDY,
    TrialRecord,
    read_sweep,
    read_trials,
    sweep_lock,
    write_sweep,
    write_test_metrics,
    write_trial,
)
from ikd_ray.report.summary_files import write_summary_files
from ikd_ray.search.budget import Budget
from ikd_ray.search.sampler import SearchSettings
from ikd_ray.search.space_file import load_space
from ikd_ray.search.study import open_storage
from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.verify import verify
from tests.helpers.consistency import metric_history
from tests.helpers.mlflow_sweeps import sweep_record
from tests.helpers.sample_students import make_student, write_teacher_tokenizer
from tests.helpers.terminal import invoke

SPACE = "params:\n  regime: {choice: [kd, pid]}\n  temperature: {float: [1, 10]}\n"
OBJECTIVES = {"dev/mcc": "max", "student/params": "min"}
TRIALS = 4


def metrics(number: int, epoch: int = 2) -> dict[str, float]:
    return {
        "dev/mcc": 0.1 * number + 0.01 * epoch,
        "stage": 1.0,
        "trained_epochs": float(epoch),
        "reused_epochs": 0.0,
        "student/params": 10.0 * (number + 1),
    }


def verify_sweep(folder):
    return verify(SharedStorage(str(folder.parent)), folder, None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the home of a sweep whose records agree: three trials finished, one failed."""
    home = tmp_path_factory.mktemp("check")
    folder = home / "outputs" / "whole"
    folder.mkdir(parents=True)
    (folder / "space.yaml").write_text(SPACE)
    sweep = sweep_record("x", name="whole", trials=TRIALS, objectives=OBJECTIVES)
    sweep.settings["tracking_uri"] = f"sqlite:///{home}/mlflow.db"
    write_sweep(folder, sweep)
    space = load_space(folder / "space.yaml")
    budget = Budget(space, TRIALS)
    queue = TrialQueue(folder, budget, SearchSettings(OBJECTIVES, 0), {}, TRIALS, print)
    for number in range(TRIALS):
        params = make_trial(queue.next()["params"]).params()
        record = TrialRecord(f"t{number:03d}", number, params, [2], "failed", reason="loss became nan")
        if number != 2:
            history = [metrics(number, 1), metrics(number)]
            fields = {"metrics": history[-1], "history": history, "times": [1.0, 2.0]}
            record = replace(record, status="finished", reason="", **fields)
        save_student = make_student(1).save_pretrained if number != 2 else None
        write_trial(folder, record, save_student)
    write_teacher_tokenizer(folder.parent / "cache" / "teachers" / "key")
    verify_sweep(folder)
    return home


@pytest.fixture
def sweep(whole, tmp_path):
    """Return the folder of a copy that the test may change."""
    shutil.copytree(whole, tmp_path / "home")
    folder = tmp_path / "home" / "outputs" / "whole"
    text = (folder / "sweep.json").read_text().replace(str(whole), str(tmp_path / "home"))
    (folder / "sweep.json").write_text(text)
    return folder


def client(sweep):
    return MlflowClient(f"sqlite:///{sweep.parents[1]}/mlflow.db")


def runs(sweep):
    experiment = client(sweep).get_experiment_by_name("ikd-cola").experiment_id
    trial_runs = client(sweep).search_runs([experiment])
    return {run.data.tags.get("ikd.trial", "parent"): run for run in trial_runs}


def study(sweep):
    return optuna.load_study(study_name=STUDY, storage=open_storage(sweep))


def states(sweep):
    return [(trial.state.name, trial.values) for trial in study(sweep).trials]


STATES = [
    ("COMPLETE", [0.1 * number + 0.02, 10.0 * (number + 1)]) if number != 2 else ("FAIL", None)
    for number in range(TRIALS)
]


def test_a_consistent_sweep_is_left_unchanged(sweep):
    before = {name: run.info.run_id for name, run in runs(sweep).items()}
    _, trials, discrepancies = verify_sweep(sweep)
    assert len(trials) == TRIALS
    assert discrepancies == []
    assert states(sweep) == STATES
    assert {name: run.info.run_id for name, run in runs(sweep).items()} == before
    expected = {"parent": "FINISHED"} | {trial.id: trial.status.upper() for trial in trials}
    assert {name: run.info.status for name, run in runs(sweep).items()} == expected


def test_a_recreated_study_keeps_its_suggestions(sweep):
    """A trial without a record has its parameters in the study alone."""
    suggested = [trial.params for trial in study(sweep).trials]
    shutil.rmtree(sweep / "trials" / "t003")
    study_with_other_values(sweep)
    verify_sweep(sweep)
    assert [trial.params for trial in study(sweep).trials] == suggested
    assert states(sweep) == [*STATES[:3], ("RUNNING", None)]


def study_without_result(sweep):
    with sqlite3.connect(sweep / "study.db") as database:
        database.execute("update trials set state = 'RUNNING' where number = 1")
        database.execute(
            "delete from trial_values where trial_id in (select trial_id from trials where number = 1)"
        )


def study_with_other_values(sweep):
    with sqlite3.connect(sweep / "study.db") as database:
        database.execute("update trial_values set value = 0.75 where objective = 0")


def runs_still_running(sweep):
    for name in ("t001", "parent"):
        client(sweep).update_run(runs(sweep)[name].info.run_id, status="RUNNING")


def log_epoch_again(sweep):
    client(sweep).log_metric(runs(sweep)["t000"].info.run_id, "stage", 1.0, step=1)


def miss_test_metrics(sweep):
    """Score the test set while MLflow is away."""
    trials = read_trials(sweep)
    write_test_metrics(
        sweep, [replace(t, metrics=t.metrics | {"test/mcc": 0.4}) for t in trials if t.number == 3]
    )
    write_summary_files(sweep, read_sweep(sweep), read_trials(sweep))


DAMAGES = {
    "study deleted": ("study", lambda sweep: (sweep / "study.db").unlink()),
    "study damaged": ("study", lambda sweep: (sweep / "study.db").write_bytes(b"no database " * 1000)),
    "study without a result": ("study", study_without_result),
    "study with other values": ("study", study_with_other_values),
    "runs still running": ("MLflow", runs_still_running),
    "run deleted": ("MLflow", lambda sweep: client(sweep).delete_run(runs(sweep)["t003"].info.run_id)),
    "epoch logged twice": ("MLflow", log_epoch_again),
    "metrics on test missing": ("MLflow", miss_test_metrics),
    "store deleted": ("MLflow", lambda sweep: (sweep.parents[1] / "mlflow.db").unlink()),
    "front outdated": ("tables", lambda sweep: (sweep / "pareto.json").write_text("{}")),
    "table deleted": ("tables", lambda sweep: (sweep / "trials.csv").unlink()),
}


@pytest.mark.parametrize(("where", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_differences_are_repaired_from_the_records(sweep, where, damage):
    damage(sweep)
    _, _, discrepancies = verify_sweep(sweep)
    assert {discrepancy.where for discrepancy in discrepancies} == {where}
    assert all(discrepancy.repaired for discrepancy in discrepancies)
    assert verify_sweep(sweep)[2] == []
    assert states(sweep) == STATES
    latest = runs(sweep)
    for trial in read_trials(sweep):
        run = latest[trial.id]
        assert run.data.metrics.items() >= trial.metrics.items()
        expected = [(step, epoch["dev/mcc"]) for step, epoch in enumerate(trial.history, start=1)]
        assert metric_history(client(sweep), run, "dev/mcc") == expected


@pytest.mark.parametrize("damage", ["a flipped bit", "another's record", "a file is gone"])
def test_a_damaged_trial_is_moved_away_and_runs_again(sweep, damage):
    record = sweep / "trials" / "t001" / "trial.json"
    if damage == "a flipped bit":
        record.write_text(record.read_text().replace("0.12", "0.13", 1))
    elif damage == "another's record":
        shutil.rmtree(record.parent)
        shutil.copytree(sweep / "trials" / "t000", record.parent)
    else:
        record.unlink()
    _, trials, discrepancies = verify_sweep(sweep)
    assert [trial.id for trial in trials] == ["t000", "t002", "t003"]
    assert (sweep / "damaged" / "t001").is_dir()
    left = [discrepancy.where for discrepancy in discrepancies if not discrepancy.repaired]
    assert left == ["trials", "study", "MLflow"]
    space = load_space(sweep / "space.yaml")
    ended = {trial.number: trial for trial in trials}
    queue = TrialQueue(sweep, Budget(space, TRIALS), SearchSettings(OBJECTIVES, 0), ended, 1, print)
    assert queue.next()["number"] == 1


def test_a_running_sweep_is_refused(sweep):
    with sweep_lock(sweep), pytest.raises(UsageError, match="another process is running that sweep"):
        verify_sweep(sweep)


def test_check_prints_the_differences(sweep, command_line, monkeypatch):
    app = command_line("report")
    monkeypatch.chdir(sweep.parents[1])
    runs_still_running(sweep)
    result = invoke(app, "--check", "whole")
    assert result.exit_code == 0, result.stderr
    assert "MLflow: t001 was RUNNING: repaired\n" in result.stdout
    assert "whole: 4 of 4 trials have ended, 3 of them finished; 2 differences\n" in result.stdout
    shutil.rmtree(sweep / "trials" / "t000")
    result = invoke(app, "--check", "whole")
    assert result.exit_code == 1
    assert "study: t000 had ended, but its record is gone: NOT repaired\n" in result.stdout
    assert "go on: ikd run --resume whole" in result.stdout


@pytest.mark.parametrize("place", ["artifacts", "cache", "trials"])
def test_places_that_cannot_be_written_are_refused_before_anything_is_repaired(
    sweep, tmp_path, command_line, place
):
    more = []
    if place == "artifacts":  # as in the working folder of another user
        uri = f"sqlite:///{tmp_path}/other.db"
        MlflowClient(uri).create_experiment("ikd-cola", artifact_location="/proc/nowhere/1")
        more, words = ["--tracking-uri", uri], "MLflow would write the files of runs to /proc/nowhere/1"
    else:
        path = sweep / "trials" if place == "trials" else sweep.parent / "cache"
        shutil.rmtree(path)
        path.touch()
        words = f"cannot write in {path}"
    result = invoke(command_line("report"), "--check", "whole", "--output", sweep.parent, *more)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    if more:
        assert MlflowClient(more[1]).search_runs(["1"]) == []
