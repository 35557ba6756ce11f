"""What all trials share: made once, and found again by the next sweep."""

from __future__ import annotations

import pytest

from ikd_ray.config import PrefixConfig, TargetConfig, TeacherConfig, Trial
from ikd_ray.data.remote import Output
from ikd_ray.data.sources import load
from ikd_ray.data.tokens import prepare
from ikd_ray.distill.teacher import find_teacher, load_tokenizer
from ikd_ray.sweep import prepare as preparing
from ikd_ray.sweep.prepare import Job, Shared, Step, preparation
from ikd_ray.tasks import get_task


@pytest.fixture
def job(inputs, tmp_path):
    """`job(known, depths)`: a job on one cache; `known` are latencies that an interrupted sweep began with."""
    task = get_task("cola")
    source = find_teacher(str(inputs / "teacher"), task)
    data = prepare(load(task, inputs / "glue"), load_tokenizer(source), source.key, 32, tmp_path / "tokens")

    def job(known=(), depths=(1, 2), assisted=None) -> Job:
        return Job(
            Output(str(tmp_path)),
            data.folder,
            source,
            depths,
            TeacherConfig(epochs=1),
            TargetConfig(),
            dict(known),
            assisted or {},
            Trial(epochs=1),
            PrefixConfig(),
            sharing=None,
        )

    return job


def steps(events) -> list[str]:
    return [event.text for event in events if isinstance(event, Step)]


def test_a_second_sweep_finds_everything_made(job):
    first = list(preparation(job(), threads=1))
    again = list(preparation(job(), threads=1))
    assert steps(first)[-1] == "measuring students' latency"
    assert steps(again) == ["storing the teacher's targets"]
    assert isinstance(first[-1], Shared)
    assert again[-1] == first[-1]
    assert set(first[-1].latency_ms) == {1, 2}


def test_only_new_depths_are_measured_and_a_sweep_keeps_its_own_figures(job, monkeypatch):
    asked = []

    def measure(teacher, depths):
        asked.append(list(depths))
        return {depth: 10.0 * depth for depth in depths}

    monkeypatch.setattr(preparing, "measure_latency", measure)
    *_, one = preparation(job(depths=(1,)), threads=1)
    *_, three = preparation(job(depths=(1, 2, 3)), threads=1)
    *_, resumed = preparation(job(known={1: 7.0}, depths=(1, 2)), threads=1)
    assert asked == [[1], [2, 3]]
    assert one.latency_ms == {1: 10.0}
    assert three.latency_ms == {1: 10.0, 2: 20.0, 3: 30.0}
    assert (resumed.latency_ms[1], resumed.latency_ms[2]) == (7.0, 20.0)
