from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.analysis import pareto
from ikd_ray.analysis.objectives import direction, main_metric, task_metric
from ikd_ray.analysis.pareto import front_candidates, pareto_content, pareto_front, trials_csv
from ikd_ray.records import TrialRecord
from ikd_ray.report.summary_files import FRONT, SUMMARY_FILES, TABLE, stale_summary_files, write_summary_files
from tests.helpers.sample_records import OBJECTIVES, sweep_record, trial_record


def trial(number: int, metrics: dict, status: str = "finished", **params) -> TrialRecord:
    return trial_record(number, metrics, status, id=f"t{number}", params={"regime": "kd"} | params)


VALUES = st.one_of(st.integers(0, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))
METRICS = st.dictionaries(st.sampled_from("abc"), VALUES)
TRIALS = st.lists(st.tuples(METRICS, st.sampled_from(["finished", "finished", "failed"])), max_size=12)
DIRECTIONS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["max", "min"]), min_size=1)


@given(TRIALS, DIRECTIONS, st.randoms())
def test_the_front_has_exactly_the_trials_that_no_other_excludes(drawn, objectives, random):
    trials = [trial(number, metrics, status) for number, (metrics, status) in enumerate(drawn)]
    usable = [
        t
        for t in trials
        if t.status == "finished" and all(math.isfinite(t.metrics.get(name, math.nan)) for name in objectives)
    ]

    def better(one, two, name):
        a, b = one.metrics[name], two.metrics[name]
        return a > b if objectives[name] == "max" else a < b

    def excludes(one, two):
        if any(better(two, one, name) for name in objectives):
            return False
        return any(better(one, two, name) for name in objectives) or one.number < two.number

    expected = {t.id for t in usable if not any(excludes(other, t) for other in usable)}
    random.shuffle(trials)
    found = pareto_front(trials, objectives)
    assert {t.id for t in found} == expected
    assert len(found) == len(expected)
    leading = next((name for name in objectives if objectives[name] == "min"), next(iter(objectives)))
    values = [t.metrics[leading] for t in found]
    assert values == sorted(values, reverse=objectives[leading] == "max")


def test_trials_are_compared_with_the_front_alone(monkeypatch):
    """A front is short; a comparison of all pairs of 10,000 trials takes a minute."""
    compared = []
    dominates = pareto._dominates
    monkeypatch.setattr(pareto, "_dominates", lambda *costs: compared.append(costs) or dominates(*costs))
    trials = [trial(n, {"a": float(n % 4), "b": float(n % 4 + n // 4)}) for n in range(200)]
    assert [t.number for t in pareto_front(trials, {"a": "max", "b": "min"})] == [0, 1, 2, 3]
    assert len(compared) < 4 * 200


def test_no_trial_has_no_front():
    assert pareto_front([], OBJECTIVES) == []


def seeded(number: int, seed: int, value: float, retrained: bool = False, **params) -> TrialRecord:
    one = trial(number, {"dev/mcc": value, "student/params": 10}, seed=seed, **params)
    return replace(one, retrained=retrained)


def test_a_configuration_with_several_seeds_is_compared_by_its_mean():
    """The configuration with the luckiest seed has the worse mean."""
    lucky = [seeded(n, n, value, temperature=2.0) for n, value in enumerate((0.9, 0.1, 0.2))]
    steady = [seeded(n, n, value, temperature=3.0) for n, value in ((3, 0.38), (4, 0.55), (5, 0.45))]
    assert [t.id for t in pareto_front([*lucky, *steady], OBJECTIVES)] == ["t5"]  # the nearest to 0.46
    ((member, values),) = front_candidates([*lucky, *steady], OBJECTIVES)
    assert member.metrics["dev/mcc"] == 0.45
    assert values == {"dev/mcc": pytest.approx(0.46), "student/params": 10}
    assert [t.id for t in pareto_front(lucky, OBJECTIVES)] == ["t2"]  # and not the best one of its own


def test_of_trials_equally_near_the_mean_the_first_represents_them():
    assert [t.id for t in pareto_front([seeded(1, 1, 0.5), seeded(0, 0, 0.25)], OBJECTIVES)] == ["t0"]


def test_retrained_trials_alone_are_compared():
    picked = seeded(0, 0, 0.9, temperature=2.0)  # because it was lucky
    anew = [
        seeded(n, 100 + n, value, retrained=True, temperature=2.0)
        for n, value in ((2, 0.3), (3, 0.4), (4, 0.35))
    ]
    rival = seeded(1, 0, 0.5, temperature=3.0)
    assert pareto_front([picked, rival], OBJECTIVES) == [picked]
    assert pareto_front([picked, rival, *anew], OBJECTIVES) == [anew[2]], "nor does the rival, which was not"
    assert [t.id for t in pareto_front([picked, *anew], OBJECTIVES)] == ["t4"]
    assert [t.id for t in pareto_front([picked, anew[0]], OBJECTIVES)] == ["t2"]
    broken = [replace(one, status="failed") for one in anew]
    assert pareto_front([picked, *broken], OBJECTIVES) == [picked]


def test_a_seed_that_diverged_or_failed_is_ignored():
    trials = [seeded(0, 0, math.nan), seeded(1, 1, 0.5), replace(seeded(2, 2, 0.1), status="failed")]
    ((member, values),) = front_candidates(trials, OBJECTIVES)
    assert (member.id, values["dev/mcc"]) == ("t1", 0.5)


def test_the_main_metric_is_on_the_selection_split():
    assert main_metric({"student/params": "min", "holdout/mcc": "max"}) == "holdout/mcc"
    assert main_metric({"student/params": "min", "dev/mcc": "max"}) == "dev/mcc"
    assert main_metric({"student/params": "min"}) == "student/params"
    scored = {"dev/mcc": 0.5, "holdout/mcc": 0.5}
    assert task_metric({"student/params": "min", "dev/mcc": "max"}, scored) == "dev/mcc"
    assert task_metric({"dev/attention_kl": "min"}, scored) == "holdout/mcc"
    assert task_metric({"student/params": "min"}, {}) is None
    assert direction("dev/mcc", {"holdout/mcc": "min"}) == "min"
    assert direction("dev/f1", {"holdout/mcc": "min"}) == "max"


def test_pareto_json_is_standard_json(tmp_path):
    small = trial(0, {"dev/mcc": 0.25, "student/params": 10, "dev/attention_kl": math.nan})
    large = trial(1, {"dev/mcc": 0.5, "student/params": 20})
    worse = trial(2, {"dev/mcc": 0.1, "student/params": 20})
    members = pareto_front([large, worse, small], OBJECTIVES)
    write_summary_files(tmp_path, sweep_record(), [large, worse, small])

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((tmp_path / "pareto.json").read_text(), parse_constant=refuse)
    assert read == pareto_content(sweep_record(), front_candidates(members, OBJECTIVES))
    assert [member["id"] for member in read["front"]] == ["t0", "t1"]
    assert read["front"][0]["metrics"] == {"dev/mcc": 0.25, "student/params": 10, "dev/attention_kl": None}
    assert read["teacher"] == {"name": "mini", "metrics": {"dev/mcc": 0.41}}
    assert (read["sweep"], read["task"], read["data"]) == ("first", "cola", "8551 train | 1043 dev")
    assert read["generated"] is False
    assert read["objectives"] == OBJECTIVES


def test_trials_csv_has_every_value_of_every_trial(tmp_path):
    done = trial(0, {"dev/mcc": 0.1 + 0.2, "student/params": 10}, temperature=2.0)
    reason = 'out of "memory",\nagain'
    broken = TrialRecord("t1", 1, {"regime": "hard"}, [2], "failed", reason=reason, duration_s=3.5)
    write_summary_files(tmp_path, sweep_record(), [done, broken])
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["id", "number", "status", "on_front", "regime", "temperature", "dev/mcc", "student/params"]
    assert list(rows[0]) == [*columns, "duration_s", "reason"]
    assert rows[0]["on_front"] == "True"
    assert rows[1]["on_front"] == "False"
    assert float(rows[0]["dev/mcc"]) == 0.1 + 0.2
    assert rows[1]["reason"] == broken.reason
    assert (rows[1]["temperature"], rows[1]["dev/mcc"], rows[1]["duration_s"]) == ("", "", "3.5")


def test_trials_csv_without_a_trial_is_a_header():
    assert trials_csv([], []).splitlines() == ["id,number,status,on_front,duration_s,reason"]


@pytest.mark.parametrize("name", SUMMARY_FILES)
def test_a_missing_or_outdated_file_is_stale(tmp_path, name):
    trials = [trial(0, {"dev/mcc": 0.5, "student/params": 10})]
    write_summary_files(tmp_path, sweep_record(), trials)
    assert stale_summary_files(tmp_path, sweep_record(), trials) == []
    more = [*trials, trial(1, {"dev/mcc": 0.6, "student/params": 20})]
    assert stale_summary_files(tmp_path, sweep_record(), more) == [TABLE, FRONT]
    (tmp_path / name).unlink()
    assert stale_summary_files(tmp_path, sweep_record(), trials) == [name]
