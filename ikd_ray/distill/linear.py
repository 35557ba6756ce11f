"""Linear layers through oneDNN where PyTorch's own choice is slow.

On x86 PyTorch hands float32 matrix products to MKL, which takes its fastest kernels on Intel's processors alone.
oneDNN, which every PyTorch build for x86 has too, takes AVX-512 wherever it is.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


@cache
def processor() -> str:
    """Vendor and model of the CPU, as the system calls them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    pairs = (line.partition(":") for line in lines if ":" in line)
    about = {key.strip(): value.strip() for key, _, value in pairs}
    return " ".join(about.get(key, "") for key in ("vendor_id", "model name")).strip() or platform.processor()


def _mkl_is_slow() -> bool:
    """By vendor, not by a measurement: the same machine must always compute the same numbers."""
    return "AuthenticAMD" in processor()


HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN = HAS_ONEDNN and _mkl_is_slow()


def onednn_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """`left @ right.T + bias`: (..., k), (n, k), (n,) -> (..., n); float32, on the CPU.

    Both must be dense in memory, transposed or not: for gaps oneDNN has just slow kernels.
    """
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        hidden = hidden.contiguous()
        ctx.save_for_backward(hidden, weight)
        return onednn_product(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        rows = gradient.view(-1, gradient.shape[-1])
        return (
            onednn_product(gradient, weight.t()) if of_hidden else None,
            onednn_product(rows.t(), hidden.view(-1, hidden.shape[-1]).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


class Linear(nn.Linear):
    """`nn.Linear` that uses oneDNN for float32 on the CPU."""

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.device.type != "cpu" or hidden.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(hidden)
        return _Product.apply(hidden, self.weight, self.bias)


def use_onednn(model: nn.Module, use: bool = ONEDNN) -> None:
    """Let the model's linear layers use oneDNN, where that is faster, or be PyTorch's own again."""
    for module in model.modules():
        if type(module) in (nn.Linear, Linear):
            module.__class__ = Linear if use else nn.Linear
