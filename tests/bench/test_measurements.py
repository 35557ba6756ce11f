"""The machine's speed and memory, the floor's arithmetic, the plain loop and the peers."""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np
import pytest
import torch

from ikd_ray.bench import machine, peers
from ikd_ray.bench.epochs import (
    time_epoch_of_workers,
    time_regime,
    time_targets,
    time_teacher,
    trained_layers,
)
from ikd_ray.bench.inputs import Request, prepare_inputs
from ikd_ray.bench.peers import (
    REFERENCES,
    check_peers,
    compute_losses,
    load_models,
    random_batches,
    textbrewer_epoch,
    train_epoch,
    trainer_epoch,
)
from ikd_ray.bench.results import Timing, Work, compare, layer_weights, mean_of_stages
from ikd_ray.bench.suite import padding_share
from ikd_ray.config import Trial
from ikd_ray.data.batches import collate
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.processor import HAS_ONEDNN, supports_bfloat16
from ikd_ray.distill.regimes import REGIMES, plan
from ikd_ray.distill.stage_training import stage_losses
from ikd_ray.distill.student import build_student
from ikd_ray.distill.teacher import find_teacher
from ikd_ray.errors import UsageError
from ikd_ray.sweep.local_processes import run_alone, run_together
from ikd_ray.tasks import get_task
from tests.helpers.tiny_models import make_data, make_dataset, make_encoder, make_targets, write_tokenizer

LAYER_MAP = (2, 4)


def test_matmul_peaks(monkeypatch):
    shapes = machine.SHAPES
    monkeypatch.setattr(machine, "SHAPES", [(64, 64, 64), (128, 32, 16)])
    peaks = machine.matmul_peaks()
    measured = {"torch.mm": True, "oneDNN": HAS_ONEDNN, machine.BFLOAT16: supports_bfloat16()}
    assert list(peaks) == [name for name, there in measured.items() if there]
    for speeds in peaks.values():
        assert list(speeds) == ["64 x 64 x 64", "128 x 32 x 16"]
        assert all(gflops > 0.01 for gflops in speeds.values())
    assert {(1024, 1024, 1024), (4096, 384, 1536)} <= set(shapes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_peak_memory_can_be_reset():
    array = np.ones(5 * 2**20)  # 40 MiB
    machine.reset_peak_memory()
    before = machine.memory_bytes("VmHWM")
    del array
    machine.reset_peak_memory()
    assert machine.memory_bytes("VmHWM") < before - 30 * 2**20
    np.ones(5 * 2**20).sum()
    assert machine.memory_bytes("VmHWM") > before - 10 * 2**20


def wait_and_return(number: int, barrier) -> tuple[int, int]:
    barrier.wait(60)
    return number, os.getpid()


@pytest.mark.slow
def test_measurements_run_in_processes_of_their_own():
    """Start new processes, which import torch; `test_all_rows_are_measured` relies on it too."""
    assert run_alone(os.getpid) != os.getpid()
    (first, one), (second, other) = run_together(wait_and_return, [(1,), (2,)], threads=1)
    assert (first, second) == (1, 2)
    assert one != other


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_layer_weights(family):
    # Hidden 32, feed-forward 48: query, key, value; the attention's output, up and down.
    assert layer_weights(make_encoder(family).layers[0]) == (3 * 32 * 32, 32 * 32 + 2 * 32 * 48)


def test_floating_point_operations():
    work = Work(projections=30, rest=90, tokens=1000, examples=100)
    one, three = 6 * 120 * 1000, 6 * 3 * 120 * 1000
    assert work.flops(1, False) == (one, 6 * (30 * 1000 + 90 * 100))
    assert work.flops(1, True) == (one, 4 * 30 * 1000 + 6 * 90 * 100)
    exact = 6 * (2 * 120 * 1000 + 30 * 1000 + 90 * 100)
    assert work.flops(3, False) == (three, exact)
    assert work.flops(3, True) == (three, exact - 2 * 30 * 1000)


@pytest.mark.parametrize(
    ("regime", "options", "layers"),
    [
        ("kd", {}, [3]),
        ("id", {}, [3]),
        ("hard", {}, [3]),
        ("pid", {}, [1, 1, 1, 3]),
        ("pid", {"train": "upto"}, [1, 2, 3, 3]),
        ("pid", {"soft_labels": "always"}, [3, 2, 1, 3]),
        ("pid", {"top_trains": "head"}, [1, 1, 1, 0]),
        ("sid", {}, [1, 2, 3, 3]),
    ],
)
def test_trained_layers_of_each_stage(regime, options, layers):
    assert [trained_layers(stage, 3) for stage in plan(regime, 3, **options)] == layers


def test_rows_compare_with_floors_and_others():
    work = Work(projections=1_000_000, rest=3_000_000, tokens=1000, examples=100)
    stages = [Timing("1", 1.0, 1, 0.5), Timing("2", 2.0, 2, 0.7), Timing("head", 0.3, 0, 0.6)]
    one, two, head, mean, other = compare(
        [*stages, mean_of_stages("mean", stages[:2])],
        [Timing("reference", 6.0, 3)],
        constant_input=True,
        work=work,
        gflops=(48.0, 96.0),
    )
    assert [row["seconds_per_layer"] for row in (one, two, mean, head)] == [1.0, 1.0, 1.0, None]
    assert [row["over_floor"] for row in (one, two, mean)] == pytest.approx([2.0, 2.0, 2.0])
    assert one["over_exact_floor"] == pytest.approx(96e9 / (6 * (1e9 + 3e8) - 2e9))
    assert one["faster_than"] == {"reference": 6.0}
    assert (mean["seconds"], mean["evaluation_s"]) == pytest.approx((1.5, 0.6))
    assert (head["over_floor"], head["over_exact_floor"]) == (None, None)
    assert other["faster_than"] == {}


def test_padding_share():
    lengths = np.array([4, 2, 3, 3])
    assert padding_share(lengths, [np.array([0, 1]), np.array([2, 3])]) == pytest.approx(2 / 14)
    assert padding_share(lengths, [np.array([2, 3])]) == 0


# The plain loop


@pytest.fixture(scope="module")
def teacher_with_dropout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    make_encoder(dropout=0.1).model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train=96)


@pytest.fixture
def batches(teacher_with_dropout, data):
    torch.manual_seed(0)
    return random_batches(data.train, write_tokenizer(teacher_with_dropout), 8)


def test_random_batches_hold_every_example_once(batches, data):
    seen = [
        (tuple(ids[mask.bool()].tolist()), int(label))
        for batch in batches
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]
    ids = data.train.input_ids
    rows = [ids.values[start:end] for start, end in zip(ids.offsets[:-1], ids.offsets[1:], strict=True)]
    expected = [(tuple(row.tolist()), int(label)) for row, label in zip(rows, data.train.labels, strict=True)]
    assert seen != expected
    assert sorted(seen) == sorted(expected)


def test_plain_losses_equal_the_projects(teacher_with_dropout, data, tmp_path):
    models = load_models(teacher_with_dropout, 2)
    models[1].eval()
    batch = collate(data.train, np.arange(8), data.pad_id)
    mask = batch.attention_mask.long()
    arguments = {
        "input_ids": batch.input_ids,
        "attention_mask": mask,
        "token_type_ids": batch.token_type_ids,
    }
    outputs = (model(**arguments, output_attentions=True, output_hidden_states=True) for model in models)
    losses = compute_losses(*outputs, mask, batch.labels, LAYER_MAP)

    teacher = make_encoder()  # the same weights
    [stage] = REGIMES["id"](Trial(regime="id", student_layers=2, temperature=2.0, **{"lambda": 0.2}))
    student = build_student(teacher, 2, "mapped").eval()
    target = make_targets(tmp_path, data, teacher).fetch("train", batch, cls=LAYER_MAP, attention=LAYER_MAP)
    _, expected = stage_losses(stage, student(batch, attention_layers=(1, 2)), target, batch, LAYER_MAP)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=2e-3, abs=2e-3)  # targets are float16


def test_plain_loop_trains_the_student_alone(teacher_with_dropout, batches):
    teacher, student = load_models(teacher_with_dropout, 2)
    before = [parameter.clone() for parameter in student.parameters()]
    teacher_before = [parameter.clone() for parameter in teacher.parameters()]
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = [train_epoch(teacher, student, batches, LAYER_MAP, optimizer) for _ in range(4)]
    assert losses[-1] < 0.8 * losses[0]
    changed = [not torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True)]
    assert sum(changed) >= len(changed) - 2  # a key's bias has no gradient
    assert all(torch.equal(*pair) for pair in zip(teacher_before, teacher.parameters(), strict=True))


# Peers


def test_epochs_are_measured_in_the_precision(inputs, tmp_path, monkeypatch):
    seen, autocast = [], DistributedContext.autocast
    monkeypatch.setattr(
        DistributedContext, "autocast", lambda self: seen.append(self.training_precision) or autocast(self)
    )
    source = find_teacher(str(inputs / "teacher"), get_task("cola"))
    request = Request("cola", student_layers=2, batch_size=8, precision="bfloat16")
    prepared = prepare_inputs(request, source, make_dataset(), tmp_path, threads=1)
    time_targets(prepared)
    time_regime(prepared, "kd")
    time_teacher(prepared)
    assert set(seen) == {"bfloat16"}


@pytest.fixture
def bench_inputs(inputs, tmp_path):
    source = find_teacher(str(inputs / "teacher"), get_task("cola"))
    request = Request("cola", student_layers=2, batch_size=8)
    return prepare_inputs(request, source, make_dataset(), tmp_path, threads=1)


@pytest.mark.parametrize("precision", REFERENCES)
def test_the_plain_loop_trains_in_each_precision(precision, bench_inputs, monkeypatch):
    seen = set()
    compute = peers.compute_losses

    def spy(teacher, student, *rest):
        seen.add(student.logits.dtype)
        return compute(teacher, student, *rest)

    monkeypatch.setattr(peers, "compute_losses", spy)
    assert REFERENCES[precision].epoch(bench_inputs) > 0
    assert seen == {getattr(torch, precision)}


@pytest.mark.slow
def test_an_epoch_of_two_workers_is_measured(bench_inputs, tmp_path):
    time_targets(bench_inputs)
    calls = [(bench_inputs, rank, 2, tmp_path / "rendezvous") for rank in range(2)]
    seconds = run_together(time_epoch_of_workers, calls, threads=1)
    assert len(seconds) == 2
    assert min(seconds) > 0


@pytest.mark.parametrize(
    ("package", "epoch"), [("textbrewer", textbrewer_epoch), ("accelerate", trainer_epoch)]
)
def test_peers_train_one_epoch_and_leave_no_files(package, epoch, bench_inputs, tmp_path, monkeypatch, capfd):
    pytest.importorskip(package)
    steps, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **kw: steps.append(1) or step(*args, **kw))
    monkeypatch.chdir(tmp_path)
    assert epoch(bench_inputs) > 0
    assert len(steps) == 6 or package == "accelerate"  # 48 examples; Trainer has an optimizer of its own
    assert not [path for path in bench_inputs.scratch.rglob("*") if path.is_file()]
    assert not {"runs", "saved_models"} & {path.name for path in tmp_path.iterdir()}
    assert capfd.readouterr().out == ""


def test_peers_that_are_not_installed_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'textbrewer is not installed; pip install -e "\.\[bench\]"'):
        check_peers(("textbrewer",))
    with pytest.raises(UsageError, match="accelerate is not installed"):
        check_peers(("trainer",))
