"""Analysis, tables and MLflow pages of a sweep whose students were chosen on a held-out part of the training set."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console as Terminal

from ikd_ray.analysis.evaluation_data import load_evaluation_data
from ikd_ray.analysis.student_selection import parse_pick, select_students
from ikd_ray.analysis.sweep_analysis import open_analysis
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.splits import hold_out
from ikd_ray.errors import UsageError
from ikd_ray.formatting import metrics_line, short_name
from ikd_ray.records import read_sweep, write_sweep
from ikd_ray.tasks import get_task
from ikd_ray.terminal.summary_tables import front_table
from ikd_ray.tracking.tracker import students_view
from tests.helpers.run_command import write_glue
from tests.helpers.sample_records import edit_trial_records
from tests.helpers.sample_sweep import TEACHER, make_sweep
from tests.helpers.tiny_models import write_tokenizer

OBJECTIVES = {"holdout/mcc": "max", "student/params": "min"}


@pytest.fixture
def sweep(tmp_path):
    """Six trials whose held-out metric is highest where the dev metric is lowest."""
    teacher = TEACHER | {"metrics": {"dev/mcc": 0.41, "holdout/mcc": 0.43}}
    changes = {"objectives": OBJECTIVES, "teacher": teacher, "selection": "holdout"}
    folder = make_sweep(tmp_path / "outputs", weights=False, **changes)

    def add_holdout(record):
        record["metrics"]["holdout/mcc"] = 1 - record["metrics"]["dev/mcc"]

    edit_trial_records(folder, add_holdout)
    return folder


def test_students_are_chosen_on_holdout_and_shown_on_dev(sweep):
    analysis = open_analysis(sweep)
    least = min(analysis.trials, key=lambda trial: trial.metrics["dev/mcc"])
    assert (analysis.selection_metric, analysis.metric) == ("holdout/mcc", "dev/mcc")
    assert analysis.best.id == analysis.best_of(analysis.trials).id == least.id
    assert analysis.teacher_score == 0.41
    picked = select_students(analysis.sweep, analysis.trials, parse_pick(["best"]))
    assert [student.id for student in picked] == [least.id]


def test_a_trial_without_a_finite_selection_metric_is_left_out(sweep):
    def diverge(record):
        if record["number"] == 0:
            record["metrics"]["holdout/mcc"] = math.nan

    edit_trial_records(sweep, diverge)
    assert [trial.number for trial in open_analysis(sweep).finished] == [1, 2, 3, 4, 5]


def test_an_objective_to_minimise_reverses_the_choice(sweep):
    record = read_sweep(sweep)
    write_sweep(sweep, replace(record, objectives={"holdout/mcc": "min"}))
    analysis = open_analysis(sweep)
    assert analysis.best_of(analysis.trials).id == max(analysis.trials, key=lambda t: t.metrics["dev/mcc"]).id


def test_records_without_a_selection_were_chosen_on_dev(tmp_path):
    analysis = open_analysis(make_sweep(tmp_path / "outputs", weights=False))
    assert "selection" not in analysis.sweep.data
    assert analysis.selection_metric == "dev/mcc"
    assert analysis.best_of(analysis.trials).id == max(analysis.trials, key=lambda t: t.metrics["dev/mcc"]).id


def test_short_names_have_the_split_unless_it_is_dev():
    assert [short_name(name) for name in ("dev/mcc", "holdout/mcc", "student/params")] == [
        "mcc",
        "holdout mcc",
        "params",
    ]
    shown = metrics_line(
        {"train/loss": 0.5, "holdout/mcc": 0.25, "holdout/layer_1/kl": 1.0, "dev/mcc": 0.125}
    )
    assert shown == "holdout mcc 0.250, mcc 0.125, training loss 0.500"


def test_the_front_s_table_has_both_splits(sweep):
    analysis, text = open_analysis(sweep), io.StringIO()
    table = front_table(analysis.front, analysis.sweep)
    Terminal(file=text, width=160).print(table)
    heads = [str(column.header) for column in table.columns]
    assert heads[2:4] == ["holdout mcc ↑", "mcc"]
    (teacher,) = [line for line in text.getvalue().splitlines() if line.startswith("teacher")]
    assert teacher.split()[2:4] == ["0.430", "0.410"]


def test_mlflow_s_table_sorts_by_holdout_and_shows_dev(sweep):
    view = students_view(read_sweep(sweep))
    assert view.order_by == "metrics.`holdout/mcc`"
    assert view.columns[:2] == ["metrics.`holdout/mcc`", "metrics.`dev/mcc`"]


def test_data_that_is_read_once_more_is_split_in_the_same_way(sweep, tmp_path):
    glue = write_glue(tmp_path / "glue")
    dataset = hold_out(load_dataset(get_task("cola"), glue))
    record = read_sweep(sweep)
    data = record.data | {"fingerprint": dataset.fingerprint}
    record = replace(record, data=data, settings={"data_dir": str(glue)})
    teacher = tmp_path / "teacher"
    write_tokenizer(teacher)
    data_splits = load_evaluation_data(sweep.parent, record, teacher, tmp_path / "workdir")
    assert {name: len(split) for name, split in data_splits.splits.items()} == {"dev": 40, "holdout": 10}
    assert data_splits.splits["holdout"].labels.tolist() == dataset.splits["holdout"].labels.tolist()
    other = replace(record, data=data | {"selection": "dev"})
    with pytest.raises(UsageError, match="its data has changed"):
        load_evaluation_data(sweep.parent, other, teacher, tmp_path / "other")
