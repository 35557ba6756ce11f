from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.distill.losses import attention_kl, cls_cosine, hard_label_loss, soft_label_loss
from tests.helpers import numpy_losses

quick = settings(max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def probabilities(rng, lengths, heads):
    """Return (B, heads, L, L) with rows that sum to 1 over the sequence's tokens, and any values at padding."""
    longest = max(lengths)
    out = np.full((len(lengths), heads, longest, longest), 1 / longest)
    for example, length in enumerate(lengths):
        scores = np.exp(rng.normal(0, 1, (heads, length, length)))
        out[example, :, :length, :length] = scores / scores.sum(-1, keepdims=True)
    return torch.from_numpy(out)


def mask_of(lengths):
    return torch.from_numpy((np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64))


def kl_case(seed, lengths, heads=2):
    rng = np.random.default_rng(seed)
    return [probabilities(rng, lengths, heads) for _ in range(2)]


lengths_of_batches = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@quick
@given(seeds, lengths_of_batches, st.integers(1, 4))
def test_attention_kl_is_the_definition(seed, lengths, heads):
    maps = kl_case(seed, lengths, heads)
    value = attention_kl(*maps, mask_of(lengths))
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(numpy_losses.attention_kl(*maps, lengths), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_attention_kl_takes_any_mask_type(kind):
    lengths = [3, 6, 1]
    maps = kl_case(3, lengths)
    expected = numpy_losses.attention_kl(*maps, lengths)
    assert float(attention_kl(*maps, mask_of(lengths).to(kind))) == pytest.approx(expected)


@quick
@given(seeds, lengths_of_batches)
def test_attention_kl_ignores_padded_cells(seed, lengths):
    maps = kl_case(seed, lengths)
    expected = float(attention_kl(*maps, mask_of(lengths)))
    generator = torch.Generator().manual_seed(seed)
    for example, length in enumerate(lengths):
        for tensor in maps:
            inside = tensor[example, :, :length, :length].clone()
            tensor[example].uniform_(generator=generator)
            tensor[example, :, :length, :length] = inside
    assert float(attention_kl(*maps, mask_of(lengths))) == pytest.approx(expected, rel=1e-12)


def test_attention_kl_of_a_padded_batch_is_the_mean_of_its_examples_alone():
    lengths = [2, 7, 4]
    student, teacher = kl_case(5, lengths, 3)
    alone = [
        float(attention_kl(student[i : i + 1, :, :n, :n], teacher[i : i + 1, :, :n, :n], torch.ones(1, n)))
        for i, n in enumerate(lengths)
    ]
    assert float(attention_kl(student, teacher, mask_of(lengths))) == pytest.approx(np.mean(alone), rel=1e-12)


def test_attention_kl_by_hand():
    """Teacher (1, 0) against student (1/4, 3/4) in one of two rows: log(4) / 2, not the reverse divergence."""
    teacher = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    student = torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]])
    assert float(attention_kl(student, teacher, torch.ones(1, 2))) == pytest.approx(np.log(4) / 2)


def test_attention_kl_of_a_model_with_itself_is_zero_and_positive_otherwise():
    lengths = [5, 2]
    student, teacher = kl_case(1, lengths)
    assert float(attention_kl(student, student, mask_of(lengths))) == 0
    assert float(attention_kl(student, teacher, mask_of(lengths))) > 0.01


@pytest.mark.parametrize("score", [90.0, 110.0, 1e4])
def test_attention_kl_gradients_stay_finite_where_the_student_underflows(score):
    """exp(-90) is subnormal in float32, the others are 0; the teacher has all its mass there."""
    scores = torch.tensor([[[[score, 0.0, 0.0]] * 3]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, 0.5, 0.5]] * 3]])
    loss = attention_kl(scores.softmax(-1), teacher, torch.ones(1, 3))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()
    assert float(loss.detach()) > 50


def test_attention_kl_gradient_is_student_minus_teacher():
    """D KL(p || softmax(s)) / ds = q - p, divided by the length, the heads and the examples."""
    lengths = [3, 3]
    student, teacher = kl_case(2, lengths)
    scores = student.log().requires_grad_(True)
    attention_kl(scores.softmax(-1), teacher, torch.ones(2, 3)).backward()
    torch.testing.assert_close(scores.grad, (student - teacher) / (3 * 2 * 2))


@quick
@given(seeds, st.integers(1, 9), st.integers(1, 5), st.floats(0.3, 20))
def test_soft_label_loss_is_the_definition(seed, size, labels, temperature):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (2, size, labels)))
    expected = numpy_losses.soft_label_loss(*logits, temperature)
    assert float(soft_label_loss(*logits, temperature)) == pytest.approx(expected, rel=1e-9)


def test_soft_label_loss_by_hand():
    """Uniform student: log 2 at any teacher, times t^2."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, -1.0]])
    for temperature in (1.0, 2.0, 5.0):
        expected = np.log(2) * temperature**2
        assert float(soft_label_loss(student, teacher, temperature)) == pytest.approx(expected)


def test_soft_label_gradient_keeps_its_size_at_high_temperature():
    """The factor t^2 makes d/dz approach (z_S - z_T) / labels as t grows, for centred logits."""
    teacher = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    soft_label_loss(student, teacher, 1000.0).backward()
    torch.testing.assert_close(student.grad, -teacher / 2, rtol=1e-4, atol=1e-6)


def test_soft_label_loss_of_one_logit_is_the_squared_error_at_any_temperature():
    student, teacher = torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0], [1.0]])
    assert float(soft_label_loss(student, teacher, 1.0)) == pytest.approx(5.0)
    assert float(soft_label_loss(student, teacher, 7.0)) == pytest.approx(5.0)


@quick
@given(seeds, st.integers(1, 9), st.integers(1, 5))
def test_hard_label_loss_is_the_definition(seed, size, labels):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (size, labels))
    gold = rng.normal(2, 1, size).astype(np.float32) if labels == 1 else rng.integers(0, labels, size)
    value = hard_label_loss(torch.from_numpy(logits), torch.from_numpy(gold))
    assert float(value) == pytest.approx(numpy_losses.hard_label_loss(logits, gold), rel=1e-9)


@quick
@given(seeds, st.integers(1, 9), st.integers(1, 40))
def test_cls_cosine_is_the_definition(seed, size, hidden):
    vectors = torch.from_numpy(np.random.default_rng(seed).normal(0.5, 1, (2, size, hidden)))
    expected = numpy_losses.cls_cosine(*vectors)
    assert float(cls_cosine(*vectors)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("factor", [-1.0, 3.5, -0.01, 1000.0])
def test_cls_cosine_ignores_sign_and_length(factor):
    student, teacher = torch.randn(2, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = float(cls_cosine(student, teacher))
    assert 0 < expected < 1
    assert float(cls_cosine(student * factor, teacher)) == pytest.approx(expected, rel=1e-9)
    assert float(cls_cosine(student, teacher * factor)) == pytest.approx(expected, rel=1e-9)
    assert float(cls_cosine(teacher * factor, teacher)) == pytest.approx(0, abs=1e-12)


def test_cls_cosine_by_hand():
    """60 degrees give 1 - 1/4, a right angle gives 1."""
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.5, 0.75**0.5], [0.0, 2.0]])
    assert float(cls_cosine(student, teacher)) == pytest.approx((0.75 + 1) / 2)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_losses_compute_in_float32(narrow):
    student, teacher = (tensor.to(narrow) for tensor in kl_case(0, [4, 2]))
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).to(narrow)
    losses = [
        (attention_kl, (student, teacher, mask_of([4, 2]))),
        (soft_label_loss, (*logits, 2.0)),
        (hard_label_loss, (logits[0], torch.tensor([0, 1, 2, 0, 1]))),
        (cls_cosine, tuple(logits)),
    ]
    for loss, arguments in losses:
        wide = [a.float() if isinstance(a, torch.Tensor) and a.dtype == narrow else a for a in arguments]
        value = loss(*arguments)
        assert value.dtype == torch.float32
        assert float(value) == float(loss(*wide))
