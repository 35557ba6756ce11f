from __future__ import annotations

from dataclasses import replace

import pytest

from ikd_ray.analysis.dataframes import (
    eligible_runs,
    epochs_frame,
    has_several_seeds,
    one_per_seed,
    trials_frame,
)
from ikd_ray.records import TrialRecord


def trial(number: int, seed: int, retrained: bool = False, method: str = "", **params) -> TrialRecord:
    return TrialRecord(
        f"t{number}", number, {"regime": "kd", "seed": seed} | params, [2], "finished", method=method,
        retrained=retrained,
    )  # fmt: skip


def eligible(*trials: TrialRecord) -> list[str]:
    frame = trials_frame(trials)
    return sorted(eligible_runs(frame, frame["status"] == "finished", ["method"]).index)


def ids(*trials: TrialRecord) -> list[str]:
    return [trial.id for trial in trials]


def test_trials_of_a_configuration_differ_in_nothing_but_their_seeds():
    frame = trials_frame(
        [
            trial(0, 7, method="a"),
            trial(1, 8, retrained=True, method="b"),
            trial(2, 7, temperature=3.0),
            TrialRecord("t3", 3, {"seed": 9, "regime": "kd"}, [2], "finished"),
            trial(4, 7, train_fraction=1.0, assistant_layers=0),  # defaults, which earlier records lack
        ]
    )
    groups = [list(group.index) for _, group in frame.groupby("configuration", sort=False)]
    assert groups == [["t0", "t1", "t3", "t4"], ["t2"]]


def test_a_frame_has_every_metric_and_the_trials_in_order():
    one, two = replace(trial(1, 7), metrics={"dev/mcc": 0.5}), replace(trial(0, 7), metrics={"dev/f1": 0.25})
    frame = trials_frame([one, two])
    assert list(frame.index) == ["t0", "t1"]
    assert frame["dev/mcc"].isna().tolist() == [True, False]
    assert frame.loc["t1", ["regime", "depth", "seed", "dev/mcc"]].tolist() == ["kd", 1, 7, 0.5]
    assert trials_frame([]).empty


def test_retrained_runs_alone_count_within_their_method():
    own, retrained = trial(0, 7, method="a"), trial(1, 8, retrained=True, method="a")
    other = trial(2, 7, method="b", temperature=3.0)  # not retrained yet
    lost = replace(retrained, status="failed")
    assert eligible(own, other) == ids(own, other)
    assert eligible(own, other, retrained) == ids(retrained, other)
    assert eligible(own, other, lost) == ids(own, other)


def test_a_configuration_without_all_its_seeds_counts_only_if_no_other_is_complete():
    complete = [trial(0, 7), trial(1, 8)]
    kept, lost = trial(2, 7, temperature=3.0), replace(trial(3, 8, temperature=3.0), status="failed")
    assert eligible(*complete, kept, lost) == ids(*complete)
    assert eligible(kept, lost) == ids(kept)
    assert eligible(lost) == []
    two_seeds = [replace(one, seeds=2) for one in complete]
    started = replace(kept, seeds=2)
    assert eligible(*two_seeds, started) == ids(*two_seeds)
    assert eligible(started, two_seeds[0]) == sorted(ids(started, two_seeds[0]))
    retrained = [replace(trial(9 + seed, seed, retrained=True), seeds=5) for seed in (10, 11)]
    assert eligible(*two_seeds, *retrained) == ids(*retrained)


def test_repeated_training_counts_once():
    first, repeated, other = trial(0, 7), trial(3, 7), trial(1, 8)
    assert list(one_per_seed(trials_frame([repeated, other, first])).index) == ["t0", "t1"]
    assert not has_several_seeds(trials_frame([first, repeated]))
    assert has_several_seeds(trials_frame([first, other]))


@pytest.mark.parametrize("history", [[], [{"stage": 1.0}], [{"stage": 9.0, "dev/layer_1/kl": 0.5}]])
def test_epochs_of_any_record_have_the_same_columns(history):
    epochs = epochs_frame([replace(trial(0, 7, student_layers=1), history=history)])
    assert len(epochs) == len(history)
    assert {"epoch", "stage_name", "layers_trained", "internal", "reused", "time/epoch_s"} < {*epochs.columns}
    assert not epochs["reused"].any()
    assert not epochs["internal"].any()
