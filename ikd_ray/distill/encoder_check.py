"""Compare an encoder's passes with its model's own eager forward pass, before anything is computed with them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from ikd_ray.data.batches import Batch
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import EncoderOutput, cls_vectors, model_inputs
from ikd_ray.distill.layer_stack import UnsupportedModelError
from ikd_ray.distill.student import build_student
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.errors import UsageError, first_line

LENGTHS = (160, 23, 6)
"""Tokens of the texts that are compared; the first is longer than the usual windows of local attention."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest of the values where that is above 1."""


def checked_encoder(model: PreTrainedModel, name: str, pad_id: int, max_tokens: int) -> Encoder:
    """Return a model as an encoder whose passes have been compared with the model's own.

    These are the logits and each layer's attention and [CLS] vectors, of a pass through all layers and of one for each
    layer, the logits from a stored output of a lower layer, and the gradients of all of them.

    Args:
        model: a classifier in evaluation mode.
        name: the teacher, as the user gave it.
        pad_id: the id of the padding.
        max_tokens: tokens of the longest text that the model takes.

    Raises:
        UsageError: layers of the model cannot be run one by one, or a result differs.
    """
    batch = _random_texts(model.config.vocab_size, pad_id, min(max_tokens, max(LENGTHS)))
    expected = _eager_output(model, batch)
    expected_gradients = _gradients(model, expected, batch)
    expected = expected.map(Tensor.detach)
    try:
        encoder = Encoder(model)
    except UnsupportedModelError as error:
        raise _cannot_teach(model, name, str(error)) from None
    if not expected.attention:
        raise _cannot_teach(model, name, "it returns no attention")
    if not any(_looks_ahead(probabilities) for probabilities in expected.attention.values()):
        raise _cannot_teach(model, name, "its attention is causal, so that [CLS] sees no other token")
    with torch.no_grad():
        for way, output in _passes(encoder, batch):
            _compare(name, way, output, expected, batch)
    try:
        output = encoder(batch, attention_layers=expected.attention)
        gradients = _gradients(model, replace(output, cls={n: output.cls[n] for n in expected.cls}), batch)
    except RuntimeError as error:
        raise _cannot_teach(model, name, f"it cannot be trained ({first_line(error)[:200]})") from None
    _compare_gradients(name, gradients, expected_gradients)
    return encoder


def _cannot_teach(model: PreTrainedModel, name: str, reason: str) -> UsageError:
    return UsageError(
        f"--teacher {name}: a {model.config.model_type!r} model like this one cannot teach: {reason}"
    )


def _random_texts(vocabulary: int, pad_id: int, longest: int) -> Batch:
    """Return texts of random tokens, two of which are padded; each is a pair."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([min(length, longest) for length in LENGTHS])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(vocabulary - 1, mask.shape, generator=generator)
    ids += ids >= pad_id  # a text has no padding within
    second = (torch.arange(mask.shape[1]) >= lengths[:, None] // 2) & mask
    rows = torch.arange(len(lengths)).numpy()
    return Batch(
        rows, ids.where(mask, pad_id), second.long(), mask, torch.zeros(len(lengths), dtype=torch.long)
    )


def _eager_output(model: PreTrainedModel, batch: Batch) -> EncoderOutput:
    """Return the outputs of a model's own forward pass, without the last layer's [CLS], which a norm may follow."""
    model.set_attn_implementation("eager")
    result = model(**model_inputs(model, batch), output_hidden_states=True, output_attentions=True)
    cls = {layer: hidden[:, 0] for layer, hidden in enumerate(result.hidden_states[:-1]) if layer}
    return EncoderOutput(result.logits, cls, dict(enumerate(result.attentions or (), 1)))


def _looks_ahead(probabilities: Tensor) -> bool:
    return bool(probabilities.triu(1).any())


def _passes(encoder: Encoder, batch: Batch) -> Iterator[tuple[str, EncoderOutput]]:
    """Yield the outputs of every way to run the model, and how they were made."""
    layers = len(encoder.layers)
    every = range(1, layers + 1)
    yield "all layers", encoder(batch, attention_layers=every)
    yield "fused attention", EncoderOutput(encoder(batch).logits)
    single, top = EncoderOutput(), None
    for layer, top, attention in encoder.layer_outputs(batch, layers, every):
        assert attention is not None
        single.cls[layer], single.attention[layer] = cls_vectors(top), attention
    assert top is not None
    single.logits = encoder.classify(cls_vectors(top) if encoder.reads_cls_only else top, batch)
    yield "layer by layer", single
    if layers > 1:
        stored = encoder.hidden(batch, layers // 2)
        yield "a stored output", encoder(batch, start=stored, start_layer=layers // 2)


def _gradients(model: PreTrainedModel, output: EncoderOutput, batch: Batch) -> dict[str, Tensor]:
    """Return the gradients, by parameter, of the sum of all mean squares of a model's outputs."""
    assert output.logits is not None
    tokens = batch.attention_mask[:, None, :, None]
    attention = [probabilities * tokens for probabilities in output.attention.values()]
    values = (output.logits, *output.cls.values(), *attention)
    loss = torch.stack([value.square().mean() for value in values]).sum()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {n: gradient for n, gradient in zip(trained, gradients, strict=True) if gradient is not None}


def _compare_gradients(name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    # Those of the keys' biases are rounding errors alone, since softmax is the same for all of their values.
    rounding = TOLERANCE / 10 * max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, wanted in expected.items():
        difference = float((found[parameter] - wanted).abs().max()) if parameter in found else float("inf")
        if not difference <= TOLERANCE * float(wanted.abs().max()) + rounding:
            raise _inexact(name, f"gradients of {parameter}", difference, "a step of training")


def _compare(name: str, way: str, output: EncoderOutput, expected: EncoderOutput, batch: Batch) -> None:
    tokens = batch.attention_mask[:, None, :, None]
    pairs = [("logits", output.logits, expected.logits)]
    pairs += [
        (f"[CLS] of layer {n}", output.cls[n], cls) for n, cls in expected.cls.items() if n in output.cls
    ]
    pairs += [
        (f"attention of layer {n}", output.attention[n] * tokens, attention * tokens)
        for n, attention in expected.attention.items()
        if n in output.attention
    ]
    for kind, found, wanted in pairs:
        assert found is not None
        assert wanted is not None
        difference = float((found - wanted).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise _inexact(name, kind, difference, way)


def _inexact(name: str, kind: str, difference: float, way: str) -> UsageError:
    return UsageError(
        f"--teacher {name}: its {kind} differ by {difference:.2g} from those of its own forward pass ({way}); "
        "ikd-ray cannot run this model exactly, so choose another teacher"
    )


@torch.no_grad()
def check_students(teacher: Encoder, name: str, pad_id: int, max_tokens: int) -> None:
    """Require that transformers alone can save and load a student of a teacher, and that it answers the same.

    Raises:
        UsageError: it cannot, or its logits differ.
    """
    batch = _random_texts(teacher.config.vocab_size, pad_id, min(max_tokens, max(LENGTHS)))
    student = build_student(teacher, max(1, len(teacher.layers) // 2), "mapped").eval()
    output = EncoderOutput(student(batch).logits)
    with tempfile.TemporaryDirectory() as folder:
        student.model.save_pretrained(folder)
        logging.disable_progress_bar()
        try:
            loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, **NO_REMOTE_CODE
            ).eval()
        except Exception as error:  # transformers has no common exception
            reason = f"a student of it cannot be loaded ({first_line(error)[:200]})"
            raise _cannot_teach(teacher.model, name, reason) from None
        _compare(name, "a student that was saved and loaded", output, _eager_output(loaded, batch), batch)
