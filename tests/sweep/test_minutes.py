"""Sweeps that a number of minutes ends."""

from __future__ import annotations

import json

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.sweep.dry_run import plan_sweep
from ikd_ray.sweep.request import MAX_TRIALS, make_config
from tests.helpers.run_command import sweep_flags, validated_request

SPACE = "params: {student_layers: {int: [1, 2]}, learning_rate: {float: [1.0e-4, 1.0e-2], log: true}, epochs: 1}\n"


@pytest.mark.slow
def test_time_ends_a_sweep_which_can_go_on(inputs, tmp_path, command, uri):
    """The first part has time for some trials, and the second one for more of them."""
    flags = sweep_flags(inputs, tmp_path, "timed", SPACE, "--tracking-uri", uri)
    done = command("run", *flags, "--minutes", 0.8, cwd=tmp_path)
    assert "sweeps/run.py --resume timed" in done.stdout
    folder = tmp_path / "outputs" / "timed"
    ended = len(list((folder / "trials").glob("*/trial.json")))
    assert ended > 0
    assert json.loads((folder / "pareto.json").read_text())["front"]
    command("run", "--resume", "timed", "--minutes", 1, cwd=tmp_path)
    assert len(list((folder / "trials").glob("*/trial.json"))) > ended
    checked = command("report", "--check", "timed", cwd=tmp_path)
    assert "trials have ended" in checked.stdout
    assert " of " not in checked.stdout.split(" trials have ended")[0]
    command("run", "--resume", "timed", "--trials", ended, cwd=tmp_path)
    assert "0 differences" in command("report", "--check", "timed", cwd=tmp_path).stdout


def test_minutes_take_the_place_of_trials(inputs, tmp_path):
    request = validated_request(inputs, tmp_path, SPACE, minutes=5)
    assert request.trials == MAX_TRIALS
    assert (
        validated_request(
            inputs, tmp_path, "sampler: grid\nparams: {epochs: {choice: [1, 2]}}\n", minutes=5
        ).trials
        == 2
    )
    plan = next(note.text for note in plan_sweep(request) if note.label == "trials")
    assert plan.startswith("as many as 5 minutes allow, suggested by what each is expected to add")


@pytest.mark.slow
def test_the_plan_has_time_for_so_many_minutes(inputs, tmp_path):
    """It needs a probe of half a minute."""
    [text] = [
        note.text
        for note in plan_sweep(validated_request(inputs, tmp_path, SPACE, minutes=5))
        if note.label == "time"
    ]
    assert "5 minutes of trials of" in text


def test_both_are_refused():
    with pytest.raises(
        UsageError, match="--trials 3 and --minutes 5: give one of the two, which ends the sweep"
    ):
        make_config({"task": "cola", "space": "space.yaml", "trials": 3, "minutes": 5.0})


def test_retraining_the_best_needs_a_number_of_trials(inputs, tmp_path):
    with pytest.raises(
        UsageError, match=r"--minutes 5: .*space.yaml retrains the best configurations \(best_seeds\)"
    ):
        validated_request(inputs, tmp_path, SPACE + "best_seeds: 2\n", minutes=5)
