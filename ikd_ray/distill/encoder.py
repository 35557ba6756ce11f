"""Run a sequence classifier layer by layer, as far as a stage needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ikd_ray.data.batches import Batch
from ikd_ray.distill.cls_pass import CLS_FAMILIES, ClsPass
from ikd_ray.distill.encoder_output import EncoderOutput, LayerOutput
from ikd_ray.distill.fast_layers import use_fast_layers
from ikd_ray.distill.model_pass import ModelPass
from ikd_ray.distill.processor import ONEDNN

IN_PLACE_FAMILIES = ("deberta",)
"""Families that change views of a linear layer's output in place, which only PyTorch's own layer allows."""


class Encoder(nn.Module):
    """Wrapper of a Hugging Face `...ForSequenceClassification` model whose layers are one list.

    The model's parameters are shared; its attention, dropout and linear layers are replaced in place.

    Raises:
        UnsupportedModelError: the layers of the model cannot be run one by one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        use_fast_layers(model, ONEDNN and model.config.model_type not in IN_PLACE_FAMILIES)
        self.model = model
        self._pass = ClsPass(model) if model.config.model_type in CLS_FAMILIES else ModelPass(model)

    @property
    def config(self) -> Any:
        """The model's configuration, of a class that depends on its family."""
        return self.model.config

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, from the input up."""
        return self._pass.layers

    @property
    def embeddings(self) -> nn.ModuleList:
        """All modules below the first layer, and those that all layers share, such as position biases."""
        return self._pass.embeddings

    @property
    def head(self) -> nn.ModuleList:
        """All modules above the last layer: a last norm and a pooler, if there are any, and the classifier."""
        return self._pass.head

    @property
    def attention_heads(self) -> int:
        """Number of attention maps of each layer."""
        return self._pass.attention_heads

    @property
    def reads_cls_only(self) -> bool:
        """True if the logits depend on the last layer's [CLS] vectors alone, and not on those of other tokens."""
        return self._pass.reads_cls_only

    def fingerprint(self) -> str:
        """Return a SHA-256 (hex) of the model's configuration and weights, independent of where it was loaded from."""
        config = json.loads(self.config.to_json_string(use_diff=False))
        config.pop("_name_or_path", None)
        checksum = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in self.model.state_dict().items():
            checksum.update(name.encode())
            checksum.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return checksum.hexdigest()

    def classify(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the logits, (B, labels).

        Args:
            output: the last layer's [CLS] vectors, (B, hidden), or where the head reads more (`reads_cls_only`) or they
                are at hand those of all tokens, (B, L, hidden).
            batch: the B examples.
        """
        return self._pass.classify(output, batch)

    def hidden(self, batch: Batch, depth: int, start: Tensor | None = None, start_layer: int = 0) -> Tensor:
        """Return the output of layer `depth`, (B, L, hidden); `start` is that of layer `start_layer`, if stored."""
        return self._pass.hidden(batch, depth, start, start_layer)

    def forward(
        self,
        batch: Batch,
        depth: int | None = None,
        attention_layers: Collection[int] = (),
        classify: bool = True,
        start: Tensor | None = None,
        start_layer: int = 0,
    ) -> EncoderOutput:
        """Run the lower layers of the model.

        Args:
            batch: B examples of L tokens.
            depth: number of layers to run; None: all.
            attention_layers: layers whose attention probabilities are returned; the others use the fused kernel.
            classify: whether to compute logits, which takes all layers.
            start: output of layer `start_layer`, from where the pass starts: (B, L, hidden), or where it is the last
                layer and `reads_cls_only` its [CLS] vectors, (B, hidden).
            start_layer: number of layers that are not run.
        """
        depth = len(self.layers) if depth is None else depth
        return self._pass.forward(batch, depth, attention_layers, classify, start, start_layer)

    def layer_outputs(
        self,
        batch: Batch,
        depth: int,
        attention_layers: Collection[int] = (),
        start: Tensor | None = None,
        start_layer: int = 0,
    ) -> Iterator[LayerOutput]:
        """Yield the output of each layer; the arguments are those of `forward`.

        A layer is computed when it is asked for, and its attention, if wanted, is not kept.
        """
        return self._pass.layer_outputs(batch, depth, attention_layers, start, start_layer)
