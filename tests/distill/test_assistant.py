"""Teacher assistants: distilled once, stored as teachers are, and used by students."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ikd_ray.config import NOT_IN_ASSISTANTS, Trial
from ikd_ray.distill import cache_keys
from ikd_ray.distill.assistant import AssistantDivergedError, assistant_key, make_assistant
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.evaluate import StudentEvaluator
from ikd_ray.distill.loop import Distillation, distill
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.teacher import TeacherRecord, load_teacher, open_teacher
from ikd_ray.storage.store import is_intact
from tests.helpers.tiny_models import (
    NON_DEFAULT_FIELDS,
    changed_tensors,
    copy_state,
    make_data,
    make_encoder,
    make_targets,
    write_tokenizer,
)

RECIPE = Trial(regime="kd", student_layers=3, epochs=2, learning_rate=1e-3, batch_size=16)
TRIAL = {
    "student_layers": 2,
    "assistant_layers": 3,
    "epochs": 1,
    "epochs_per_layer": 1,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_tokenizer(folder)
    return TeacherRecord(folder, "BERT", "key", {"dev/mcc": 0.5}, {}, [])


@pytest.fixture(scope="module")
def kept(tmp_path_factory, record, data, targets):
    """Return the folder of a stored assistant."""
    folder = tmp_path_factory.mktemp("teachers") / assistant_key(record.key, data, RECIPE)
    assert [epoch.epoch for epoch in make_assistant(record, data, targets, RECIPE, folder)] == [1, 2]
    return folder


@pytest.fixture(scope="module")
def assistant_targets(tmp_path_factory, kept, data):
    """Return the assistant's outputs for all of `data`."""
    return make_targets(tmp_path_factory.mktemp("assistant_targets"), data, load_teacher(kept))


def test_an_assistant_is_stored_as_a_teacher(kept, record, data, targets):
    alone = distill(RECIPE, data, targets)
    found, model = open_teacher(kept), load_teacher(kept)
    assert not changed_tensors(copy_state(model.model), copy_state(alone.student.model))
    assert len(model.layers) == 3
    assert (found.name, found.key) == ("3L of BERT", kept.name)
    assert found.metrics == {name: alone.metrics[name] for name in alone.metrics if name.startswith("dev/")}
    assert found.settings["layer_map"] == list(layer_map(3, 4))
    assert found.settings["student_layers"] == 3
    assert found.settings["precision"] == "float32"
    assert not found.settings.keys() & set(NOT_IN_ASSISTANTS)
    assert [epoch["trained_epochs"] for epoch in found.history] == [1, 2]
    assert (kept / "tokenizer.json").read_bytes() == (record.folder / "tokenizer.json").read_bytes()


def test_a_stored_assistant_is_not_overwritten(kept, record, data, targets):
    weights = (kept / "model.safetensors").stat()
    list(make_assistant(record, data, targets, RECIPE.model_copy(update={"seed": 1}), kept))
    assert (kept / "model.safetensors").stat() == weights


@pytest.mark.parametrize("field", Trial.model_fields)
def test_the_key_depends_on_the_recipe(data, field):
    other = RECIPE.model_copy(update={field: NON_DEFAULT_FIELDS[field]})
    assert getattr(other, field) != getattr(RECIPE, field)
    same = assistant_key("key", data, other) == assistant_key("key", data, RECIPE)
    assert same == (field in NOT_IN_ASSISTANTS)


def test_the_key_depends_on_teacher_and_data(data):
    mine = assistant_key("key", data, RECIPE)
    assert mine == assistant_key("key", data, RECIPE.model_copy())
    keys = [assistant_key("other", data, RECIPE), assistant_key("key", replace(data, key="other"), RECIPE)]
    keys.append(assistant_key("key", data, RECIPE, [4.0]))
    keys.append(assistant_key("key", data, RECIPE, precision="bfloat16"))
    assert len({mine, *keys}) == 5
    assert assistant_key("key", data, RECIPE, []) == mine


def test_the_key_does_not_depend_on_the_machine(data, monkeypatch):
    """A sweep resumes on another machine with the same assistants."""
    mine = assistant_key("key", data, RECIPE)
    monkeypatch.setattr(cache_keys, "cpu_model", lambda: "another")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert assistant_key("key", data, RECIPE) == mine


@pytest.mark.parametrize("regime", ["hard", "kd", "id", "pid", "sid"])
def test_the_assistant_teaches_and_the_teacher_is_the_reference(data, targets, assistant_targets, regime):
    """Training equals that of a student whose only teacher is the assistant, in every number."""
    trial = Trial(**TRIAL, regime=regime)
    run = Distillation(trial, data, assistant_targets, reference=targets)
    alone = Distillation(trial, data, assistant_targets)
    measured = {f"dev/{metric}" for metric in data.task.metrics}
    for mine, other in zip(run, alone, strict=True):
        same = [name for name in mine.metrics if name.startswith("train/") or name in measured]
        assert "train/loss" in same
        assert {name: mine.metrics[name] for name in same} == {name: other.metrics[name] for name in same}
    assert not changed_tensors(copy_state(run.student.model), copy_state(alone.student.model))
    compared = StudentEvaluator(run.student, data, targets, layer_map(2, 4)).evaluate()
    assert {name: mine.metrics[name] for name in compared} == pytest.approx(compared, rel=1e-5, abs=1e-6)
    assert mine.metrics["dev/layer_1/kl"] != other.metrics["dev/layer_1/kl"]


def test_trials_with_and_without_an_assistant_share_no_stage(tmp_path, data, targets, assistant_targets):
    trial = Trial(**TRIAL, regime="sid")
    kinds = {
        "teacher": (targets, None),
        "assistant": (assistant_targets, targets),
        "alone": (assistant_targets, None),
    }

    def run(who: str) -> list[float]:
        epochs, (taught, reference) = [], kinds[who]
        cache = EpochCache(tmp_path / who, 1)
        distill(trial, data, taught, epochs.append, checkpoints=cache, reference=reference)
        return [epoch.metrics["reused_epochs"] for epoch in epochs]

    assert [run(who) for who in kinds] == [[0, 0, 0]] * 3
    found = [{path.name for path in (tmp_path / who).glob("[!.]*")} for who in kinds]
    assert [len(keys) for keys in found] == [3, 3, 3]
    assert len(set.union(*found)) == 9
    assert run("assistant") == [1, 2, 3]


def test_an_interrupted_assistant_resumes(tmp_path, record, data, targets, kept):
    def events():
        checkpoints = EpochCache(tmp_path / "stages", 1, "assistant", "owner")
        return make_assistant(record, data, targets, RECIPE, tmp_path / "made", checkpoints=checkpoints)

    cut = events()
    next(cut)
    cut.close()
    assert open_teacher(tmp_path / "made") is None
    assert [epoch.resumed for epoch in events()] == [True, False]
    assert is_intact(tmp_path / "made")
    name = "model.safetensors"
    assert (tmp_path / "made" / name).read_bytes() == (kept / name).read_bytes()


def test_a_diverged_assistant_leaves_nothing(tmp_path, record, data, targets):
    recipe = RECIPE.model_copy(update={"temperature": 1e-38})
    with pytest.raises(
        AssistantDivergedError, match=r"became nan in stage C, epoch 1 \(assistant of 3 layers\)"
    ):
        list(make_assistant(record, data, targets, recipe, tmp_path / "made"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["stsb", "mnli"])
def test_assistants_of_other_tasks(tmp_path, record, task):
    data = make_data(tmp_path, task)
    model = make_encoder(labels=len(data.task.labels) or 1)
    made = tmp_path / "made"
    list(make_assistant(record, data, make_targets(tmp_path / "targets", data, model), RECIPE, made))
    measured = {f"{split}/{metric}" for split in data.evaluation_splits for metric in data.task.metrics}
    assert measured <= open_teacher(made).metrics.keys()
