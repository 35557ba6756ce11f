"""Attention functions that return the probabilities before dropout, for models of any family.

transformers itself returns attention weights only after dropout, and only where attention is computed eagerly. Models
that compute attention through transformers' `AttentionInterface` use the function of this module; in others the
probabilities are the input of a dropout module, which a hook reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ikd_ray.distill import fast_layers

ATTENTION = "ikd"
"""Name of this module's function in transformers' registry."""
FLOAT32_ATTENTION = {"deberta": ("cpu", "cuda"), "deberta-v2": ("cpu",)}
"""Devices on which a family's own attention leaves autocast, by `model_type`.

DeBERTa's masks 16-bit scores with the least value of its queries' 32 bits, which fails. That of DeBERTa-v2 would take
the softmax in 16 bits, which CUDA's autocast does not.
"""
DEBERTA_ATTENTION = "DisentangledSelfAttention"
"""Class of the module that computes it."""


class AttentionRecorder:
    """Records the attention probabilities of a model's layers while it runs.

    Args:
        layers: the layers, from the input up.
        interface: whether they compute attention by this module's function (`set_attention`).
    """

    def __init__(self, layers: nn.ModuleList, interface: bool) -> None:
        self._interface = interface
        self._modules = {number: list(layer.modules()) for number, layer in enumerate(layers, 1)}

    @contextmanager
    def recording(self, numbers: Collection[int]) -> Iterator[dict[int, Tensor]]:
        """Yield a dictionary that gets the probabilities, (B, heads, L, L), of layers with some numbers."""
        found: dict[int, Tensor] = {}
        with ExitStack() as stack:
            if self._interface:
                wanted = {id(module): number for number in numbers for module in self._modules[number]}
                stack.callback(_recorded.reset, _recorded.set((wanted, found)))
            for number in () if self._interface else numbers:
                for module in self._modules[number]:
                    if isinstance(module, nn.Dropout):
                        stack.callback(module.register_forward_pre_hook(_record_map(number, found)).remove)
            yield found


_recorded: ContextVar[tuple[Mapping[int, int], dict[int, Tensor]] | None] = ContextVar(
    "recorded", default=None
)


def _record_map(number: int, found: dict[int, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        probabilities = inputs[0]
        if probabilities.ndim == 4 and probabilities.shape[-1] == probabilities.shape[-2]:
            found[number] = probabilities

    return record


def set_attention(model: PreTrainedModel, interface: bool) -> bool:
    """Set how a model computes attention: by this module's function, or eagerly; return False if it cannot."""
    wanted = ATTENTION if interface else "eager"
    with suppress(ValueError):  # of models that know only their own ways
        model.set_attn_implementation(wanted)
    return model.config._attn_implementation == wanted


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    record: list[Tensor] | None = None,
    first_only: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers' registry of attention functions expects it.

    With a list as `record`, or within `AttentionRecorder.recording`, the weights before dropout, (B, heads, L, L), are
    recorded. Else PyTorch's fused kernel is used where there is one: for dropout on a CPU it has none. With
    `first_only` only the first position's output is right.
    """
    length = query.shape[2]
    numbers, found = _recorded.get() or ({}, {})
    number = numbers.get(id(module))
    is_recorded = record is not None or number is not None
    if first_only and not is_recorded:
        query = query[:, :, :1]
    if not is_recorded and not (dropout and query.device.type == "cpu"):
        out = scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling)
    else:
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if mask is not None and mask.dtype == torch.bool:
            # Not minus infinity: a padding position may see nothing at all.
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores = scores + mask
        # Autocast would round probabilities to 16 bits on a CPU.
        probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        if record is not None:
            record.append(probabilities)
        if number is not None:
            found[number] = probabilities
        out = fast_layers.dropout(probabilities[:, :, :1] if first_only else probabilities, dropout) @ value
    # transformers expects the shape of all positions.
    return out.expand(-1, -1, length, -1).transpose(1, 2), None


def keep_in_float32(model: PreTrainedModel) -> None:
    """Let the modules of `FLOAT32_ATTENTION` leave autocast while they run."""
    devices = FLOAT32_ATTENTION.get(model.config.model_type, ())
    for module in model.modules() if devices else ():
        # A student's modules are copies of its teacher's, with their hooks.
        if type(module).__name__ == DEBERTA_ATTENTION and not hasattr(module, "ikd_autocast_before"):
            module.ikd_autocast_before = []  # type: ignore[assignment]
            module.register_forward_pre_hook(partial(_leave_autocast, devices))
            module.register_forward_hook(_return_to_autocast, always_call=True)


def _leave_autocast(devices: Collection[str], module: Any, inputs: Any) -> None:
    device = next(module.parameters()).device.type
    before = torch.is_autocast_enabled(device)
    module.ikd_autocast_before.append((device, before))
    torch.set_autocast_enabled(device, before and device not in devices)


def _return_to_autocast(module: Any, inputs: Any, output: Any) -> None:
    torch.set_autocast_enabled(*module.ikd_autocast_before.pop())


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
