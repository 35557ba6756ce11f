"""The time that an epoch cannot do without, at a peak of matrix products.

A weight that is passed forward and backward costs 6 floating-point operations a token: 2 forward, 2 for the
gradient of its input, 2 for its own. Passed are the encoder layers from the lowest that trains to the highest
that a loss needs; padding, embeddings, the head, and attention's own products count nothing.

Two floors:
- the plain one passes every token through all of these layers, at the peak of `torch.mm`;
- the exact one takes the fastest matrix products that the machine is seen to do, and knows that all losses look
  at the top layer's attention and its [CLS] output alone: there just query, key and value are needed for every
  token, everything after them for one token an example. (Without attention losses one query an example would do,
  which it leaves out.) Nor does a constant input need a gradient. A loop that uses any of it goes below the plain
  floor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

PROJECTIONS = ("query", "key", "value", "q_lin", "k_lin", "v_lin")
PASSES = 6  # floating-point operations for a weight and a token, forward and backward


@dataclass(frozen=True)
class Work:
    """What an epoch must pass: a layer's weights, and the data's tokens (padding left out) and examples."""

    projections: int  # weights of query, key and value of one layer
    rest: int  # its other matrices' weights
    tokens: int
    examples: int

    def flops(self, layers: float) -> float:
        """Operations to pass all tokens through so many layers."""
        return PASSES * layers * (self.projections + self.rest) * self.tokens

    def exact_flops(self, layers: float, constant_input: bool) -> float:
        """The same, with just the [CLS] token behind the top layer's attention; at least one layer.

        Args:
            constant_input: what enters the lowest layer does not train, so that it needs no gradient.
        """
        top = self.projections * self.tokens + self.rest * self.examples
        saved = 2 * self.projections * self.tokens if constant_input else 0
        return self.flops(layers - 1) + PASSES * top - saved


def layer_weights(layer: nn.Module) -> tuple[int, int]:
    """Weights of an encoder layer's query, key and value, and of its other matrices."""
    projections = rest = 0
    for name, parameter in layer.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.split(".")[-2] in PROJECTIONS:
            projections += parameter.numel()
        else:
            rest += parameter.numel()
    return projections, rest
