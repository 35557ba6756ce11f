from __future__ import annotations

import copy

import pytest
import torch

from ikd_ray.data.batches import Batch
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import cls_vectors, model_inputs
from ikd_ray.distill.families import FAMILIES
from ikd_ray.distill.losses import attention_kl, cls_cosine
from tests.helpers.tiny_models import HIDDEN, make_classifier, make_encoder, random_batch

LENGTHS = [3, 9, 1, 6]
LAYERS = 4
NORM_BEHIND_LAYERS = ("eurobert", "megatron-bert", "modernbert", "roberta-prelayernorm", "xlm-roberta-xl")
"""Families whose last `hidden_states` are not those of the last layer, but of a norm behind it."""
every_family = pytest.mark.parametrize("family", FAMILIES)


def batch_for(model):
    return random_batch(LENGTHS, pad_id=model.config.pad_token_id)


def eager(model, batch):
    """Return the outputs of Hugging Face's own eager forward pass with the same weights."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(
            **model_inputs(model, batch),
            output_attentions=True,
            output_hidden_states=True,
        )


@every_family
@pytest.mark.parametrize("labels", [1, 3])
def test_equals_hugging_face_on_a_padded_batch(family, labels):
    model = make_classifier(family, LAYERS, labels)
    batch = batch_for(model)
    expected = eager(model, batch)
    with torch.no_grad():
        output = Encoder(model)(batch, attention_layers=range(1, LAYERS + 1))
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert output.logits.shape == (len(LENGTHS), labels)
    assert set(output.cls) == set(output.attention) == {1, 2, 3, 4}
    for layer in range(1, LAYERS + 1):
        if layer < LAYERS or family not in NORM_BEHIND_LAYERS:
            hidden = expected.hidden_states[layer][:, 0]
            torch.testing.assert_close(output.cls[layer], hidden, rtol=1e-4, atol=1e-5)
        tokens = batch.attention_mask[:, None, :, None]
        torch.testing.assert_close(
            output.attention[layer] * tokens, expected.attentions[layer - 1] * tokens, rtol=1e-5, atol=1e-5
        )
    # The comparison means something only where layers differ from one another.
    assert (output.cls[1] - output.cls[2]).abs().max() > 0.01
    assert (output.attention[1] - output.attention[2]).abs().max() > 0.01


@every_family
def test_fused_and_recorded_attention_agree(family):
    encoder = make_encoder(family, LAYERS)
    batch = batch_for(encoder)
    with torch.no_grad():
        plain, partly = encoder(batch), encoder(batch, attention_layers=[2])
    assert plain.attention == {}
    assert set(partly.attention) == {2}
    torch.testing.assert_close(plain.logits, partly.logits, rtol=1e-5, atol=1e-5)


@every_family
def test_padding_does_not_change_an_example(family):
    encoder = make_encoder(family, LAYERS)
    batch = batch_for(encoder)
    with torch.no_grad():
        together = encoder(batch, attention_layers=[LAYERS])
        for row, length in enumerate(LENGTHS):
            columns = (batch.input_ids, batch.token_type_ids, batch.attention_mask)
            tokens = [tensor[row : row + 1, :length] for tensor in columns]
            alone = Batch(batch.rows[row : row + 1], *tokens, batch.labels[row : row + 1])
            output = encoder(alone, attention_layers=[LAYERS])
            torch.testing.assert_close(output.logits[0], together.logits[row], rtol=1e-4, atol=1e-5)
            whole = together.attention[LAYERS][row, :, :length]
            torch.testing.assert_close(
                output.attention[LAYERS][0], whole[:, :, :length], rtol=1e-4, atol=1e-4
            )
            assert not whole[:, :, length:].any()


def internal_loss(output, target, layer, mask):
    return attention_kl(output.attention[layer], target.attention[layer], mask) + cls_cosine(
        output.cls[layer], target.cls[layer]
    )


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_truncated_pass_has_the_same_losses_and_gradients(family, depth):
    encoder = make_encoder(family, LAYERS)
    batch = batch_for(encoder)
    with torch.no_grad():
        target = make_encoder(family, LAYERS, seed=9)(batch, attention_layers=range(1, LAYERS + 1))
    values, gradients = [], []
    for options in ({"depth": depth, "classify": False}, {}):
        encoder.zero_grad()
        output = encoder(batch, attention_layers=[depth], **options)
        assert (output.logits is None) == bool(options)
        assert set(output.cls) == set(range(1, (depth if options else LAYERS) + 1))
        loss = internal_loss(output, target, depth, batch.attention_mask)
        loss.backward()
        values.append(float(loss.detach()))
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] > 0.01
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def drop_attention(layer):
    """Have a layer drop out half of its attention, and nothing else."""
    for module in layer.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
        elif any(hasattr(module, query) for query in ("query", "q", "q_lin", "in_proj", "query_proj")):
            module.dropout.p = 0.5


@every_family
def test_recorded_attention_is_before_dropout(family):
    """With dropout in attention only, layer 1 records the same probabilities in training and in evaluation."""
    model = make_classifier(family, LAYERS)
    batch = batch_for(model)
    encoder = Encoder(model)
    with torch.no_grad():
        evaluated = encoder(batch, attention_layers=[1])
        encoder.train()
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in encoder.layers:
            drop_attention(layer)
        trained = encoder(batch, attention_layers=range(1, LAYERS + 1))
    torch.testing.assert_close(trained.attention[1], evaluated.attention[1])
    for layer in range(1, LAYERS + 1):
        sums = trained.attention[layer].sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert (trained.cls[1] - evaluated.cls[1]).abs().max() > 0.01, "dropout did not act"


@every_family
def test_every_family_trains(family):
    """As its own forward pass does, with layers of this project's in place of PyTorch's."""
    encoder = make_encoder(family, 2, dropout=0.1).train()
    encoder(batch_for(encoder), attention_layers=[1]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.layers[0].parameters())


def test_dropout_acts_with_and_without_recording():
    encoder = make_encoder(dropout=0.5).train()
    batch = random_batch(LENGTHS)
    with torch.no_grad():
        for attention_layers in ((), (1, 2, 3, 4)):
            first, second = (encoder(batch, attention_layers=attention_layers).logits for _ in range(2))
            assert not torch.allclose(first, second)


@every_family
def test_embeddings_layers_and_head_partition_the_parameters(family):
    encoder = make_encoder(family, LAYERS)
    parts = [encoder.embeddings, *encoder.layers, encoder.head]
    ids = [id(parameter) for part in parts for parameter in part.parameters()]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in encoder.model.parameters()}
    assert all(any(True for _ in part.parameters()) for part in parts)
    assert sum(p.numel() for p in encoder.head.parameters()) >= 2 * HIDDEN


def test_classify_applies_the_head_to_cls_vectors():
    for family in FAMILIES:
        encoder = make_encoder(family, 2)
        with torch.no_grad():
            batch = batch_for(encoder)
            *_, (_, top, _) = encoder.layer_outputs(batch, 2)
            assert encoder.reads_cls_only == (family != "eurobert"), family
            logits = encoder.classify(cls_vectors(top) if encoder.reads_cls_only else top, batch)
            torch.testing.assert_close(logits, encoder(batch).logits, rtol=1e-4, atol=1e-5)
