"""A comparison of methods that is interrupted twice, against the same comparison left alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ikd_ray.records import read_sweep, read_trials
from tests.helpers.consistency import trial_metrics
from tests.helpers.run_command import run_sweep_process, sweep_flags

pytestmark = pytest.mark.slow  # seven sweeps of a dozen trials

SPACE = """\
selection: holdout
objectives: {dev/metric: max}
best_seeds: 2
methods:
  Hard labels: {regime: hard}
  KD: {regime: kd}
  KD by an assistant: {regime: kd, assistant_layers: 3}
params:
  student_layers: 2
  learning_rate: {float: [1.0e-3, 2.0e-2], log: true}
  batch_size: 16
  epochs: 1
teacher: {epochs: 2, learning_rate: 1.0e-2}
assistant: {epochs: 1, learning_rate: 1.0e-2}
"""
TRIALS = 3 * 2 + 3 * 2


@pytest.fixture(scope="module")
def swept(inputs, command, environment, tmp_path_factory):
    """Interrupt after the third trial and again while the best ones are retrained; resume; run it again undisturbed."""
    home = tmp_path_factory.mktemp("comparison")
    arguments = sweep_flags(inputs, home, "cut", SPACE, "--trials", 2)
    for last, given in ((3, arguments), (4, ["--resume", "cut"])):  # of those that are left
        with run_sweep_process(environment, home, given) as process:
            process.wait_for(f" {last} of ")
            process.interrupt()
            process.end(status=130)
    results = {
        "longer": command("run", "--resume", "cut", "--trials", 3, cwd=home, status=2),
        "rest": command("run", "--resume", "cut", cwd=home),
    }
    command("report", "--check", "cut", cwd=home)
    arguments[arguments.index("cut")] = "whole"
    command("run", *arguments, "--no-share", cwd=home)
    return SimpleNamespace(home=home, folder=home / "outputs" / "cut", **results)


def test_it_goes_on_as_if_it_had_never_been_interrupted(swept):
    assert "distilling" not in swept.rest.stdout, "the assistant is there already"
    assert len(trial_metrics(swept.folder)) == TRIALS
    assert trial_metrics(swept.folder) == trial_metrics(swept.home / "outputs" / "whole")
    assert read_sweep(swept.folder).objectives == {"holdout/mcc": "max"}


def test_the_best_of_each_method_is_retrained_with_further_seeds(swept):
    for method in ("Hard labels", "KD", "KD by an assistant"):
        own = [trial for trial in read_trials(swept.folder) if trial.method == method]
        retrained = [trial for trial in own if trial.retrained]
        best = max(
            (t for t in own if not t.retrained),
            key=lambda trial: (trial.metrics["holdout/mcc"], -trial.number),
        )
        assert [trial.params for trial in retrained] == [best.params | {"seed": seed} for seed in (1, 2)]


def test_another_number_of_trials_is_refused_as_it_would_have_another_best(swept):
    assert swept.longer.stderr.startswith(
        "error: --resume cut: --trials cannot change, because best_seeds of its space"
    )
