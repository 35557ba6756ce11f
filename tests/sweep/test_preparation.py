"""Preparation: teacher, targets, assistants and latencies are made once, and reused by the next sweep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ikd_ray.config import Trial
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.teacher import find_teacher, load_teacher, load_tokenizer
from ikd_ray.search.space_file import load_space
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep import artifacts, preparation
from ikd_ray.sweep.artifacts import LoadedArtifacts
from ikd_ray.sweep.preparation import Note, PrepareJob, StageStarted, prepare_artifacts
from ikd_ray.tasks import get_task


@pytest.fixture
def make_job(inputs, tmp_path):
    """Return a function that makes jobs with one cache.

    Its arguments are the latencies that an earlier run knew, and the depths of students and of assistants.
    """
    task = get_task("cola")
    source = find_teacher(str(inputs / "teacher"), task)
    data = tokenize(
        load_dataset(task, inputs / "glue"), load_tokenizer(source), source.key, 32, tmp_path / "tokens"
    )

    (tmp_path / "space.yaml").write_text("teacher: {epochs: 1}\nassistant: {epochs: 1}\n")
    space = load_space(tmp_path / "space.yaml")

    def make_job(latency_ms=(), depths=(1, 2), assistant_students=None, assistant_epochs=1, share=False):
        return PrepareJob(
            output=SharedStorage(str(tmp_path)),
            tokens=data.folder,
            source=source,
            space=replace(space, assistant=Trial(epochs=assistant_epochs)),
            depths=depths,
            assistant_students=assistant_students or {},
            latency_ms=dict(latency_ms),
            share=share,
            memory=StepMemory(),
        )

    return make_job


def stages(events) -> list[str]:
    return [event.text for event in events if isinstance(event, StageStarted)]


def prepare_all(job) -> list:
    return list(prepare_artifacts(job, threads=1))


def test_a_second_sweep_reuses_everything(make_job):
    first, second = prepare_all(make_job()), prepare_all(make_job())
    assert stages(first)[-1] == "measuring the latency of teacher and students"
    assert stages(second) == ["storing the teacher's targets"]
    assert second[-1] == first[-1]
    assert set(first[-1][1].latency_ms) == {1, 2, 4}
    assert first[-1][0].sizes["student/latency_ms"] == first[-1][1].latency_ms[4]
    assert first[-1][0].sizes["student/params"] > first[-1][0].sizes["student/encoder_params"] > 0


def test_only_new_depths_are_measured_and_known_latencies_are_kept(make_job, monkeypatch):
    measured = []

    def measure(teacher, depths, known):
        measured.append(list(depths))
        return {depth: 10.0 * depth for depth in depths}

    monkeypatch.setattr(preparation, "measure_latency", measure)
    *_, (_, one) = prepare_artifacts(make_job(depths=(1,)), threads=1)
    *_, (_, three) = prepare_artifacts(make_job(depths=(1, 2, 3)), threads=1)
    *_, (teacher, resumed) = prepare_artifacts(make_job(latency_ms={1: 7.0}, depths=(1, 2)), threads=1)
    assert measured == [[1, 4], [2, 3]]
    assert one.latency_ms == {1: 10.0, 4: 40.0}
    assert three.latency_ms == {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0}
    assert (resumed.latency_ms[1], resumed.latency_ms[2]) == (7.0, 20.0)
    assert "student/latency_ms" not in teacher.sizes, "that sweep did not measure its teacher"


def test_a_precision_has_a_teacher_and_an_assistant_of_its_own(make_job):
    records = []
    for precision in ("float32", "bfloat16"):
        job = make_job(assistant_students={3: (1, 2)})
        *_, (record, _) = prepare_artifacts(
            replace(job, space=replace(job.space, precision=precision)), threads=1
        )
        records.append(record)
    wide, narrow = records
    assert wide.key != narrow.key
    assert (
        wide.metrics["dev/nll"]
        != narrow.metrics["dev/nll"]
        == pytest.approx(wide.metrics["dev/nll"], rel=0.05)
    )
    assert wide.assistants[3].key != narrow.assistants[3].key


def test_cached_latencies_that_contradict_each_other_are_measured_again(make_job, monkeypatch):
    for busy in (True, False):
        monkeypatch.setattr(
            preparation,
            "measure_latency",
            lambda teacher, depths, known, busy=busy: {
                d: 50.0 if busy and d == 2 else 10.0 * d for d in depths
            },
        )
        *_, (_, found) = prepare_artifacts(make_job(depths=(1, 2)), threads=1)
        assert found.latency_ms == {1: 10.0, 2: 50.0 if busy else 20.0, 4: 40.0}


def test_an_assistant_is_distilled_once(make_job, tmp_path):
    first = prepare_all(make_job(assistant_students={3: (1, 2)}))
    assert stages(first)[2:] == [
        "distilling a 3-layer assistant (kd)",
        "storing the 3-layer assistant's targets",
        "measuring the latency of teacher and students",
    ]
    [note] = [event.text for event in first if isinstance(event, Note) and event.label == "assistant"]
    assert note.startswith("3 layers, dev/mcc ")
    second = prepare_all(make_job(assistant_students={3: (1, 2)}))
    assert stages(second) == ["storing the teacher's targets", "storing the 3-layer assistant's targets"]
    assert second[-1] == first[-1]
    assert note in [event.text for event in second if isinstance(event, Note)]
    teacher, shared = first[-1]
    assert teacher.assistants.keys() == shared.assistants.keys() == {3}
    # Students of 1 and 2 layers match layers 2 and 3 of the assistant, which matches layers 1, 3 and 4 of the teacher.
    assert {part for part in shared.assistants[3].parts if part.startswith("cls")} == {"cls-2", "cls-3"}
    parts = {part for part in shared.teacher.parts if part.startswith("cls")}
    assert parts == {"cls-1", "cls-2", "cls-3", "cls-4"}


def test_depth_and_configuration_determine_the_assistant(make_job, tmp_path):
    one = prepare_all(make_job(assistant_students={2: (1,), 3: (1, 2)}))
    two = prepare_all(make_job(assistant_students={3: (1, 2)}, assistant_epochs=2))
    keys = [record.key for teacher, _ in (one[-1], two[-1]) for record in teacher.assistants.values()]
    assert len(set(keys)) == 3
    assert {path.name for path in (tmp_path / "cache" / "teachers").glob("[!.]*")} > set(keys)


def test_an_interrupted_assistant_continues_from_its_saved_epochs(make_job, tmp_path):
    job = make_job(assistant_students={3: (1, 2)}, assistant_epochs=3, share=True)
    interrupted = prepare_artifacts(job, threads=1)
    epochs = (event for event in interrupted if isinstance(event, Epoch))
    first = next(epoch for epoch in epochs if "dev/attention_kl" in epoch.metrics)
    interrupted.close()
    rest = [event for event in prepare_all(job) if isinstance(event, Epoch)]
    assert [(epoch.epoch, epoch.resumed) for epoch in rest] == [(1, True), (2, False), (3, False)]
    assert (first.epoch, first.resumed, first.metrics) == (1, False, rest[0].metrics)


def test_an_assistant_is_loaded_when_a_trial_first_needs_it(make_job, monkeypatch):
    *_, (_, shared) = prepare_artifacts(make_job(assistant_students={3: (1, 2)}), threads=1)
    loaded = []

    def load(folder):
        loaded.append(folder.name)
        return load_teacher(folder)

    monkeypatch.setattr(artifacts, "load_teacher", load)
    loaded_artifacts = LoadedArtifacts(shared, torch.device("cpu"))
    assert not loaded
    assert len(loaded_artifacts.teacher_targets.teacher.layers) == 4
    assert loaded == [shared.teacher.teacher.name]
    targets = loaded_artifacts.assistant_targets(3)
    assert loaded_artifacts.assistant_targets(3) is targets
    assert loaded == [shared.teacher.teacher.name, shared.assistants[3].teacher.name]
    assert len(targets.teacher.layers) == 3
