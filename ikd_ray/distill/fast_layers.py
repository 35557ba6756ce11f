"""Replacements for a model's layers that are faster on a CPU.

`Linear` runs float32 products through oneDNN. On x86 PyTorch hands them to MKL, which takes its fastest kernels on
Intel's processors alone; oneDNN, part of every x86 build of PyTorch, uses AVX-512 on any processor that has it.

`Dropout` draws 16 random bits per element. PyTorch's own draws each element's mask by itself, which takes longer than
the layer norm and the activation function together.

`CompactVocabulary` trains the embedding rows that a data set uses instead of the whole vocabulary. A dense optimizer
step over all rows costs as much as several layers. Rows without gradient and without weight decay do not move, so
training the used rows and copying them back is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from ikd_ray.data.batches import Batch
from ikd_ray.data.tokens import TokenSplit
from ikd_ray.distill.processor import ONEDNN

RANDOM_VALUES = 2**16
"""Number of values of the random integers that dropout compares with its probability."""


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `inputs @ weight.T + bias` with oneDNN, in float32 on the CPU.

    Args:
        inputs: (..., k). Dense in memory, transposed or not: oneDNN is slow on strided tensors.
        weight: (n, k), dense as well.
        bias: (n,).

    Returns:
        (..., n).
    """
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inputs = inputs.contiguous()
        ctx.save_for_backward(inputs, weight)
        return onednn_linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        grad_output = grad_output.contiguous()
        rows = grad_output.view(-1, grad_output.shape[-1])
        return (
            onednn_linear(grad_output, weight.t()) if needs_inputs else None,
            onednn_linear(rows.t(), inputs.view(-1, inputs.shape[-1]).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


class Linear(nn.Linear):
    """`nn.Linear` that uses oneDNN for float32 on the CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to (..., in_features)."""
        if inputs.device.type != "cpu" or inputs.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(inputs)
        return _LinearFunction.apply(inputs, self.weight, self.bias)


def dropout(inputs: Tensor, p: float) -> Tensor:
    """Zero elements with probability `p`, and scale the others by 1 / (1 - p), as PyTorch's dropout does.

    On the CPU `p` is rounded to a multiple of 2 ** -16, and the masks are others than PyTorch's of the same seed.

    Args:
        inputs: of any shape.
        p: a probability, from 0 to 1.
    """
    dropped = round(p * RANDOM_VALUES)
    if inputs.device.type != "cpu" or dropped == RANDOM_VALUES:
        return functional.dropout(inputs, p)
    if not dropped:
        return inputs
    bits = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    # Compared in place, since a comparison that returns booleans takes ten times as long.
    kept = bits.view(torch.int16)[: inputs.numel()].ge_(dropped - RANDOM_VALUES // 2)
    # Scaled by itself, since a mask in 16 bits would round the factor.
    return inputs * kept.view(inputs.shape).to(inputs.dtype) * (RANDOM_VALUES / (RANDOM_VALUES - dropped))


class Dropout(nn.Dropout):
    """`nn.Dropout` that uses `dropout`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to a tensor of any shape."""
        return dropout(inputs, self.p) if self.training else inputs


def use_fast_layers(model: nn.Module, onednn: bool = ONEDNN) -> None:
    """Replace a model's dropout layers, and with `onednn` its linear layers, in place."""
    _replace(model, nn.Dropout, Dropout)
    if onednn:
        _replace(model, nn.Linear, Linear)


def use_pytorch_layers(model: nn.Module) -> None:
    """Replace a model's fast layers by PyTorch's own, in place."""
    _replace(model, Dropout, nn.Dropout)
    _replace(model, Linear, nn.Linear)


def _replace(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new


class CompactVocabulary:
    """A smaller word embedding that stands in for a model's while it trains on some rows of one split.

    Args:
        pad_id: the padding's token id. Ids up to it keep their numbers, as models know the padding by its number.
        used: rows of the split that are trained on.
    """

    def __init__(self, embedding: nn.Embedding, split: TokenSplit, pad_id: int, used: np.ndarray) -> None:
        rows = torch.from_numpy(
            np.union1d(np.arange(pad_id + 1), split.input_ids.flat(used)).astype(np.int64)
        )
        self._embedding = embedding
        self._rows = rows.to(embedding.weight.device)
        self._lookup = torch.zeros(embedding.num_embeddings, dtype=torch.int64, device=self._rows.device)
        self._lookup[self._rows] = torch.arange(len(rows), device=self._rows.device)
        self._compact = nn.Parameter(embedding.weight.detach()[self._rows])

    def translate(self, batch: Batch) -> Batch:
        """Return the batch with token ids that index the smaller embedding."""
        return replace(batch, input_ids=self._lookup[batch.input_ids])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Give the model the smaller embedding within the block; copy its rows back at the end."""
        whole = self._embedding.weight
        self._embedding.weight = self._compact
        try:
            yield
        finally:
            self._embedding.weight = whole
            with torch.no_grad():
                whole[self._rows] = self._compact
