"""The virtual clock, by which results become visible."""

from __future__ import annotations

import pytest

from ikd_ray.search import virtual_schedule
from ikd_ray.search.virtual_schedule import VirtualSchedule


@pytest.fixture(autouse=True)
def slack(monkeypatch):
    monkeypatch.setattr(virtual_schedule, "SLACK", 0.25)


def visible_after_each(slots: int, costs: list[float]) -> list[list[int]]:
    schedule, found = VirtualSchedule(slots), []
    for cost in costs:
        schedule.add(cost)
        found.append(schedule.pop_visible())
    return found


def test_one_slot_sees_every_result_at_once():
    assert visible_after_each(1, [3.0, 1.0, 2.0]) == [[0], [1], [2]]


def test_a_result_is_visible_a_quarter_of_its_cost_after_its_end():
    # The trials start at 0, 0, 4, 4, 8, 8; the first two are visible from 5 on, the next ones from 9.
    assert visible_after_each(2, [4.0] * 6) == [[], [], [], [0, 1], [], [2, 3]]


def test_the_slack_grows_with_the_slots():
    # Of four trials from 0 on, each of cost 4, the results are visible from 6 on: for the trials that start at 8.
    assert visible_after_each(4, [4.0] * 9)[:9] == [[]] * 7 + [[0, 1, 2, 3]] + [[]]


def test_a_long_trial_does_not_hide_short_ones():
    # The second slot is free at 1, 2, 3 ...; of two trials the one that becomes visible first comes first.
    assert visible_after_each(2, [100.0, 1.0, 1.0, 1.0, 1.0]) == [[], [], [1], [2], [3]]
