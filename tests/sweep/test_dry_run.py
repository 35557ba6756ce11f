"""Dry run: the plan of a sweep and the estimate of its cost."""

from __future__ import annotations

import io
import re
from itertools import islice

import numpy as np
import pytest

from ikd_ray.config import make_trial
from ikd_ray.errors import UsageError
from ikd_ray.search.budget import Budget
from ikd_ray.search.planned_work import DataSize, EpochCosts, total_cost
from ikd_ray.search.space_file import load_space
from ikd_ray.sweep.dry_run import (
    _allocate_machine,
    _describe_speeds,
    _placements,
    plan_sweep,
    sample_trials,
)
from ikd_ray.sweep.epoch_costs import Costs, typical_subset
from ikd_ray.sweep.placement import Placement
from ikd_ray.sweep.ray_internals import count_cpus
from ikd_ray.sweep.runner import print_data
from ikd_ray.terminal.console import Console
from tests.helpers.run_command import sweep_flags, validated_request
from tests.helpers.tiny_models import make_dataset

SPACE = """
params:
  regime: {choice: [kd, pid]}
  student_layers: {int: [1, 2]}
  epochs: 2
  temperature: {float: [1, 4], log: true}
  epochs_per_layer: {int: [1, 3], when: {regime: pid}}
  train_fraction: {choice: [0.5, 1]}
selection: holdout
teacher: {epochs: 1}
"""
SIZE = DataSize(train=7, evaluation=3)
COSTS = Costs(
    EpochCosts(
        top_layer=1.0,
        lower_layer=10.0,
        internal_losses=100.0,
        evaluated_top_layer=0.1,
        evaluated_lower_layer=0.01,
    ),
    target=5.0,
    all_threads_ratio=0.5,
    examples=1,
    seconds=1.0,
)


@pytest.mark.slow
def test_the_plan_is_printed_and_nothing_is_written(command, inputs, tmp_path):
    """Run the real command, with a probe of half a minute."""
    flags = sweep_flags(inputs, tmp_path, "planned", SPACE, "--trials", 3, "--dry-run")
    done = command("run", *flags, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]
    lines = dict(line.split(": ", 1) for line in reversed(done.stdout.splitlines()) if ": " in line)
    assert "epochs_per_layer: 1 to 3; where regime is pid" in done.stdout
    assert "temperature: 1 to 4, evenly on a logarithmic scale" in done.stdout
    assert "stages: pid, 2 layers: 1, then 2, then C" in done.stdout
    assert "fixed: epochs: 2" in done.stdout
    assert lines["data"].endswith("; 10 of train are held out to choose by")
    assert lines["objectives"] == "holdout/mcc (max), student/params (min)"
    assert re.match(
        r"3, suggested by .* at most .* epochs each on average \(2 to 8\), about \d+ in all", lines["trials"]
    )
    assert re.match(
        r"at most about 0\.\d GB in each of \d workers?: process and models 0.4, outputs of frozen layers 0.0, "
        r"a step of 32 examples of \d+ tokens 0.0, where --step-memory allows 8; fine-tuning the teacher 0.4$",
        lines["memory"],
    )
    if count_cpus() > 1:
        assert re.match(
            r"\d trials at once with \d CPU threads? each train \d+\.\d\d times as much as 1 trial",
            lines["at once"],
        )
    assert re.match(
        r"at most about .*: teacher .*, its targets .*, 3 trials of .* on average, \d at a time with .* each",
        lines["time"],
    )
    assert done.stderr == ""


def test_what_may_be_wrong_with_the_data_is_told(inputs, tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\ntext: a\nlabel: b\nlabels: [x, y, z]\nmetric: accuracy\n")
    (tmp_path / "train.csv").write_text("a,b\nw1,x\nw2,y\n")
    (tmp_path / "dev.csv").write_text("a,b\nw1,x\nw3,y\n")
    space = "params: {epochs: 1}\n"
    request = validated_request(inputs, tmp_path, space, task=str(tmp_path / "own.yaml"), data_dir=tmp_path)
    told = ("train has no example of 1 of 3 classes", "1 of 2 dev examples are in train too")
    plan = [note.text for note in islice(plan_sweep(request), 3) if note.label == "warning"]
    output = io.StringIO()
    print_data(request, Console(output))
    lines = [line for line in output.getvalue().splitlines() if line.startswith("WARNING: ")]
    for found in (plan, [line.removeprefix("WARNING: ") for line in lines]):
        assert len(found) == 2
        assert all(text.startswith(words) for text, words in zip(found, told, strict=True))


def test_more_than_the_machine_has_is_refused(inputs, tmp_path):
    request = validated_request(inputs, tmp_path, SPACE, concurrent=999)
    with pytest.raises(UsageError, match="--concurrent 999: the cluster has room for "):
        next(plan_sweep(request))
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_a_resumed_sweep_has_no_dry_run(call, tmp_path):
    done = call("run", "--resume", "sweep", "--dry-run", cwd=tmp_path, status=2)
    assert done.stderr == "error: --dry-run is for a new sweep; leave out --resume, or leave out --dry-run\n"


def test_sampled_trials_come_from_the_space(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    trials = sample_trials(Budget(load_space(tmp_path / "space.yaml"), 3))
    assert {trial.regime for trial in trials} == {"kd", "pid"}
    assert {trial.epochs_per_layer for trial in trials if trial.regime == "kd"} == {2}, "the default"
    assert {trial.epochs_per_layer for trial in trials if trial.regime == "pid"} == {1, 2, 3}
    assert all(1 <= trial.temperature <= 4 for trial in trials)


def test_a_grid_is_planned_with_its_own_trials(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "sampler: grid\nparams: {regime: {choice: [hard, kd, id]}, epochs: 1}"
    )
    trials = sample_trials(Budget(load_space(tmp_path / "grid.yaml"), 2))
    assert [trial.regime for trial in trials] == ["hard", "kd"]


@pytest.mark.parametrize(
    ("params", "seconds"),
    [
        # 7 examples to train on, 3 to evaluate: epochs x (7 x (1 + 10) + 3 x (0.1 + 0.01)), for a layer below the top.
        ({"regime": "kd", "student_layers": 2, "epochs": 2}, 2 * (7 * (1 + 10) + 3 * 0.11)),
        ({"regime": "kd", "student_layers": 1, "epochs": 2}, 2 * (7 * 1 + 3 * 0.1)),
        ({"regime": "id", "student_layers": 2, "epochs": 1}, 7 * (1 + 10 + 200) + 3 * 0.11),
        # It trains on 2 of 7 examples.
        ({"regime": "kd", "student_layers": 2, "epochs": 2, "train_fraction": 0.3}, 2 * (2 * 11 + 3 * 0.11)),
        (
            {"regime": "pid", "student_layers": 2, "epochs": 1, "epochs_per_layer": 1, "top_trains": "head"},
            # Layer 1; the outputs of layer 1 for all 10 examples, and layer 2; the outputs of layer 2, and the head.
            7 * (1 + 100) + 3 * 0.11 + 10 * 0.01 + 7 * (1 + 100) + 3 * 0.1 + 10 * 0.01 + 7 + 3 * 0.1,
        ),
    ],
)
def test_a_trial_costs_the_sum_of_its_stages(params, seconds):
    assert total_cost(make_trial(params), SIZE, COSTS.epoch) == pytest.approx(seconds)


def test_a_teacher_is_estimated_with_all_threads():
    assert COSTS.teacher_seconds(6, SIZE) == pytest.approx(0.5 * (7 * (1 + 50) + 3 * 0.15))


def test_typical_examples_have_the_root_mean_square_length():
    dataset = make_dataset("cola", train=400, dev=50)
    lengths = {name: _words(split) for name, split in dataset.splits.items()}
    sample = typical_subset(dataset, lengths, 40)
    assert {name: len(split) for name, split in sample.splits.items()} == {"train": 40, "dev": 40}
    sampled = _words(sample.splits["train"])
    assert np.ptp(lengths["train"]) == 15
    assert np.ptp(sampled) <= 2
    assert np.mean(sampled) == pytest.approx(np.sqrt(np.mean(lengths["train"] ** 2)), abs=1)
    assert len(typical_subset(dataset, lengths, 10_000).splits["dev"]) == 50


def _words(split) -> np.ndarray:
    return np.array([len(text.split()) for text in split.text])


@pytest.mark.parametrize(
    ("flags", "cpus", "gpus", "placements"),
    [
        ({}, 4, 0, [(4, 1), (1, 4), (2, 2)]),
        ({}, 12, 0, [(8, 1), (1, 12), (2, 6), (4, 3)]),
        ({}, 1, 0, [(1, 1)]),
        ({"concurrent": 2}, 4, 0, [(2, 2)]),
        ({"workers_per_trial": 2}, 4, 0, [(2, 2)]),
        ({}, 8, 2, [(1, 4), (2, 2), (4, 1)]),
        ({"gpus_per_worker": 0.5}, 8, 2, [(2, 2)]),
        ({"workers_per_trial": 2}, 8, 2, [(1, 8)]),
    ],
)
def test_placements_that_are_compared(flags, cpus, gpus, placements, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("ikd_ray.sweep.dry_run.count_cpus", lambda: cpus)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    request = validated_request(inputs, tmp_path, SPACE, trials=8, **flags)
    found = _placements(request, _allocate_machine(request))
    assert [(placement.trials, placement.threads) for placement in found] == placements


def test_a_faster_placement_is_named():
    two, one = Placement(2, 1), Placement(1, 2)
    assert _describe_speeds({two: 3.0, one: 2.0}, shared_gpu=False) == (
        "2 trials at once with 1 CPU thread each train 1.50 times as much as 1 trial at a time with 2 CPU threads"
    )
    assert _describe_speeds({two: 2.0, one: 2.19}, shared_gpu=False).endswith("with 2 CPU threads")
    assert _describe_speeds({two: 2.0, one: 2.3}, shared_gpu=False).endswith(
        "; --concurrent 1 would be faster"
    )
    shared = {one: 2.0, two: 3.0, Placement(4, 1): 4.0}
    assert _describe_speeds(shared, shared_gpu=True) == (
        "1 trial at a time with 2 CPU threads trains on a GPU 0.67 times as much as 2 trials at once with 1 CPU "
        "thread each and 0.50 times as much as 4 trials at once with 1 CPU thread each; --gpus-per-worker 0.25 "
        "would be faster"
    )
