"""Run a BERT-family sequence classifier layer by layer, as far as a stage needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ikd_ray.data.batches import Batch
from ikd_ray.distill.fast_layers import use_onednn

ATTENTION = "ikd"
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    record: list[Tensor] | None = None,
    first_only: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers' registry of attention functions expects it.

    transformers itself returns attention weights only after dropout. With a list as `record` the weights before
    dropout, (B, heads, L, L), are appended to it; without one PyTorch's fused kernel is used. With `first_only` only
    the first position's output is right.
    """
    length = query.shape[2]
    if record is None:
        query = query[:, :, :1] if first_only else query
        out = scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling)
    else:
        scores = query @ key.transpose(2, 3) * scaling
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        probabilities = scores.softmax(-1)
        record.append(probabilities)
        out = drop(probabilities[:, :, :1] if first_only else probabilities, dropout) @ value
    # transformers expects the shape of all positions.
    return out.expand(-1, -1, length, -1).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def uses_segment_ids(config: PretrainedConfig) -> bool:
    """Return whether a model of `FAMILIES` distinguishes the two texts of a pair by `token_type_ids`."""
    return config.model_type != "distilbert" and getattr(config, "type_vocab_size", 2) >= 2


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


class Encoder(nn.Module):
    """Wrapper of a Hugging Face `...ForSequenceClassification` model of one of `FAMILIES`.

    The model's parameters are shared; its attention and linear layers are replaced in place.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        model.set_attn_implementation(ATTENTION)
        use_onednn(model)
        self.model = model

    @property
    def config(self) -> Any:
        """The model's configuration, of a class that depends on its family."""
        return self.model.config

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, from the input up."""
        base: Any = self.model.base_model
        return base.transformer.layer if self.config.model_type == "distilbert" else base.encoder.layer

    @property
    def embeddings(self) -> nn.ModuleList:
        """All modules below the first layer."""
        base: Any = self.model.base_model
        return nn.ModuleList([base.embeddings, getattr(base, "embeddings_project", nn.Identity())])

    @property
    def head(self) -> nn.ModuleList:
        """All modules above the last layer: the pooler, if there is one, and the classifier."""
        names = ("pre_classifier", "classifier")
        above = [getattr(self.model, name) for name in names if hasattr(self.model, name)]
        pooler = getattr(self.model.base_model, "pooler", None)
        return nn.ModuleList([pooler, *above] if pooler is not None else above)

    def fingerprint(self) -> str:
        """Return a SHA-256 (hex) of the model's configuration and weights, independent of where it was loaded from."""
        config = json.loads(self.config.to_json_string(use_diff=False))
        config.pop("_name_or_path", None)
        checksum = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in self.model.state_dict().items():
            checksum.update(name.encode())
            checksum.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return checksum.hexdigest()

    def embed(self, batch: Batch) -> Tensor:
        """Return the input of the first layer, (B, L, hidden)."""
        base: Any = self.model.base_model
        segments = {"token_type_ids": batch.token_type_ids} if uses_segment_ids(self.config) else {}
        hidden = base.embeddings(input_ids=batch.input_ids, **segments)
        return base.embeddings_project(hidden) if hasattr(base, "embeddings_project") else hidden

    def classify(self, cls: Tensor) -> Tensor:
        """Return the logits, (B, labels), for the last layer's [CLS] vectors, (B, hidden)."""
        model: Any = self.model
        kind, sequence = self.config.model_type, cls[:, None]
        if kind == "bert":
            return model.classifier(model.dropout(model.bert.pooler(sequence)))
        if kind == "distilbert":
            return model.classifier(model.dropout(torch.relu(model.pre_classifier(cls))))
        return model.classifier(sequence)

    def hidden(self, batch: Batch, depth: int, start: Tensor | None = None, start_layer: int = 0) -> Tensor:
        """Return the output of layer `depth`, (B, L, hidden); `start` is that of layer `start_layer`, if stored."""
        mask = batch.attention_mask[:, None, None, :]
        hidden = self.embed(batch) if start is None else start
        for layer in self.layers[start_layer:depth]:
            hidden = layer(hidden, mask)
        return hidden

    def forward(
        self,
        batch: Batch,
        depth: int | None = None,
        attention_layers: Collection[int] = (),
        classify: bool = True,
        start: Tensor | None = None,
        start_layer: int = 0,
    ) -> EncoderOutput:
        """Run the lower layers of the model; the highest of them is computed for [CLS] only.

        Args:
            batch: B examples of L tokens.
            depth: number of layers to run; None: all.
            attention_layers: layers whose attention probabilities are returned; the others use the fused kernel.
            classify: whether to compute logits, which takes all layers.
            start: output of layer `start_layer`, from where the pass starts: (B, L, hidden), or where it is the last
                layer its [CLS] vectors, (B, hidden).
            start_layer: number of layers that are not run.
        """
        output = EncoderOutput()
        depth = len(self.layers) if depth is None else depth
        top = start
        for number, top, attention in self.layer_outputs(batch, depth, attention_layers, start, start_layer):
            output.cls[number] = top
            if attention is not None:
                output.attention[number] = attention
        if classify:
            assert top is not None
            output.logits = self.classify(top)
        return output

    def layer_outputs(
        self,
        batch: Batch,
        depth: int,
        attention_layers: Collection[int] = (),
        start: Tensor | None = None,
        start_layer: int = 0,
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield each layer's number, [CLS] vectors and attention probabilities; the arguments are those of `forward`.

        A layer is computed when it is asked for, and its attention, if wanted, is not kept.
        """
        mask = batch.attention_mask[:, None, None, :]
        hidden = self.embed(batch) if start is None else start
        for number in range(start_layer + 1, depth + 1):
            layer = self.layers[number - 1]
            record: list[Tensor] | None = [] if number in attention_layers else None
            if number < depth:
                hidden = layer(hidden, mask, record=record)
                cls = hidden[:, 0]
            else:
                cls = self._cls_output(layer, hidden, mask, record)
            yield number, cls, record.pop() if record else None

    def _cls_output(self, layer: Any, hidden: Tensor, mask: Tensor, record: list[Tensor] | None) -> Tensor:
        """Return a layer's [CLS] vectors, (B, hidden).

        Apart from attention a layer works on each position by itself, so the highest layer that is run needs three
        quarters of its arithmetic at the first position only.
        """
        attention = layer.attention if self.config.model_type == "distilbert" else layer.attention.self
        context, _ = attention(hidden, mask, record=record, first_only=True)
        context, residual = context[:, :1], hidden[:, :1]
        if self.config.model_type == "distilbert":
            attended = layer.sa_layer_norm(context + residual)
            return layer.output_layer_norm(layer.ffn(attended) + attended)[:, 0]
        return layer.feed_forward_chunk(layer.attention.output(context, residual))[:, 0]
