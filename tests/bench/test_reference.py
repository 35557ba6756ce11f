"""The plain loop does the work of the project's own."""

from __future__ import annotations

import pytest
import torch

from ikd_ray.bench.reference import load_models, losses_of, random_batches, train_epoch
from ikd_ray.config import Trial
from ikd_ray.data.batches import collate
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.student import build_student
from ikd_ray.distill.training import stage_losses
from tests.helpers.tiny_models import make_data, make_encoder, make_targets, write_tokenizer

MATCHED = (2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher in a Hugging Face folder, with its tokenizer; it drops out."""
    folder = tmp_path_factory.mktemp("teacher")
    make_encoder(dropout=0.1).model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train=96)


@pytest.fixture
def batches(folder, data):
    torch.manual_seed(0)
    return random_batches(data.train, write_tokenizer(folder), 8)


def test_batches_hold_every_example_once_in_random_order(batches, data):
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


def test_first_losses_are_the_projects(folder, data, tmp_path, batches):
    taught, learnt = load_models(folder, 2)
    learnt.eval()
    batch = collate(data.train, torch.arange(8).numpy(), data.pad_id)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask.long(),
        "token_type_ids": batch.token_type_ids,
    }
    outputs = (
        model(**inputs, output_attentions=True, output_hidden_states=True) for model in (taught, learnt)
    )
    losses = losses_of(*outputs, inputs["attention_mask"], batch.labels, MATCHED)

    teacher = make_encoder()  # the same weights
    [stage] = REGIMES["id"](Trial(regime="id", student_layers=2, temperature=2.0, **{"lambda": 0.2}))
    student = build_student(teacher, 2, "mapped").eval()
    target = make_targets(tmp_path, data, teacher).fetch("train", batch, cls=MATCHED, attention=MATCHED)
    _, ours = stage_losses(stage, student(batch, attention_layers=(1, 2)), target, batch, MATCHED)
    assert losses.keys() == ours.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(ours[name].item(), rel=2e-3, abs=2e-3)  # targets are float16


def test_it_learns(folder, batches):
    teacher, student = load_models(folder, 2)
    before = [parameter.clone() for parameter in student.parameters()]
    untouched = [parameter.clone() for parameter in teacher.parameters()]
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = [train_epoch(teacher, student, batches, MATCHED, optimizer) for _ in range(4)]
    assert losses[-1] < 0.8 * losses[0]
    changes = [not torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True)]
    assert sum(changes) >= len(changes) - 2  # a key's bias has no gradient
    assert all(torch.equal(*pair) for pair in zip(untouched, teacher.parameters(), strict=True))
