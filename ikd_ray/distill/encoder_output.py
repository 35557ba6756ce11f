"""The outputs of encoders, and the inputs of models of any family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from ikd_ray.data.batches import Batch


@dataclass
class EncoderOutput:
    """Outputs of a model for one batch; layers count from 1."""

    logits: Tensor | None = None
    """(B, labels)."""
    cls: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> [CLS] vectors, (B, hidden)."""
    attention: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> attention probabilities before dropout, (B, heads, L, L); a teacher's are 0 at padding."""

    def map(self, function: Callable[[Tensor], Tensor]) -> EncoderOutput:
        """Return the outputs with a function applied to every tensor."""
        return EncoderOutput(
            None if self.logits is None else function(self.logits),
            {layer: function(vectors) for layer, vectors in self.cls.items()},
            {layer: function(probabilities) for layer, probabilities in self.attention.items()},
        )


class LayerOutput(NamedTuple):
    """Output of one layer for a batch."""

    layer: int
    """The layer's number, from 1."""
    output: Tensor
    """(B, L, hidden), or of the highest layer of a pass only the [CLS] vectors, (B, hidden)."""
    attention: Tensor | None
    """Attention probabilities before dropout, (B, heads, L, L), if they were asked for."""


def cls_vectors(output: Tensor) -> Tensor:
    """Return the [CLS] vectors, (B, hidden), of a layer's output, which may be only these or (B, L, hidden)."""
    return output if output.ndim == 2 else output[:, 0]


def uses_segment_ids(model: PreTrainedModel) -> bool:
    """Return whether a model distinguishes the two texts of a pair by `token_type_ids`."""
    is_argument = "token_type_ids" in inspect.signature(model.forward).parameters
    return is_argument and getattr(model.config, "type_vocab_size", 0) >= 2


def model_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Return a batch as keyword arguments of a Hugging Face model."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    return inputs | ({"token_type_ids": batch.token_type_ids} if uses_segment_ids(model) else {})
