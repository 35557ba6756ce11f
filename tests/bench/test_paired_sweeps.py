"""Differences of two sweeps that have trained the same configurations."""

from __future__ import annotations

import pytest

from ikd_ray.bench.paired_sweeps import app, compare_sweeps
from ikd_ray.errors import UsageError
from tests.helpers.sample_records import edit_trial_records, trial_record
from tests.helpers.sample_sweep import make_sweep
from tests.helpers.terminal import invoke

SEEDS = range(3)


def trials(shift: float, seconds: float, **fields):
    return [
        trial_record(
            number=seed,
            metrics={"dev/mcc": 0.1 * seed + shift, "dev/attention_kl": 0.5},
            history=[{"stage": 1.0, "time/epoch_s": seconds}] * 2,
            **{"params": {"regime": "kd", "seed": seed}} | fields,
        )
        for seed in SEEDS
    ]


def test_trials_are_paired_by_their_parameters():
    others = [*reversed(trials(0.25, 3.0)), trial_record(9, {"dev/mcc": 1.0}, params={"regime": "id"})]
    rows = list(compare_sweeps([*trials(0.2, 6.0), trial_record(8, {}, "failed")], others, "dev/mcc"))
    assert [row["metric"] for row in rows] == ["dev/mcc", "dev/attention_kl", "seconds"]
    assert rows[0] == {
        "regime": "kd",
        "metric": "dev/mcc",
        "pairs": 3,
        "first": "0.3000",
        "second": "0.3500",
        "difference": "+0.0500 ± 0.0000",
    }
    assert rows[1]["difference"].startswith("+0.0000")
    assert (rows[2]["first"], rows[2]["second"]) == ("12.0000", "6.0000")


def test_the_folders_of_two_sweeps_are_compared(tmp_path):
    first, second = (make_sweep(tmp_path, name=name, weights=False) for name in ("first", "second"))
    edit_trial_records(second, lambda record: record["metrics"].update({"dev/attention_kl": 0.0}))
    done = invoke(app, first, second)
    assert done.exit_code == 0, done.output
    assert "kd" in done.stdout
    edit_trial_records(second, lambda record: record["params"].update({"seed": 99}))
    done = invoke(app, first, second)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the sweeps have no finished trials with the same parameters")


def test_sweeps_with_other_metrics_are_refused():
    with pytest.raises(
        UsageError, match="one of the sweeps has no dev/f1; give two with the same objectives"
    ):
        list(compare_sweeps(trials(0.2, 1.0), trials(0.3, 1.0), "dev/f1"))


@pytest.mark.parametrize("missing", [0, 1])
def test_a_folder_without_a_sweep_is_refused(tmp_path, missing):
    folders = [make_sweep(tmp_path, weights=False), tmp_path / "nothing"]
    done = invoke(app, *(folders if missing else reversed(folders)))
    assert done.exit_code == 2
    assert "Traceback" not in done.output
