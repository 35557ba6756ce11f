"""What all trials share: made once, and found again by the next sweep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ikd_ray.config import PrefixConfig, SharingConfig, TargetConfig, TeacherConfig, Trial
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.loop import Epoch
from ikd_ray.distill.teacher import find_teacher, load_teacher, load_tokenizer
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep import prepare as preparing
from ikd_ray.sweep.prepare import AssistantReady, PrepareJob, SharedArtifacts, StageStarted, prepare_artifacts
from ikd_ray.tasks import get_task


@pytest.fixture
def job(inputs, tmp_path):
    """`job(known, depths)`: a job on one cache; `known` are latencies that an interrupted sweep began with."""
    task = get_task("cola")
    source = find_teacher(str(inputs / "teacher"), task)
    data = tokenize(
        load_dataset(task, inputs / "glue"), load_tokenizer(source), source.key, 32, tmp_path / "tokens"
    )

    def job(known=(), depths=(1, 2), assisted=None) -> PrepareJob:
        return PrepareJob(
            SharedStorage(str(tmp_path)),
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
    return [event.text for event in events if isinstance(event, StageStarted)]


def test_a_second_sweep_finds_everything_made(job):
    first = list(prepare_artifacts(job(), threads=1))
    again = list(prepare_artifacts(job(), threads=1))
    assert steps(first)[-1] == "measuring students' latency"
    assert steps(again) == ["storing the teacher's targets"]
    assert isinstance(first[-1], SharedArtifacts)
    assert again[-1] == first[-1]
    assert set(first[-1].latency_ms) == {1, 2}


def test_only_new_depths_are_measured_and_a_sweep_keeps_its_own_figures(job, monkeypatch):
    asked = []

    def measure(teacher, depths):
        asked.append(list(depths))
        return {depth: 10.0 * depth for depth in depths}

    monkeypatch.setattr(preparing, "measure_latency", measure)
    *_, one = prepare_artifacts(job(depths=(1,)), threads=1)
    *_, three = prepare_artifacts(job(depths=(1, 2, 3)), threads=1)
    *_, resumed = prepare_artifacts(job(known={1: 7.0}, depths=(1, 2)), threads=1)
    assert asked == [[1], [2, 3]]
    assert one.latency_ms == {1: 10.0}
    assert three.latency_ms == {1: 10.0, 2: 20.0, 3: 30.0}
    assert (resumed.latency_ms[1], resumed.latency_ms[2]) == (7.0, 20.0)


def test_an_assistant_is_made_once_and_shared(job, tmp_path):
    first = list(prepare_artifacts(job(assisted={3: (1, 2)}), threads=1))
    told = steps(first)
    assert told[2:] == [
        "distilling a 3-layer assistant (kd)",
        "storing the 3-layer assistant's targets",
        "measuring students' latency",
    ]
    [assistant] = [event for event in first if isinstance(event, AssistantReady)]
    assert assistant.layers == 3
    again = list(prepare_artifacts(job(assisted={3: (1, 2)}), threads=1))
    assert steps(again) == ["storing the teacher's targets", "storing the 3-layer assistant's targets"]
    assert again[-1] == first[-1]
    assert [event for event in again if isinstance(event, AssistantReady)] == [assistant]
    shared = first[-1]
    assert shared.assistants.keys() == {3}
    # Students of 1 and 2 layers meet the assistant's 2 and 3; the assistant meets the teacher's 1, 3 and 4.
    assert {part for part in shared.assistants[3].parts if part.startswith("cls")} == {"cls-2", "cls-3"}
    assert {part for part in shared.teacher.parts if part.startswith("cls")} == {
        f"cls-{n}" for n in (1, 2, 3, 4)
    }


def test_another_depth_and_another_recipe_are_others(job, tmp_path):
    one = list(prepare_artifacts(job(assisted={2: (1,), 3: (1, 2)}), threads=1))
    other = replace(job(assisted={3: (1, 2)}), assistant=Trial(epochs=2))
    two = list(prepare_artifacts(other, threads=1))
    keys = [event.record.key for event in (*one, *two) if isinstance(event, AssistantReady)]
    assert len(set(keys)) == 3
    assert {path.name for path in (tmp_path / "cache" / "teachers").glob("[!.]*")} > set(keys)


def test_an_assistant_whose_making_was_cut_off_goes_on(job, tmp_path):
    asked = replace(job(assisted={3: (1, 2)}), assistant=Trial(epochs=3), sharing=SharingConfig())
    cut = prepare_artifacts(asked, threads=1)
    epochs = [
        next(event for event in cut if isinstance(event, Epoch) and "dev/attention_kl" in event.metrics)
    ]
    cut.close()
    rest = list(prepare_artifacts(asked, threads=1))
    epochs += [event for event in rest if isinstance(event, Epoch)]
    assert [(epoch.epoch, epoch.resumed) for epoch in epochs] == [
        (1, False),
        (1, True),
        (2, False),
        (3, False),
    ]
    assert epochs[0].metrics == epochs[1].metrics


def test_a_process_opens_an_assistant_when_a_trial_needs_it(job, monkeypatch):
    *_, shared = prepare_artifacts(job(assisted={3: (1, 2)}), threads=1)
    loaded = []

    def load(folder):
        loaded.append(folder.name)
        return load_teacher(folder)

    monkeypatch.setattr(preparing, "load_teacher", load)
    loaded_artifacts = shared.load(torch.device("cpu"))
    assert loaded == [shared.teacher.teacher.name]
    targets = loaded_artifacts.assistant_targets(3)
    assert loaded_artifacts.assistant_targets(3) is targets
    assert loaded == [shared.teacher.teacher.name, shared.assistants[3].teacher.name]
    assert (len(targets.teacher.layers), len(loaded_artifacts.teacher_targets.teacher.layers)) == (3, 4)
