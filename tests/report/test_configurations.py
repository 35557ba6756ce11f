from __future__ import annotations

from ikd_ray.report.configurations import by_configuration, by_seed, counted, have_seeds
from ikd_ray.report.records import TrialRecord


def trial(number: int, seed: int, again: bool = False, method: str = "", **params) -> TrialRecord:
    given = {"regime": "kd", "seed": seed} | params
    return TrialRecord(f"t{number}", number, given, [2], "finished", method=method, again=again)


def test_trials_of_a_configuration_differ_in_their_seeds_alone():
    one, two = trial(0, 7, method="a"), trial(1, 8, again=True, method="b")
    reordered = TrialRecord("t3", 3, {"seed": 9, "regime": "kd"}, [2], "finished")
    other = trial(2, 7, temperature=2.0)
    assert by_configuration([one, two, other, reordered]) == [[one, two, reordered], [other]]


def test_trials_that_were_run_again_count_alone():
    own, again = trial(0, 7), trial(1, 8, again=True)
    assert counted([own, again]) == [again]
    assert counted([own]) == [own]


def test_one_training_counts_once():
    first, same, other = trial(0, 7), trial(3, 7), trial(1, 8)
    assert by_seed([same, other, first]) == {7: first, 8: other}
    assert not have_seeds([first, same])
    assert have_seeds([first, other])
