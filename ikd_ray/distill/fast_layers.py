"""Replacements for a model's layers that compute the same numbers faster.

`Linear` runs float32 products through oneDNN. On x86 PyTorch hands them to MKL, which takes its fastest kernels on
Intel's processors alone; oneDNN, part of every x86 build of PyTorch, uses AVX-512 on any processor that has it.

`CompactVocabulary` trains the embedding rows that a data set uses instead of the whole vocabulary. A dense optimizer
step over all rows costs as much as several layers. Rows without gradient and without weight decay do not move, so
training the used rows and copying them back is exact.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ikd_ray.data.batches import Batch
from ikd_ray.data.tokens import TokenSplit


@cache
def cpu_model() -> str:
    """Return the CPU's vendor and model name as the operating system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    pairs = (line.partition(":") for line in lines if ":" in line)
    about = {key.strip(): value.strip() for key, _, value in pairs}
    return " ".join(about.get(key, "") for key in ("vendor_id", "model name")).strip() or platform.processor()


@cache
def supports_bfloat16() -> bool:
    """Return whether the CPU has instructions for products of bfloat16: AVX-512 BF16, AMX, or ARM's BF16."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Decided by vendor instead of by a measurement: one machine must always compute the same numbers.
ONEDNN = HAS_ONEDNN and "AuthenticAMD" in cpu_model()


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


def use_onednn(model: nn.Module, use: bool = ONEDNN) -> None:
    """Switch a model's linear layers, in place, to oneDNN (by default where it is faster) or back to PyTorch's own."""
    for module in model.modules():
        if type(module) in (nn.Linear, Linear):
            module.__class__ = Linear if use else nn.Linear


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
