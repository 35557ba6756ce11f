from __future__ import annotations

import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.report.derived import DERIVED, FRONT, TABLE, stale, write_derived
from ikd_ray.report.pareto import front, pareto_content, trials_csv, trials_table
from ikd_ray.report.records import SweepRecord, TrialRecord

OBJECTIVES = {"dev/mcc": "max", "student/params": "min"}


def trial(number: int, metrics: dict, status: str = "finished", **params) -> TrialRecord:
    return TrialRecord(f"t{number}", number, {"regime": "kd"} | params, [2], status, metrics)


def sweep(**changes) -> SweepRecord:
    fields = {
        "name": "first",
        "task": "cola",
        "seed": 0,
        "trials": 3,
        "command": "python sweeps/run.py --task cola",
        "code_version": "0.1.0",
        "data": {"description": "GLUE folder", "generated": False},
        "teacher": {"name": "mini", "key": "k", "layers": 6, "metrics": {"dev/mcc": 0.5}},
        "objectives": OBJECTIVES,
    }
    return SweepRecord(**(fields | changes))


VALUES = st.one_of(st.integers(0, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))
METRICS = st.dictionaries(st.sampled_from("abc"), VALUES)
TRIALS = st.lists(st.tuples(METRICS, st.sampled_from(["finished", "finished", "failed"])), max_size=12)
DIRECTIONS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["max", "min"]), min_size=1)


@given(TRIALS, DIRECTIONS, st.randoms())
def test_front_is_its_definition(drawn, objectives, random):
    trials = [trial(number, metrics, status) for number, (metrics, status) in enumerate(drawn)]
    able = [
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

    expected = {t.id for t in able if not any(excludes(other, t) for other in able)}
    random.shuffle(trials)
    found = front(trials, objectives)
    assert {t.id for t in found} == expected
    assert len(found) == len(expected)
    leading = next((name for name in objectives if objectives[name] == "min"), next(iter(objectives)))
    values = [t.metrics[leading] for t in found]
    assert values == sorted(values, reverse=objectives[leading] == "max")


def test_no_trial_no_front():
    assert front([], OBJECTIVES) == []


def test_pareto_json_is_standard_json(tmp_path):
    small = trial(0, {"dev/mcc": 0.25, "student/params": 10, "dev/attention_kl": math.nan})
    large = trial(1, {"dev/mcc": 0.5, "student/params": 20})
    worse = trial(2, {"dev/mcc": 0.1, "student/params": 20})
    members = front([large, worse, small], OBJECTIVES)
    write_derived(tmp_path, sweep(), [large, worse, small])

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((tmp_path / "pareto.json").read_text(), parse_constant=refuse)
    assert read == pareto_content(sweep(), members)
    assert [member["id"] for member in read["front"]] == ["t0", "t1"]
    assert read["front"][0]["metrics"] == {"dev/mcc": 0.25, "student/params": 10, "dev/attention_kl": None}
    assert read["teacher"] == {"name": "mini", "metrics": {"dev/mcc": 0.5}}
    assert (read["sweep"], read["task"], read["data"]) == ("first", "cola", "GLUE folder")
    assert read["generated"] is False
    assert read["objectives"] == OBJECTIVES


def test_trials_csv_has_every_value_of_every_trial(tmp_path):
    done = trial(0, {"dev/mcc": 0.1 + 0.2, "student/params": 10}, temperature=2.0)
    reason = 'out of "memory",\nagain'
    broken = TrialRecord("t1", 1, {"regime": "hard"}, [2], "failed", reason=reason, duration_s=3.5)
    write_derived(tmp_path, sweep(), [done, broken])
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(trials_table([done, broken], [done])[0])
    assert rows[0]["on_front"] == "True"
    assert rows[1]["on_front"] == "False"
    assert float(rows[0]["dev/mcc"]) == 0.1 + 0.2
    assert rows[1]["reason"] == broken.reason
    assert (rows[1]["temperature"], rows[1]["dev/mcc"], rows[1]["duration_s"]) == ("", "", "3.5")


def test_trials_csv_without_a_trial_is_a_header():
    assert trials_csv([], []).splitlines() == ["id,number,status,on_front,duration_s,reason"]


@pytest.mark.parametrize("name", DERIVED)
def test_a_table_that_is_gone_or_old_is_noticed(tmp_path, name):
    trials = [trial(0, {"dev/mcc": 0.5, "student/params": 10})]
    write_derived(tmp_path, sweep(), trials)
    assert stale(tmp_path, sweep(), trials) == []
    more = [*trials, trial(1, {"dev/mcc": 0.6, "student/params": 20})]
    assert stale(tmp_path, sweep(), more) == [TABLE, FRONT]
    (tmp_path / name).unlink()
    assert stale(tmp_path, sweep(), trials) == [name]
