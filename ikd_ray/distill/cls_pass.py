"""Run the layers of BERT and its relatives, whose highest layer is computed for [CLS] only."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ikd_ray.data.batches import Batch
from ikd_ray.distill.attention import set_attention
from ikd_ray.distill.encoder_output import EncoderOutput, LayerOutput, cls_vectors, uses_segment_ids

CLS_FAMILIES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
    "ernie",
    "data2vec-text",
)
"""Families whose layers are those of BERT, with norms behind attention and feed-forward part."""


class ClsPass:
    """Passes through an encoder of `CLS_FAMILIES`."""

    reads_cls_only = True

    def __init__(self, model: PreTrainedModel) -> None:
        set_attention(model, interface=True)
        self._model: Any = model
        self._base: Any = model.base_model
        self._is_distilbert = model.config.model_type == "distilbert"
        self._uses_segment_ids = uses_segment_ids(model)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, from the input up."""
        return self._base.transformer.layer if self._is_distilbert else self._base.encoder.layer

    @property
    def embeddings(self) -> nn.ModuleList:
        """All modules below the first layer."""
        return nn.ModuleList(
            [self._base.embeddings, getattr(self._base, "embeddings_project", nn.Identity())]
        )

    @property
    def head(self) -> nn.ModuleList:
        """All modules above the last layer: the pooler, if there is one, and the classifier."""
        names = ("pre_classifier", "classifier")
        above = [getattr(self._model, name) for name in names if hasattr(self._model, name)]
        pooler = getattr(self._base, "pooler", None)
        return nn.ModuleList([pooler, *above] if pooler is not None else above)

    @property
    def attention_heads(self) -> int:
        """Number of attention maps of each layer."""
        return self._model.config.num_attention_heads

    def classify(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the logits for the last layer's [CLS] vectors (`Encoder.classify`)."""
        model, cls = self._model, cls_vectors(output)
        if self._is_distilbert:
            return model.classifier(model.dropout(torch.relu(model.pre_classifier(cls))))
        if getattr(self._base, "pooler", None) is not None:
            return model.classifier(model.dropout(self._base.pooler(cls[:, None])))
        return model.classifier(cls[:, None])

    def hidden(self, batch: Batch, depth: int, start: Tensor | None = None, start_layer: int = 0) -> Tensor:
        """Return the output of layer `depth` (`Encoder.hidden`)."""
        mask = batch.attention_mask[:, None, None, :]
        hidden = self._embed(batch) if start is None else start
        for layer in self.layers[start_layer:depth]:
            hidden = layer(hidden, mask)
        return hidden

    def forward(
        self,
        batch: Batch,
        depth: int,
        attention_layers: Collection[int],
        classify: bool,
        start: Tensor | None,
        start_layer: int,
    ) -> EncoderOutput:
        """Run the lower layers; the highest of them is computed for [CLS] only (`Encoder.forward`)."""
        output, top = EncoderOutput(), start
        for number, top, attention in self.layer_outputs(batch, depth, attention_layers, start, start_layer):
            output.cls[number] = cls_vectors(top)
            if attention is not None:
                output.attention[number] = attention
        if classify:
            assert top is not None
            output.logits = self.classify(top, batch)
        return output

    def layer_outputs(
        self,
        batch: Batch,
        depth: int,
        attention_layers: Collection[int],
        start: Tensor | None,
        start_layer: int,
    ) -> Iterator[LayerOutput]:
        """Yield the output of each layer (`Encoder.layer_outputs`)."""
        mask = batch.attention_mask[:, None, None, :]
        hidden = self._embed(batch) if start is None else start
        for number in range(start_layer + 1, depth + 1):
            layer = self.layers[number - 1]
            record: list[Tensor] | None = [] if number in attention_layers else None
            if number < depth:
                output = hidden = layer(hidden, mask, record=record)
            else:
                output = self._cls_output(layer, hidden, mask, record)
            yield LayerOutput(number, output, record.pop() if record else None)

    def _embed(self, batch: Batch) -> Tensor:
        """Return the input of the first layer, (B, L, hidden)."""
        segments = {"token_type_ids": batch.token_type_ids} if self._uses_segment_ids else {}
        hidden = self._base.embeddings(input_ids=batch.input_ids, **segments)
        return self._base.embeddings_project(hidden) if hasattr(self._base, "embeddings_project") else hidden

    def _cls_output(self, layer: Any, hidden: Tensor, mask: Tensor, record: list[Tensor] | None) -> Tensor:
        """Return a layer's [CLS] vectors, (B, hidden).

        Apart from attention a layer works on each position by itself, so the highest layer that is run needs three
        quarters of its arithmetic at the first position only.
        """
        attention = layer.attention if self._is_distilbert else layer.attention.self
        context, _ = attention(hidden, mask, record=record, first_only=True)
        context, residual = context[:, :1], hidden[:, :1]
        if self._is_distilbert:
            attended = layer.sa_layer_norm(context + residual)
            return layer.output_layer_norm(layer.ffn(attended) + attended)[:, 0]
        return layer.feed_forward_chunk(layer.attention.output(context, residual))[:, 0]
