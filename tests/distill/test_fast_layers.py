"""Fast replacements of layers compute what PyTorch's own layers compute."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ikd_ray.config import Trial
from ikd_ray.data.tokens import RaggedArray, row_offsets
from ikd_ray.distill import loop, stage_training
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.fast_layers import (
    CompactVocabulary,
    Dropout,
    Linear,
    dropout,
    use_fast_layers,
    use_pytorch_layers,
)
from ikd_ray.distill.latency import latency_ms
from ikd_ray.distill.processor import HAS_ONEDNN
from ikd_ray.distill.regimes import Stage
from tests.helpers.tiny_models import copy_state, make_classifier, make_encoder, make_targets, random_batch

needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")


def strided(shape):
    """Return a tensor with gaps between its values in memory."""
    return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]


def transposed(shape):
    return torch.randn(*shape[::-1]).permute(*reversed(range(len(shape))))


def expanded(shape):
    return torch.randn(shape)[:, :1].expand(shape)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [torch.randn, strided, transposed, expanded])
@pytest.mark.parametrize("shape", [(1, 5), (7, 5), (3, 4, 5), (32, 1, 5), (2, 31, 5)], ids=str)
def test_linear_and_its_gradients_equal_float64(shape, make, bias):
    torch.manual_seed(0)
    inputs = make(shape).requires_grad_()
    layer = Linear(5, 6, bias=bias)
    assert layer(inputs).grad_fn.name() == "_LinearFunctionBackward"
    grad_output = make((*shape[:-1], 6))
    wide = copy.deepcopy(layer).double()
    wide.__class__ = nn.Linear
    wide_inputs = inputs.detach().double().requires_grad_()
    expected = torch.autograd.grad(wide(wide_inputs), [wide_inputs, *wide.parameters()], grad_output.double())
    found = torch.autograd.grad(layer(inputs), [inputs, *layer.parameters()], grad_output)
    torch.testing.assert_close(layer(inputs).double(), wide(wide_inputs), rtol=1e-5, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("frozen", ["weight", "bias", "inputs"])
def test_a_frozen_tensor_gets_no_gradient(frozen):
    layer, inputs = Linear(4, 3), torch.randn(2, 4, requires_grad=frozen != "inputs")
    if frozen != "inputs":
        getattr(layer, frozen).requires_grad_(False)
    layer(inputs).sum().backward()
    tensors = {"weight": layer.weight, "bias": layer.bias, "inputs": inputs}
    assert {name for name, tensor in tensors.items() if tensor.grad is None} == {frozen}


def test_other_types_and_devices_use_pytorchs_own_layer(monkeypatch):
    monkeypatch.setattr("ikd_ray.distill.fast_layers.onednn_linear", lambda *_: 1 / 0)
    assert Linear(4, 3).double()(torch.randn(2, 4).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(4, 3)(torch.randn(2, 4)).dtype == torch.bfloat16
    assert Linear(4, 3, device="meta")(torch.empty(2, 4, device="meta")).shape == (2, 3)
    with pytest.raises(ZeroDivisionError):
        Linear(4, 3)(torch.randn(2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_a_share_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    inputs = torch.full((3, 70_001), 3.0, dtype=dtype, requires_grad=True)
    output = dropout(inputs, p)
    kept = torch.full_like(inputs, 3.0 / (1 - p))
    tolerance = {"rtol": 1e-3 if dtype == torch.float32 else 2**-8, "atol": 0}
    torch.testing.assert_close(output, torch.where(output == 0, 0, kept), **tolerance)
    # Each of the four values that are cut from 64 bits, and both halves, are dropped alike.
    zeros = (output == 0).float()
    for part in (*(zeros.flatten()[index::4] for index in range(4)), *zeros.chunk(2, dim=1)):
        assert part.mean().item() == pytest.approx(p, abs=0.01)
    output.sum().backward()
    torch.testing.assert_close(inputs.grad, output.detach() / 3.0, **tolerance)


def test_masks_of_dropout_follow_the_seed():
    inputs = torch.ones(5, 1001)
    masks = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        masks.append([dropout(inputs, 0.3), dropout(inputs, 0.3)])
    assert torch.equal(torch.stack(masks[0]), torch.stack(masks[2]))
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][0], masks[1][0])


def test_dropout_of_nothing_of_all_and_in_evaluation():
    inputs = torch.randn(4, 5)
    assert torch.equal(dropout(inputs, 0.0), inputs)
    assert torch.equal(dropout(inputs, 1.0), torch.zeros_like(inputs))
    assert torch.equal(Dropout(0.5).eval()(inputs), inputs)
    assert (Dropout(0.5)(inputs) == 0).any()
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)
    assert dropout(torch.ones(6, 4).t(), 0.5).shape == (4, 6)


def linear_types(model) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.Linear)}


def dropout_types(model) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}


@needs_onednn
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_a_model_can_switch_to_fast_layers_and_back(family):
    model, batch = make_classifier(family), random_batch([3, 9, 1, 6])
    before, inputs = copy_state(model), (batch.input_ids, batch.attention_mask.long())
    with torch.no_grad():
        expected = model(*inputs).logits
        use_fast_layers(model, onednn=True)
        assert linear_types(model) == {Linear}
        assert dropout_types(model) == {Dropout}
        torch.testing.assert_close(model(*inputs).logits, expected, rtol=1e-5, atol=1e-5)
        use_pytorch_layers(model)
        assert linear_types(model) == {nn.Linear}
        assert dropout_types(model) == {nn.Dropout}
        assert torch.equal(model(*inputs).logits, expected)
    assert copy_state(model).keys() == before.keys()


def test_latency_is_measured_with_pytorchs_own_layers(monkeypatch):
    student = make_encoder(layers=1)
    use_fast_layers(student, onednn=True)
    monkeypatch.setattr(Linear, "forward", lambda *_: 1 / 0)
    assert latency_ms(student) > 0
    assert linear_types(student) == {Linear}


STAGE = Stage("C", epochs=2, hard=1.0, trains=(1, 2), head=True, embeddings=True)


class WholeVocabulary(CompactVocabulary):
    """The reference: all rows of the embedding train."""

    def __init__(self, embedding, split, pad_id, used):
        everything = torch.arange(embedding.num_embeddings).numpy().astype(split.input_ids.values.dtype)
        ids = RaggedArray(everything, row_offsets(np.array([len(everything)])))
        super().__init__(embedding, replace(split, input_ids=ids), pad_id, np.array([0]))


def train(model, data, settings) -> Iterator[float]:
    """Yield the training loss of each epoch."""
    trainer = stage_training.StageTrainer(model, STAGE, settings, data, None, (), DistributedContext())
    for metrics in stage_training.train_stage(trainer):
        yield metrics["train/loss"]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_compact_vocabulary_trains_as_the_whole_one(make_task_data, family, monkeypatch):
    """Rows that the data does not use stay; the others train as in a dense step."""
    data = replace(make_task_data("cola", train=9, dev=3), pad_id=1 if family == "roberta" else 0)
    losses, states = {}, {}
    for kind in (WholeVocabulary, CompactVocabulary):
        monkeypatch.setattr(stage_training, "CompactVocabulary", kind)
        model = make_encoder(family, layers=2, dropout=0.1)
        losses[kind] = list(train(model, data, Trial(learning_rate=1e-3, batch_size=8)))
        states[kind] = copy_state(model.model)
    assert losses[CompactVocabulary] == pytest.approx(losses[WholeVocabulary], rel=1e-5)
    compact = states[CompactVocabulary]
    before = make_encoder(family, layers=2, dropout=0.1).model.state_dict()
    words = next(name for name in compact if name.endswith("word_embeddings.weight"))
    used = torch.zeros(len(compact[words]), dtype=torch.bool)
    used[data.train.input_ids.values.astype("int64")] = True
    assert 5 < used.sum() < len(used) - 5
    assert torch.equal(compact[words][~used], before[words][~used])
    assert (compact[words][used] != before[words][used]).any(1).all()
    for name, value in states[WholeVocabulary].items():
        if not name.endswith("key.bias"):  # softmax does not depend on it: its gradient is rounding error
            assert torch.allclose(compact[name], value, atol=1e-5), name


def test_the_model_has_its_whole_vocabulary_after_each_epoch(make_task_data):
    data, model = make_task_data("cola", train=9, dev=3), make_encoder(layers=2)
    embedding = model.model.get_input_embeddings()
    weight = embedding.weight
    for _ in train(model, data, Trial(batch_size=8)):
        assert embedding.weight is weight


def test_the_teacher_reads_the_whole_vocabulary(data, teacher, tmp_path):
    """Attention that is not stored is the teacher's for the same words, though the student's ids are others."""
    trial = Trial(regime="id", student_layers=4, embeddings="train", epochs=1, learning_rate=1e-9)
    for stored in (True, False):
        targets = make_targets(tmp_path / str(stored), data, teacher, attention=stored)
        metrics = loop.distill(trial, data, targets).metrics
        assert all(metrics[f"train/layer_{layer}/kl"] < 1e-3 for layer in (1, 2, 3, 4))
