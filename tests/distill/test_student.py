from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ikd_ray.config import contradicting_depths
from ikd_ray.distill import latency
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import model_inputs
from ikd_ray.distill.families import FAMILIES
from ikd_ray.distill.latency import latency_ms
from ikd_ray.distill.student import build_student, layer_map, size_metrics
from tests.helpers.tiny_models import (
    HIDDEN,
    VOCABULARY,
    changed_tensors,
    copy_state,
    make_encoder,
    random_batch,
)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 6, (2, 4, 6)),
        (6, 12, (2, 4, 6, 8, 10, 12)),
        (4, 4, (1, 2, 3, 4)),
        (1, 6, (6,)),
        (2, 6, (3, 6)),
        (4, 12, (3, 6, 9, 12)),
        (5, 6, (1, 2, 4, 5, 6)),
        (4, 6, (2, 3, 5, 6)),
    ],
)
def test_layer_map(student, teacher, expected):
    assert layer_map(student, teacher) == expected


@pytest.mark.parametrize("teacher", range(1, 25))
def test_layer_map_is_uniform_and_matches_the_top_layers(teacher):
    for student in range(1, teacher + 1):
        chosen = layer_map(student, teacher)
        assert len(chosen) == student
        assert chosen[-1] == teacher
        assert all(a < b for a, b in zip((0, *chosen), chosen, strict=False))
        assert all(abs(layer - i * teacher / student) <= 0.5 for i, layer in enumerate(chosen, start=1))


@pytest.mark.parametrize(("student", "teacher"), [(0, 6), (7, 6), (-1, 6)])
def test_layer_map_refuses_impossible_depths(student, teacher):
    with pytest.raises(ValueError, match="layers"):
        layer_map(student, teacher)


@pytest.mark.parametrize(("init", "chosen"), [("mapped", (2, 4)), ("first", (1, 2))])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_copies_the_teachers_weights(family, init, chosen):
    teacher = make_encoder(family, layers=4).requires_grad_(False)
    before = copy_state(teacher)
    student = build_student(teacher, 2, init)
    assert len(student.layers) == student.config.num_hidden_layers == 2
    assert len(teacher.layers) == teacher.config.num_hidden_layers == 4
    pairs = [(student.embeddings, teacher.embeddings), (student.head, teacher.head)]
    pairs += [(student.layers[i], teacher.layers[source - 1]) for i, source in enumerate(chosen)]
    for mine, theirs in pairs:
        weights = copy_state(theirs)
        if family == "modernbert" and mine is student.layers[0]:
            weights.pop("attn_norm.weight", None)  # which its first layers lack
        assert not changed_tensors(copy_state(mine), weights)
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert not changed_tensors(before, copy_state(teacher))


def test_a_student_deeper_than_its_teacher_is_refused():
    with pytest.raises(ValueError, match="5 layers"):
        build_student(make_encoder(layers=4), 5, "mapped")


@pytest.mark.parametrize("layers", [1, 3])
def test_size_metrics_by_hand(layers):
    student = build_student(make_encoder(layers=4), layers, "first")
    h, ffn, labels = HIDDEN, 48, 2
    embeddings = (len(VOCABULARY) + 64 + 2) * h + 2 * h  # tokens, positions, segments, norm
    layer = 4 * (h * h + h) + (h * ffn + ffn) + (ffn * h + h) + 2 * 2 * h
    head = (h * h + h) + (h * labels + labels)
    total = embeddings + layers * layer + head
    assert size_metrics(student) == {
        "student/params": total,
        "student/encoder_params": layers * layer + head,
        "student/size_mb": pytest.approx(total * 4 / 1e6),
    }


def test_electras_projection_counts_as_embeddings():
    student = make_encoder("electra", layers=1)
    metrics = size_metrics(student)
    below = (len(VOCABULARY) + 64 + 2) * 24 + 2 * 24 + 24 * HIDDEN + HIDDEN
    assert metrics["student/params"] - metrics["student/encoder_params"] == below


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", [None, "eager"])
def test_a_saved_student_loads_as_a_hugging_face_model(tmp_path, family, attention):
    student = build_student(make_encoder(family, layers=4), 2, "mapped").eval()
    batch = random_batch([3, 8, 5], pad_id=student.config.pad_token_id)
    student.model.save_pretrained(tmp_path)
    options = {"attn_implementation": attention} if attention else {}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, **options).eval()
    assert loaded.config.num_hidden_layers == 2
    inputs = model_inputs(loaded, batch)
    with torch.no_grad():
        expected = student(batch).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(Encoder(loaded)(batch).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["mapped", "first"])
def test_a_student_in_memory_works_as_a_hugging_face_model(init):
    """Its layers follow the model's configuration, e.g. another attention implementation."""
    student = build_student(make_encoder(), 2, init).eval()
    batch = random_batch([3, 8, 5])
    student.model.set_attn_implementation("eager")
    output = student.model(
        batch.input_ids, batch.attention_mask.long(), batch.token_type_ids, output_attentions=True
    )
    assert len(output.attentions) == 2
    assert all(attention is not None for attention in output.attentions)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_latency_keeps_threads_and_training_mode(family, threads):
    student = make_encoder(family, layers=1).train()
    assert 0 < latency_ms(student) < 1000
    assert torch.get_num_threads() == threads
    assert student.training


def test_latency_restores_the_threads_after_a_failure(monkeypatch, threads):
    student = make_encoder(layers=1)
    monkeypatch.setattr(type(student.model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        latency_ms(student)
    assert torch.get_num_threads() == threads


def test_latencies_that_contradict_depth_are_measured_again(monkeypatch):
    """A busy moment at the first measurement of two layers passes; that of a known latency stays."""
    teacher = make_encoder(layers=4)
    times = {1: [1.0, 1.1], 2: [9.0, 2.5, 2.0], 3: [3.0, 3.5, 3.1], 4: [4.0, 4.4]}
    monkeypatch.setattr(latency, "latency_ms", lambda model: times[len(model.layers)].pop(0))
    assert latency.measure_latency(teacher, [1, 2, 3, 4], {}) == {1: 1.0, 2: 2.5, 3: 3.0, 4: 4.0}
    assert contradicting_depths({1: 1.0, 2: 2.5, 3: 3.0, 4: 4.0}) == set()
    times = {1: [1.0, 1.2], 2: [2.0, 2.1], 3: [5.0, 3.3], 4: [4.1, 4.2]}
    assert latency.measure_latency(teacher, [1, 2, 3, 4], {}) == {1: 1.0, 2: 2.0, 3: 3.3, 4: 4.1}, (
        "three layers do not take five times as long as one"
    )
    monkeypatch.setattr(latency, "latency_ms", lambda model: 1.0 * len(model.layers))
    known = {3: 1.5}
    assert latency.measure_latency(teacher, [2, 4], known) == {2: 2.0, 4: 4.0}
    assert contradicting_depths({**known, 2: 2.0, 4: 4.0}) == {2, 3, 4}
