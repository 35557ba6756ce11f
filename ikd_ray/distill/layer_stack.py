"""Run a part of any encoder's layers by the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ikd_ray.distill.attention import AttentionRecorder, keep_in_float32, set_attention

PROBE_TOKENS = 7


class UnsupportedModelError(ValueError):
    """A model whose layers cannot be run one by one, with the reason."""


class LayerStack:
    """The list of layers of a Hugging Face encoder, any part of which can run.

    Layers above those that run are cut off the list; those below are replaced by modules that return a stored output.
    The rest of the model, such as masks and position biases, stays its own.

    Args:
        model: an encoder with one list of `config.num_hidden_layers` layers. Its attention is replaced in place.

    Raises:
        UnsupportedModelError: the model has no such list, or no attention of one map per head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._parent, self._name = _find_layers(model)
        keep_in_float32(model)
        for interface in (True, False):
            if set_attention(model, interface):
                self._recorder = AttentionRecorder(self.layers, interface)
                probe = _Probe(model, self)
                if probe.heads:
                    break
        else:
            raise UnsupportedModelError("its layers compute no attention of every token to every token")
        self.embeddings = probe.embeddings
        """All modules below the first layer, and those that all layers share."""
        self.head = probe.head
        """All modules above the last layer."""
        self.attention_heads = probe.heads
        """Number of attention maps of each layer."""
        self.reads_cls_only = self._reads_cls_only(model, probe.output)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, from the input up."""
        return getattr(self._parent, self._name)

    @contextmanager
    def running(
        self,
        depth: int,
        start: Tensor | None = None,
        start_layer: int = 0,
        attention_layers: Collection[int] = (),
    ) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
        """Let a forward pass of the model within the block run some layers only.

        Args:
            depth: the highest layer that runs.
            start: (B, L, hidden), output of layer `start_layer`.
            start_layer: number of layers that are replaced.
            attention_layers: layers whose attention is recorded.

        Yields:
            Dictionaries that the pass fills: layer -> its output, (B, L, hidden), and layer -> attention
            probabilities, (B, heads, L, L).
        """
        whole, outputs = self.layers, dict[int, Tensor]()
        replaced = [
            _StoredLayer(layer, start if number == start_layer else None)
            for number, layer in enumerate(whole[:start_layer], 1)
        ]
        run = list(whole[start_layer:depth])
        with ExitStack() as stack:
            attention = stack.enter_context(self._recorder.recording(attention_layers))
            for number, layer in enumerate(run, start_layer + 1):
                stack.callback(layer.register_forward_hook(_store_output(number, outputs)).remove)
            stack.callback(setattr, self._parent, self._name, whole)
            setattr(self._parent, self._name, nn.ModuleList([*replaced, *run]))
            yield outputs, attention

    @torch.no_grad()
    def _reads_cls_only(self, model: PreTrainedModel, output: Tensor) -> bool:
        """Return whether logits stay the same if the last layer's output at other positions is zero."""
        cls = torch.zeros_like(output)
        cls[:, 0] = output[:, 0]
        logits = []
        for start in (output, cls):
            with self.running(len(self.layers), start, len(self.layers)):
                logits.append(_run_probe(model).logits)
        return torch.equal(*logits)


def _find_layers(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """Return the module that holds an encoder's list of layers, and the list's name in it.

    It is the outermost `ModuleList` with as many members as the configuration has layers.
    """
    wanted, found = model.config.num_hidden_layers, list[tuple[nn.Module, str]]()

    def search(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == wanted:
                found.append((module, name))
            else:
                search(child)

    search(model.base_model)
    if not found:
        raise UnsupportedModelError(f"it has no list of its {wanted} layers")
    if len(found) > 1:
        raise UnsupportedModelError(
            f"it has {len(found)} lists of {wanted} modules, so its layers are not one list"
        )
    return found[0]


class _StoredLayer(nn.Module):
    """Stands for a layer that does not run: returns what it is given, or a stored output."""

    def __init__(self, layer: nn.Module, output: Tensor | None) -> None:
        super().__init__()
        self._replaced = [layer]  # in a list, so that the layer is no part of this module
        self._output = output

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the layer, as models ask a layer for its kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_replaced"][0], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = hidden if self._output is None else self._output
        length: Any = self._replaced[0].ikd_tuple_length
        return output if length is None else (output, *[None] * (length - 1))


def _store_output(number: int, outputs: dict[int, Tensor]) -> Callable[..., None]:
    def store(layer: nn.Module, inputs: Any, output: Any) -> None:
        outputs[number] = output[0] if isinstance(output, tuple) else output

    return store


class _Probe:
    """A pass over a few tokens that shows which modules run before the layers, and which behind them."""

    def __init__(self, model: PreTrainedModel, stack: LayerStack) -> None:
        layers, base = stack.layers, model.base_model
        around = [*_modules_around(base, layers)]
        called: list[nn.Module] = []
        with ExitStack() as handles:
            for module in (*around, *layers):
                handles.callback(module.register_forward_pre_hook(lambda m, _: called.append(m)).remove)
            for layer in layers:
                handles.callback(layer.register_forward_hook(_note_tuple).remove)
            with stack.running(len(layers), attention_layers=range(1, len(layers) + 1)) as (
                outputs,
                attention,
            ):
                _run_probe(model)
        end = called.index(layers[-1])
        above = {id(module) for module in called[end:]} - {id(module) for module in called[:end]}
        self.embeddings = nn.ModuleList([module for module in around if id(module) not in above])
        self.head = nn.ModuleList(
            [
                *(module for module in around if id(module) in above),
                *(module for module in model.children() if module is not base),
            ]
        )
        self.output = outputs[len(layers)]
        heads = {probabilities.shape[1] for probabilities in attention.values()}
        self.heads = heads.pop() if len(attention) == len(layers) and len(heads) == 1 else 0
        """Attention maps of each layer; 0 if not every layer has computed as many."""


def _note_tuple(layer: Any, inputs: Any, output: Any) -> None:
    layer.ikd_tuple_length = len(output) if isinstance(output, tuple) else None


def _modules_around(module: nn.Module, layers: nn.ModuleList) -> Iterator[nn.Module]:
    """Yield the largest modules that do not hold the layers."""
    for child in module.children():
        if child is layers:
            continue
        if any(inner is layers for inner in child.modules()):
            yield from _modules_around(child, layers)
        else:
            yield child


@torch.no_grad()
def _run_probe(model: PreTrainedModel) -> Any:
    """Run a model on `PROBE_TOKENS` tokens in evaluation mode, and return its output."""
    ids = torch.arange(PROBE_TOKENS, device=next(model.parameters()).device)[None]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for module, training in modes.items():
            module.training = training
