"""A sweep on one table and a test table: dev is drawn, and the test set is scored at the end."""

from __future__ import annotations

import json

import pytest

from ikd_ray.records import metrics_on_test, read_trials
from tests.helpers.consistency import assert_consistent, trial_metrics
from tests.helpers.tiny_models import write_teacher
from tests.sweep.conftest import TASK, Swept, run_to_its_end, write_reviews
from tests.sweep.test_sweep_inputs import accuracy

OWN = TASK + "files: {train: all.csv, test: test.csv}\nsplit: 0.1\nlanguage: en\n"
SPACE = """\
sampler: grid
params:
  regime: kd
  student_layers: {choice: [1, 2]}
  learning_rate: {choice: [3.0e-3, 1.0e-3]}
  epochs: 2
  batch_size: 16
teacher: {epochs: 3, learning_rate: 3.0e-3}
"""
DRAWN = (
    "folder tables (reviews, 270 train / 30 dev / 40 test); dev: 30 of 300 rows, drawn stratified with seed 0"
)
NAMES = {f"test/{name}" for name in ("accuracy", "macro_f1", "nll")}


@pytest.fixture(scope="module")
def own_data(environment, tmp_path_factory) -> tuple[Swept, list[tuple[str, str]]]:
    """Run a sweep; return it and (text, class) of each test example."""
    home = tmp_path_factory.mktemp("own")
    write_teacher(home / "tiny")
    (home / "tables").mkdir()
    write_reviews(home / "tables" / "all.csv", 300, seed=0)
    test = write_reviews(home / "tables" / "test.csv", 40, seed=1)
    (home / "own.yaml").write_text(OWN)
    (home / "space.yaml").write_text(SPACE)
    flags = ["--task", "own.yaml", "--data-dir", "tables", "--teacher", "tiny", "--space", "space.yaml"]
    swept = Swept(home, "drawn", [], task="reviews")
    return run_to_its_end(swept, environment, [*flags, "--name", "drawn"]), test


@pytest.mark.slow
def test_a_sweep_draws_dev_and_ends_with_the_test_set(own_data, environment, call, tmp_path):
    """The journey from one table to an exported student: no other test sees all of it."""
    swept, test = own_data
    [ended] = swept.exits
    assert (ended.status, ended.errors) == (0, ""), ended.text
    assert f"data: {DRAWN}" in ended.output
    assert "scoring the front's students on the test set: done" in ended.output
    record, front = swept.record, {member["id"] for member in swept.front}
    assert record.data["description"] == DRAWN
    assert record.data["test"]["examples"] == 40
    assert set(metrics_on_test(record.teacher["metrics"])) == NAMES
    assert not any(name.startswith("test/") for name in record.objectives)
    for trial in swept.trials:
        assert set(metrics_on_test(trial.metrics)) == (NAMES if trial.id in front else set())
        assert not any(metrics_on_test(epoch) for epoch in trial.history)
    assert_consistent(swept.folder, swept.uri, trials=4, task="reviews")
    [parent], [teacher] = swept.runs("sweep"), swept.runs("teacher")
    assert parent.data.metrics["teacher/test/macro_f1"] == record.teacher["metrics"]["test/macro_f1"]
    assert not metrics_on_test(teacher.data.metrics), "sweeps with other test sets share the teacher's run"
    checked = call("report", "--check", "drawn", cwd=swept.home)
    assert checked.stdout == "drawn: 4 of 4 trials have ended, 4 of them finished; 0 differences\n"

    listed = call("export", "--task", "reviews", "--list", cwd=swept.home).stdout
    heading = listed.splitlines()[1:3]
    assert " test " in heading[0]
    assert " macro_f1 " in heading[1]
    call("export", "--task", "reviews", "--pick", "best", "--to", tmp_path, cwd=swept.home)
    [folder] = tmp_path.glob("reviews-*")
    facts, card = json.loads((folder / "ikd.json").read_text()), (folder / "README.md").read_text()
    assert accuracy(folder, test) == facts["metrics"]["test/accuracy"]
    assert f"| test/accuracy | {facts['metrics']['test/accuracy']:.4f} |" in card
    assert "measured once, when the search had ended, on 40 examples" in card
    assert "\nlanguage: en\n" in card
    assert "dev: 30 of 300 rows, drawn stratified with seed 0" in card

    # As if it had been interrupted before the test set was scored.
    before = trial_metrics(swept.folder)
    (swept.folder / "test.json").unlink()
    assert trial_metrics(swept.folder) != before
    run_to_its_end(swept, environment, ["--resume", "drawn"])
    assert swept.exits[-1].status == 0, swept.exits[-1].text
    assert trial_metrics(swept.folder) == before
    assert {trial.id for trial in read_trials(swept.folder) if metrics_on_test(trial.metrics)} == front
    assert_consistent(swept.folder, swept.uri, trials=4, task="reviews")
    call("report", "--task", "reviews", cwd=swept.home)
    assert "test/macro_f1" in (swept.folder / "report" / "report.html").read_text()
