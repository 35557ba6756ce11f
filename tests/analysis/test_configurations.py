from __future__ import annotations

from dataclasses import replace

from ikd_ray.analysis.configurations import by_configuration, by_seed, contenders, have_seeds
from ikd_ray.records import TrialRecord


def trial(number: int, seed: int, again: bool = False, method: str = "", **params) -> TrialRecord:
    given = {"regime": "kd", "seed": seed} | params
    return TrialRecord(f"t{number}", number, given, [2], "finished", method=method, again=again)


def test_trials_of_a_configuration_differ_in_their_seeds_alone():
    one, two = trial(0, 7, method="a"), trial(1, 8, again=True, method="b")
    reordered = TrialRecord("t3", 3, {"seed": 9, "regime": "kd"}, [2], "finished")
    other = trial(2, 7, temperature=3.0)
    assert by_configuration([one, two, other, reordered]) == [[one, two, reordered], [other]]


def finished(trial):
    return trial.status == "finished"


def test_fields_that_earlier_records_lack_have_their_defaults():
    old, new = trial(0, 7), trial(1, 8, train_fraction=1.0, assistant_layers=0)
    assert by_configuration([old, new]) == [[old, new]]


def test_of_a_method_what_was_run_again_counts_alone():
    own, again = trial(0, 7, method="a"), trial(1, 8, again=True, method="a")
    other = trial(2, 7, method="b", temperature=3.0)
    assert contenders([own, other], finished) == [[own], [other]]
    assert contenders([own, other, again], finished) == [[again], [other]], "b's is still to come"
    lost = replace(again, status="failed")
    assert contenders([own, other, lost], finished) == [[own], [other]]


def test_a_configuration_that_lost_a_seed_is_none_unless_all_did():
    whole = [trial(0, 7), trial(1, 8)]
    kept, lost = trial(2, 7, temperature=3.0), replace(trial(3, 8, temperature=3.0), status="failed")
    assert contenders([*whole, kept, lost], finished) == [whole]
    assert contenders([kept, lost], finished) == [[kept]]
    assert contenders([lost], finished) == []


def test_a_configuration_whose_seeds_are_still_to_come_is_none_unless_all_s_are():
    whole = [replace(trial(number, seed), seeds=2) for number, seed in enumerate((7, 8))]
    begun = replace(trial(2, 7, temperature=3.0), seeds=2)
    assert contenders([*whole, begun], finished) == [whole]
    assert contenders([begun, whole[0]], finished) == [[begun], [whole[0]]]
    again = [replace(trial(9 + seed, seed, again=True), seeds=5) for seed in (10, 11)]
    assert contenders([*whole, *again], finished) == [again]


def test_one_training_counts_once():
    first, same, other = trial(0, 7), trial(3, 7), trial(1, 8)
    assert by_seed([same, other, first]) == {7: first, 8: other}
    assert not have_seeds([first, same])
    assert have_seeds([first, other])
