"""Teachers, targets and students on a GPU. Skipped without one, unless `--rehearse` runs them on the CPU."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from ikd_ray.config import TeacherConfig, Trial
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.families import FAMILIES
from ikd_ray.distill.loop import Distillation, distill
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.processor import supports_bfloat16
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.targets import Targets, build_targets
from ikd_ray.distill.teacher import find_teacher, make_teacher, open_teacher
from ikd_ray.tasks import get_task
from tests.helpers.target_files import array_contents, assert_arrays_close
from tests.helpers.tiny_models import changed_tensors, copy_state, make_encoder, write_teacher

pytestmark = pytest.mark.gpu
ALL_LAYERS = range(1, 5)


@pytest.fixture
def placed(targets, data, device):
    """Return the targets of the CPU with their teacher on the device."""
    return Targets(targets.folder, data, make_encoder(), device=device)


def a_trial(regime: str = "id", **changes) -> Trial:
    fields = {"student_layers": 2, "batch_size": 8, "epochs": 2, "epochs_per_layer": 1, "learning_rate": 1e-3}
    return Trial(**fields | {"regime": regime} | changes)


def losses(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that a single answer does not change by a step."""
    continuous = ("train/", "dev/layer_", "dev/attention_kl", "dev/nll", "dev/teacher_kl")
    return {name: value for name, value in metrics.items() if name.startswith(continuous)}


@pytest.mark.parametrize("attention", [True, False])
def test_targets_are_those_of_the_cpu(targets, data, device, tmp_path, attention):
    teacher = make_encoder().to(device)
    list(build_targets(tmp_path, data, teacher, ALL_LAYERS, attention))
    expected = array_contents(targets.folder)
    found = array_contents(tmp_path)
    assert_arrays_close(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("embeddings", ["frozen", "train"])
def test_float32_trains_what_a_cpu_trains(data, targets, placed, device, regime, embeddings):
    trial = a_trial(regime, embeddings=embeddings)
    on_cpu = distill(trial, data, targets, world=DistributedContext(precision="float32"))
    found = distill(trial, data, placed, world=DistributedContext(device=device, precision="float32"))
    assert losses(found.metrics) == pytest.approx(losses(on_cpu.metrics), rel=2e-3, abs=2e-3)
    assert {parameter.device.type for parameter in found.student.parameters()} == {device.type}


@pytest.mark.parametrize("regime", REGIMES)
def test_bfloat16_trains_alike(data, targets, placed, device, regime):
    on_cpu = distill(a_trial(regime), data, targets, world=DistributedContext(precision="float32"))
    world = DistributedContext(device=device, precision="bfloat16")
    found = distill(a_trial(regime), data, placed, world=world)
    for name in (name for name in on_cpu.metrics if name.startswith("train/")):
        assert found.metrics[name] == pytest.approx(on_cpu.metrics[name], rel=0.1, abs=0.02), name
    assert {parameter.dtype for parameter in found.student.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_in_bfloat16(family, make_task_data, device, tmp_path):
    data, teacher = make_task_data("cola"), make_encoder(family).to(device)
    list(build_targets(tmp_path, data, teacher, ALL_LAYERS, True))
    targets = Targets(tmp_path, data, teacher, device=device)
    world = DistributedContext(device=device, precision="bfloat16")
    found = distill(a_trial("sid", epochs=1), data, targets, world=world)
    assert all(torch.isfinite(parameter).all() for parameter in found.student.parameters())


def test_micro_batches_train_what_whole_batches_train(data, placed, device):
    world = DistributedContext(device=device, precision="float32")
    whole, split = (distill(a_trial(), data, placed, world=world, memory=m) for m in (None, StepMemory(2e-4)))
    assert losses(split.metrics) == pytest.approx(losses(whole.metrics), rel=1e-3, abs=1e-3)


def test_a_trial_continues_from_its_saved_epochs(data, placed, device, tmp_path):
    """Its weights are those of an undisturbed trial, up to the order in which a GPU adds."""
    trial, world = a_trial("sid", epochs=3), DistributedContext(device=device)

    def cached(name: str) -> Distillation:
        return Distillation(
            trial, data, placed, world, checkpoints=EpochCache(tmp_path / name, 1.0, owner="me")
        )

    undisturbed = cached("undisturbed")
    *earlier, last = undisturbed.epochs()
    count = len(earlier) + 1
    list(islice(cached("interrupted").epochs(), count - 2))
    resumed = cached("interrupted")
    epochs = list(resumed.epochs())
    assert [epoch.resumed for epoch in epochs] == [True] * (count - 2) + [False] * 2
    if device.type == "cpu":
        assert not changed_tensors(copy_state(undisturbed.student), copy_state(resumed.student))
    assert losses(epochs[-1].metrics) == pytest.approx(losses(last.metrics), rel=1e-2, abs=1e-3)


def test_a_teacher_is_fine_tuned_and_stored(data, device, tmp_path):
    write_teacher(tmp_path / "model")
    source, config = (
        find_teacher(str(tmp_path / "model"), get_task("cola")),
        TeacherConfig(epochs=2, batch_size=8),
    )
    assert len(list(make_teacher(source, data, config, tmp_path / "kept", device, precision="auto"))) == 2
    record = open_teacher(tmp_path / "kept")
    assert record.settings["precision"] == ("bfloat16" if supports_bfloat16(device) else "float32")


def test_students_of_an_assistant_are_compared_with_the_teacher(data, targets, placed, device, tmp_path):
    assistant: Encoder = make_encoder(layers=3, seed=1).to(device)
    list(build_targets(tmp_path, data, assistant, range(1, 4), True))
    taught = Targets(tmp_path, data, assistant, device=device)
    world = DistributedContext(device=device, precision="float32")
    result = distill(a_trial(assistant_layers=3), data, taught, world=world, reference=placed)
    on_cpu = distill(
        a_trial(assistant_layers=3),
        data,
        Targets(tmp_path, data, make_encoder(layers=3, seed=1)),
        world=DistributedContext(precision="float32"),
        reference=targets,
    )
    assert losses(result.metrics) == pytest.approx(losses(on_cpu.metrics), rel=2e-3, abs=2e-3)
