"""Run the layers of any encoder by the model's own forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from ikd_ray.data.batches import Batch
from ikd_ray.distill.encoder_output import EncoderOutput, LayerOutput, model_inputs
from ikd_ray.distill.layer_stack import LayerStack


class ModelPass(LayerStack):
    """Passes through an encoder of any family; exact, since everything but the list of layers is the model's own.

    Raises:
        UnsupportedModelError: the model's layers cannot be run one by one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._model = model

    def classify(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the logits for the last layer's output (`Encoder.classify`)."""
        if output.ndim == 2:  # of [CLS], and so the first token is enough
            output = output[:, None]
            columns = {
                name: getattr(batch, name)[:, :1]
                for name in ("input_ids", "token_type_ids", "attention_mask")
            }
            batch = replace(batch, **columns)
        depth = len(self.layers)
        with self.running(depth, output, depth):
            return self._model(**model_inputs(self._model, batch)).logits

    def hidden(self, batch: Batch, depth: int, start: Tensor | None = None, start_layer: int = 0) -> Tensor:
        """Return the output of layer `depth` (`Encoder.hidden`)."""
        with self.running(depth, start, start_layer) as (outputs, _):
            self._model.base_model(**model_inputs(self._model, batch))
        return outputs[depth]

    def forward(
        self,
        batch: Batch,
        depth: int,
        attention_layers: Collection[int],
        classify: bool,
        start: Tensor | None,
        start_layer: int,
    ) -> EncoderOutput:
        """Run the lower layers in one pass of the model (`Encoder.forward`)."""
        if classify and start is not None and start.ndim == 2:
            return EncoderOutput(self.classify(start, batch))
        model = self._model if classify else self._model.base_model
        with self.running(depth, start, start_layer, attention_layers) as (outputs, attention):
            result = model(**model_inputs(self._model, batch))
        cls = {layer: hidden[:, 0] for layer, hidden in outputs.items()}
        return EncoderOutput(result.logits if classify else None, cls, attention)

    def layer_outputs(
        self,
        batch: Batch,
        depth: int,
        attention_layers: Collection[int],
        start: Tensor | None,
        start_layer: int,
    ) -> Iterator[LayerOutput]:
        """Yield the output of each layer, each from a pass of its own (`Encoder.layer_outputs`)."""
        for layer in range(start_layer + 1, depth + 1):
            wanted = [layer] if layer in attention_layers else []
            with self.running(layer, start, layer - 1, wanted) as (outputs, attention):
                self._model.base_model(**model_inputs(self._model, batch))
            start = outputs[layer]
            yield LayerOutput(layer, start, attention.get(layer))
