from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ikd_ray.distill.fast_layers import HAS_ONEDNN, Linear, onednn_linear, use_onednn
from ikd_ray.distill.student import latency_ms
from tests.helpers.tiny_models import copy_state, make_classifier, make_encoder, random_batch

needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")


def spread(shape):
    """Values with gaps between them in memory."""
    return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]


def transposed(shape):
    return torch.randn(*shape[::-1]).permute(*reversed(range(len(shape))))


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [torch.randn, spread, transposed, lambda s: torch.randn(s)[:, :1].expand(s)])
@pytest.mark.parametrize("shape", [(1, 5), (7, 5), (3, 4, 5), (32, 1, 5), (2, 31, 5)], ids=str)
def test_equals_float64(shape, make, bias):
    torch.manual_seed(0)
    hidden = make(shape).requires_grad_()
    layer = Linear(5, 6, bias=bias)
    assert layer(hidden).grad_fn.name() == "_LinearFunctionBackward"
    gradient = make((*shape[:-1], 6))
    wide = copy.deepcopy(layer).double()
    wide.__class__ = nn.Linear
    hidden_wide = hidden.detach().double().requires_grad_()
    expected = torch.autograd.grad(wide(hidden_wide), [hidden_wide, *wide.parameters()], gradient.double())
    found = torch.autograd.grad(layer(hidden), [hidden, *layer.parameters()], gradient)
    torch.testing.assert_close(layer(hidden).double(), wide(hidden_wide), rtol=1e-5, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("frozen", ["weight", "bias", "hidden"])
def test_what_is_frozen_gets_no_gradient(frozen):
    layer, hidden = Linear(4, 3), torch.randn(2, 4, requires_grad=frozen != "hidden")
    if frozen != "hidden":
        getattr(layer, frozen).requires_grad_(False)
    layer(hidden).sum().backward()
    tensors = {"weight": layer.weight, "bias": layer.bias, "hidden": hidden}
    assert {name for name, tensor in tensors.items() if tensor.grad is None} == {frozen}


def test_other_types_are_pytorchs_own(monkeypatch):
    monkeypatch.setattr("ikd_ray.distill.fast_layers.onednn_linear", lambda *_: 1 / 0)
    assert Linear(4, 3).double()(torch.randn(2, 4).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(4, 3)(torch.randn(2, 4)).dtype == torch.bfloat16
    assert Linear(4, 3, device="meta")(torch.empty(2, 4, device="meta")).shape == (2, 3)
    with pytest.raises(ZeroDivisionError):
        Linear(4, 3)(torch.randn(2, 4))


def kinds(model) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.Linear)}


@needs_onednn
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_a_model_is_the_same_either_way(family):
    model, batch = make_classifier(family), random_batch([3, 9, 1, 6])
    before, given = copy_state(model), (batch.input_ids, batch.attention_mask.long())
    with torch.no_grad():
        expected = model(*given).logits
        use_onednn(model, True)
        assert kinds(model) == {Linear}
        torch.testing.assert_close(model(*given).logits, expected, rtol=1e-5, atol=1e-5)
        use_onednn(model, False)
        assert kinds(model) == {nn.Linear}
        assert torch.equal(model(*given).logits, expected)
    assert copy_state(model).keys() == before.keys()


def test_latency_is_of_the_model_as_its_users_have_it(monkeypatch):
    student = make_encoder(layers=1)
    use_onednn(student, True)
    monkeypatch.setattr(Linear, "forward", lambda *_: 1 / 0)
    assert latency_ms(student) > 0
    assert kinds(student) == {Linear}


@needs_onednn
def test_the_product():
    left, right, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    torch.testing.assert_close(onednn_linear(left, right, bias), left @ right.T + bias)
