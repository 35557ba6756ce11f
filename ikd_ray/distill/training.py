"""Training through one stage: epochs of steps on fixed losses. It knows no regime by name, no Ray and no tracker."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ikd_ray.data.batches import Batch, collate, prefetch, training_batches
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder, EncoderOutput
from ikd_ray.distill.fast_layers import CompactVocabulary
from ikd_ray.distill.frozen_activations import FrozenActivations
from ikd_ray.distill.losses import attention_kl, cls_cosine, hard_label_loss, soft_label_loss
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.targets import TargetBatch, Targets
from ikd_ray.storage.store import digest

CLIP_NORM = 1.0
WARMUP = 0.1  # of the stage's steps where the rate decays, of its first epoch's where it does not

GIVE_BACK_EVERY = 16  # steps: often enough that memory stays within bounds, seldom enough to cost nothing


class DivergedError(RuntimeError):
    """The loss is no finite number any more."""


class Optimization(Protocol):
    """What training reads of a configuration: `Trial` and `TeacherConfig` both have it."""

    @property
    def learning_rate(self) -> float | None: ...  # of a `TeacherConfig` none until it is tuned

    @property
    def batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...


def freeze(model: Encoder, stage: Stage) -> None:
    """Let just the stage's parameters train, and drop out nowhere else.

    What lies below the lowest part that trains is then a constant function of the input.
    """
    groups: list[tuple[nn.Module, bool]] = [(model.embeddings, stage.embeddings), (model.head, stage.head)]
    groups += [(layer, number in stage.trains) for number, layer in enumerate(model.layers, start=1)]
    model.eval().requires_grad_(False)
    for module, trains in groups:
        module.train(trains).requires_grad_(trains)
    dropout = getattr(model.model, "dropout", None)
    if dropout is not None:
        dropout.train(stage.head)


def stage_losses(
    stage: Stage, output: EncoderOutput, target: TargetBatch | None, batch: Batch, matched: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total, and each loss by itself, unweighted.

    The top active layer's cosine loss is among them even where it has no weight, since stages end on it.
    """
    losses: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    for layer in stage.layers:
        assert target is not None
        source = matched[layer - 1]
        if stage.kl:
            losses[f"layer_{layer}/kl"] = attention_kl(
                output.attention[layer], target.attention[source], batch.attention_mask
            )
            weights[f"layer_{layer}/kl"] = stage.kl
        losses[f"layer_{layer}/cos"] = cls_cosine(output.cls[layer], target.cls[source])
        weights[f"layer_{layer}/cos"] = stage.cos
    if stage.soft:
        assert target is not None
        assert target.logits is not None
        assert output.logits is not None
        losses["soft"] = soft_label_loss(output.logits, target.logits, stage.temperature)
        weights["soft"] = stage.soft
    if stage.hard:
        assert output.logits is not None
        losses["hard"] = hard_label_loss(output.logits, batch.labels)
        weights["hard"] = stage.hard
    total = sum(weights[name] * loss for name, loss in losses.items() if weights[name])
    assert isinstance(total, Tensor), "some loss has a weight"
    return total, losses


class StageLoss(nn.Module):
    """Forward pass and losses of a stage as one module whose one output with a gradient is the weighted total.

    So whatever wraps it can tell which parameters the total depends on.
    """

    def __init__(
        self,
        model: Encoder,
        stage: Stage,
        matched: tuple[int, ...],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self.model, self._stage, self._matched, self._autocast = model, stage, matched, autocast

    def forward(
        self, batch: Batch, target: TargetBatch | None, start: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`start` is what the layers below those that train give, where that is stored."""
        stage, depth = self._stage, len(self.model.layers)
        with self._autocast():
            output = self.model(
                batch,
                depth=stage.depth(depth),
                attention_layers=stage.layers if stage.kl else (),
                classify=stage.classifies,
                start=start,
                below=0 if start is None else stage.frozen(depth),
            )
        total, losses = stage_losses(stage, output, target, batch, self._matched)
        return total, {name: loss.detach() for name, loss in losses.items()}


def rate_factor(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """Factor of the peak learning rate at a step of the stage, counted from 0.

    Linear warm-up, then linear decay to zero or constant.
    """
    total = stage.epochs * steps_per_epoch
    warmup = max(1, round(WARMUP * (total if stage.decays else steps_per_epoch)))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup)) if stage.decays else 1.0


def _seed(*key: object) -> int:
    return int(digest(*key)[:15], 16)


class StageDataLoader:
    """What each step of a stage reads, of a process's share of the batches.

    A thread reads the next batches from memory and memory maps while the last one trains.
    """

    def __init__(
        self,
        stage: Stage,
        data: TaskData,
        targets: Targets | None,
        matched: tuple[int, ...],
        world: DistributedContext,
        prefix: FrozenActivations | None,
    ) -> None:
        self._data, self._targets, self._prefix, self._world = data, targets, prefix, world
        self._layers = [matched[layer - 1] for layer in stage.layers]
        self._attention = self._layers if stage.kl else ()
        self._logits = stage.soft > 0

    def __call__(self, plan: list[np.ndarray]) -> Iterator[tuple[Batch, TargetBatch | None, Tensor | None]]:
        """Batch, targets and the frozen layers' output, on the process's device."""
        world = self._world
        for batch, target, start in prefetch(self._read, [rows[world.rank :: world.size] for rows in plan]):
            batch = batch.to(world.device)
            if target:
                assert self._targets is not None
                target = self._targets.complete(target, batch, self._attention)
            yield batch, target, start if start is None else start.to(world.device, non_blocking=True)

    def _read(self, rows: np.ndarray) -> tuple[Batch, TargetBatch | None, Tensor | None]:
        batch, target = collate(self._data.train, rows, self._data.pad_id), None
        if self._layers or self._logits:
            assert self._targets is not None
            target = self._targets.read(
                "train", rows, logits=self._logits, cls=self._layers, attention=self._attention
            )
        start = self._prefix.read("train", rows) if self._prefix else None
        if self._world.device.type != "cuda":
            return batch, target, start
        # Only pinned memory is copied while the GPU computes.
        return batch.map(_pin), target and target.map(_pin), start if start is None else _pin(start)


def _pin(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()


@cache
def _malloc_trim() -> Any:
    """Return the C library's `malloc_trim`, or None where it has none (it is glibc's)."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def trim_heap() -> None:
    """Return the heap's free pages to the operating system.

    Batches of varying lengths leave holes in the heap that later batches do not fit in: without trimming, a process
    that trains for hours takes many times the memory that it uses.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(ctypes.c_size_t(0))


class StageTrainer:
    """A model on its way through one stage.

    A stage's course depends on the model, the stage's own losses and the settings alone: optimizer and schedule
    start anew, batches and dropout come from (seed, stage, epoch, rank). So it can go on from the state after any
    epoch (`weights` and `optimizer`) exactly as if it had never been left.
    """

    def __init__(
        self,
        model: Encoder,
        stage: Stage,
        settings: Optimization,
        data: TaskData,
        targets: Targets | None,
        matched: tuple[int, ...],
        world: DistributedContext,
        prefix: FrozenActivations | None = None,
        kept: Path | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """Computes nothing yet.

        Args:
            prefix: where the output of layers that the stage freezes is kept; without one they run at every step.
            kept: the folder where others find, or left, that very output.
            rows: those of the training set that are trained on, ascending; none: all.
        """
        self.stage = stage
        assert settings.learning_rate is not None
        self._model, self._settings, self._data = model, settings, data
        self._rate = settings.learning_rate
        self._matched, self._world, self._prefix, self._kept = matched, world, prefix, kept
        self._rows = np.arange(len(data.train)) if rows is None else rows
        self._feed = StageDataLoader(stage, data, targets, matched, world, prefix)
        self._vocabulary: CompactVocabulary | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def epoch(self, number: int) -> dict[str, float]:
        """Train one epoch, counted from 1, on top of those before it; returns its mean losses (`train/...`).

        Raises:
            DivergedError: a loss became NaN or infinite.
        """
        stage, settings, world = self.stage, self._settings, self._world
        if self._prefix:
            self._prefix.raise_to(stage.frozen(len(self._model.layers)), self._kept)
        with self._in_place():
            optimizer = self._prepare()
            loss_of = self._wrapped()
            torch.manual_seed(_seed("dropout", settings.seed, stage.name, number, world.rank))
            lengths = self._data.train.lengths[self._rows]
            places = training_batches(lengths, settings.batch_size, settings.seed, stage.name, number)
            plan = [self._rows[batch] for batch in places]
            sums = torch.zeros((), device=world.device)
            for index, (rows, fed) in enumerate(zip(plan, self._feed(plan), strict=True)):
                optimizer.param_groups[0]["lr"] = self._rate * rate_factor(
                    stage, (number - 1) * len(plan) + index, len(plan)
                )
                names, losses = self._step(loss_of, optimizer, *fed, len(rows))
                sums = sums + losses * len(fed[0])
                if index % GIVE_BACK_EVERY == 0:
                    trim_heap()
        means = (world.all_reduce_sum(sums) / len(lengths)).tolist()
        metrics = {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(f"{name} became {value} in stage {stage.name}, epoch {number}")
        return metrics

    def _step(
        self,
        loss_of: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        target: TargetBatch | None,
        start: Tensor | None,
        total_rows: int,
    ) -> tuple[list[str], Tensor]:
        """One step on this process's share of a batch of `total_rows`; returns the share's mean losses."""
        # Its targets are the teacher's, who knows the whole vocabulary.
        seen = self._vocabulary.translate(batch) if self._vocabulary else batch
        total, losses = loss_of(seen, target, start)
        optimizer.zero_grad(set_to_none=True)
        # Workers' gradients are averaged as if their shares were equal.
        (total * (len(batch) * self._world.size / total_rows)).backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP_NORM)
        optimizer.step()
        return ["loss", *losses], torch.stack([total.detach(), *losses.values()])

    def _in_place(self) -> AbstractContextManager[Any]:
        """Within it, embeddings that train are the small ones of the words in use."""
        if self.stage.embeddings and self._vocabulary is None:
            embedding = self._model.model.get_input_embeddings()
            assert isinstance(embedding, nn.Embedding)
            self._vocabulary = CompactVocabulary(embedding, self._data.train, self._data.pad_id, self._rows)
        return self._vocabulary.installed() if self._vocabulary else nullcontext()

    def _prepare(self) -> torch.optim.Optimizer:
        """Free the stage's parameters; the first time also make what steps them, which must find them in place."""
        freeze(self._model, self.stage)
        if self._optimizer is None:
            trained = list(self._trained().values())
            self._optimizer = torch.optim.AdamW(trained, lr=self._rate, weight_decay=0.0, fused=True)
        return self._optimizer

    def _wrapped(self) -> nn.Module:
        """The stage's losses, made anew for each epoch: after its first step DDP adds gradients up in another order,
        so that an epoch's numbers would depend on whether this process trained the one before."""
        # Attention alone gives the top layer's values and feed-forward part no gradient.
        some_unused = not (self.stage.cos or self.stage.classifies)
        loss_of = StageLoss(self._model, self.stage, self._matched, self._world.autocast)
        return self._world.wrap(loss_of, some_unused)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """The parameters that the stage trains, after an epoch: name -> tensor, not copied."""
        with self._in_place():
            return {name: parameter.detach() for name, parameter in self._trained().items()}

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's state after an epoch: "<parameter>/<moment>" -> tensor, not copied."""
        assert self._optimizer is not None
        names, state = list(self.weights()), self._optimizer.state_dict()["state"]
        return {
            f"{names[index]}/{moment}": tensor
            for index, moments in state.items()
            for moment, tensor in moments.items()
        }

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor] | None = None) -> None:
        """Go to the state after an epoch; with the optimizer's part training can go on from there."""
        with self._in_place():
            freeze(self._model, self.stage)
            trained = self._trained()
            with torch.no_grad():
                for name, tensor in weights.items():
                    trained[name].copy_(tensor)
            if optimizer is None:
                return
            stepping = self._prepare()
            index = {name: number for number, name in enumerate(trained)}
            whole = stepping.state_dict() | {"state": {}}
            for key, tensor in optimizer.items():
                name, _, moment = key.rpartition("/")
                whole["state"].setdefault(index[name], {})[moment] = tensor
            stepping.load_state_dict(whole)


def train_stage(training: StageTrainer) -> Iterator[dict[str, float]]:
    """Train until the stage ends; yields each epoch's mean losses."""
    for number in range(1, training.stage.epochs + 1):
        metrics = training.epoch(number)
        yield metrics
        if training.stage.ends(metrics):
            return
