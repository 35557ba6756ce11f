"""Replays of searches on a small made-up table."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from ikd_ray.bench import search_simulation, search_suite
from ikd_ray.bench.search_arms import make_arms
from ikd_ray.bench.search_replay import (
    OVERHEAD_S,
    Row,
    Table,
    read_table,
    replay,
    replay_asha,
    to_row,
    write_table,
)
from ikd_ray.bench.search_table import draw_rows, quiet_rows
from ikd_ray.config import make_trial
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.search.builtin_spaces import DEFAULT_SPACE, find_space
from ikd_ray.search.planned_work import DataSize
from ikd_ray.search.space_file import load_space
from ikd_ray.terminal.console import Console
from tests.helpers.sample_records import trial_record

SPACE = load_space(find_space(DEFAULT_SPACE), 6)


def make_row(params, rng) -> Row:
    """Return a row whose stages all run to their end; deeper students are better."""
    trial = make_trial(params)
    stages = [
        number for number, stage in enumerate(REGIMES[trial.regime](trial), 1) for _ in range(stage.epochs)
    ]
    curve = [float(value) for value in np.sort(rng.uniform(0, 0.1 * trial.student_layers, len(stages)))]
    loss = [1 - value for value in curve]
    curves = {"score": curve, "nll": loss, "teacher_kl": [None, *loss[1:]], "train_loss": loss}
    return Row(trial.params(), trial.student_layers, stages, [1.0] * len(stages), curves)


@pytest.fixture(scope="module")
def table() -> Table:
    rng = np.random.default_rng(0)
    return Table("made up", DataSize(100, 20), [make_row(row, rng) for row in draw_rows(SPACE, 40, 0)])


@pytest.mark.parametrize("name", [*make_arms(Table("", DataSize(1, 0), []), SPACE, 1), "ASHA"])
def test_every_search_finds_the_whole_front_in_the_end(table, name):
    if name == "ASHA":
        assert 0.3 < replay_asha(table, 0, 2).volumes[-1] <= 1
        return
    progress = replay(table, make_arms(table, SPACE, 2)[name](0), 2)
    assert len(progress.volumes) == len(table.rows)
    assert progress.volumes == sorted(progress.volumes)
    assert progress.volumes[-1] == pytest.approx(1)
    assert table.total_s / 2 <= progress.times[-1] <= table.total_s


def test_equal_epochs_cost_once(table):
    trial = {"regime": "pid", "student_layers": 2, "epochs_per_layer": 1}
    rng = np.random.default_rng(0)
    rows = [make_row(trial, rng), make_row(trial | {"lambda": 0.9}, rng)]
    small = Table("two", table.size, rows)
    assert small.total_s == len(rows[0].seconds) + 3 + 2 * OVERHEAD_S
    assert replay(small, make_arms(small, SPACE, 1)["random"](0), 1).times[-1] == small.total_s


def test_a_trial_becomes_a_row():
    epoch = {
        "stage": 1.0,
        "time/epoch_s": 2.0,
        "time/evaluation_s": 0.5,
        "train/loss": 0.7,
        "holdout/nll": 0.6,
    }
    history = [epoch | {"holdout/mcc": 0.1}, epoch | {"holdout/mcc": float("nan"), "time/reused_s": 3.0}]
    params = make_trial({"student_layers": 2}).params()
    row = to_row(trial_record(0, {}, params=params, history=history), "holdout/mcc")
    assert (row.size, row.stages, row.seconds) == (2, [1, 1], [2.5, 5.5])
    assert row.curves == {
        "score": [0.1, None],
        "nll": [0.6, 0.6],
        "teacher_kl": [None, None],
        "train_loss": [0.7, 0.7],
    }


def test_seconds_of_a_table_are_those_of_a_quiet_machine(table):
    row = make_row({"regime": "kd", "student_layers": 2, "epochs": 2}, np.random.default_rng(0))
    other = make_row({"regime": "kd", "student_layers": 3, "epochs": 2}, np.random.default_rng(0))
    seconds = [[1.0, 9.0], [1.2, 1.4], [50.0, 1.4]]
    rows = [*(replace(row, seconds=given) for given in seconds), replace(other, seconds=[3.0, 7.0])]
    quiet = quiet_rows(rows, table.size)
    like = float(np.quantile(np.concatenate(seconds), 0.25))
    assert [found.seconds for found in quiet] == [[pytest.approx(like, abs=1e-3)] * 2] * 3 + [[4.0, 4.0]]
    assert [replace(found, seconds=given.seconds) for found, given in zip(quiet, rows, strict=True)] == rows


def test_the_yardstick_shows_every_search_and_signal(table, tmp_path, monkeypatch):
    write_table(tmp_path / "made.json.gz", table)
    assert read_table(tmp_path / "made.json.gz") == table
    monkeypatch.setattr(search_suite, "TABLES", tmp_path)
    monkeypatch.setattr(search_suite, "WORKERS", (2,))
    monkeypatch.setattr(search_suite, "SIMULATED_WORKERS", (2,))
    monkeypatch.setattr(search_simulation, "TREES", 20)
    document = search_suite.measure_search(2, Console(io.StringIO()))
    assert len(document["search"]) == len(make_arms(table, SPACE, 2)) + 1
    for row in document["search"]:
        assert 0 <= row["at 0.5"] <= row["at 0.0625"] <= 1
        assert 0 < row["cost"] <= 2
    assert [row["search"] for row in document["simulation"]] == list(search_simulation.ARMS)
    for row in document["simulation"]:
        assert 0 <= row["at 1 starts"] < row["at 6 starts"] < 1
        assert (row["at 1 starts"] > 0.05) >= row["search"].startswith("start"), "the start has ended"
    assert len(document["signals"]) == 12
    late = [
        row for row in document["signals"] if row["signal"] == "score" and row["at share of cost"] == 0.75
    ]
    assert late[0]["rank correlation"] > 0
    shown = io.StringIO()
    search_suite.show_search(document, shown)
    assert "A, C, D (product)" in shown.getvalue()
