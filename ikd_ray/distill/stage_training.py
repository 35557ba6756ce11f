"""Train one stage: epochs of steps on fixed losses. Knows no regime by name, no Ray and no tracker."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ikd_ray.config import TeacherConfig, Trial
from ikd_ray.data.batches import Batch, collate, prefetch, training_batches
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import EncoderOutput
from ikd_ray.distill.fast_layers import CompactVocabulary
from ikd_ray.distill.frozen_activations import FrozenActivations
from ikd_ray.distill.losses import attention_kl, cls_cosine, hard_label_loss, soft_label_loss
from ikd_ray.distill.memory import ModelShape, StepMemory
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.targets import Targets
from ikd_ray.storage.store import digest

CLIP_NORM = 1.0
WARMUP = 0.1
"""Share of the steps with a rising learning rate: of the stage's where it decays, else of the first epoch's."""
TRIM_EVERY = 16
"""Steps between two calls of `trim_heap`: often enough to bound memory, seldom enough to cost nothing."""


class DivergedError(RuntimeError):
    """A training loss became NaN or infinite."""


class StageTrainer:
    """Trains a model through one stage.

    The result depends on the model, the stage's own losses and the settings alone: optimizer and schedule start
    anew with the stage, and batches and dropout are seeded by (seed, stage, epoch, rank). So training can resume from
    the state after any epoch (`optimizer`) exactly as if it had never stopped.

    Args:
        model: the model to train, in place. Nothing is computed before `train_epoch`.
        settings: learning rate (a `TeacherConfig` must have had its default resolved), batch size and seed.
        targets: the teacher's outputs; None for a stage of hard labels alone.
        matched: for each layer of the model the teacher layer it imitates, counted from 1.
        frozen: stored outputs of the layers that the stage freezes; None: they are computed at every step.
        activations_dir: folder where other trials find or leave exactly those outputs.
        rows: (n,) training examples to use, ascending; None: all. Stages of hard labels alone leave out those without.
        memory: bound above which a step is made of micro-batches; None: the default.
    """

    def __init__(
        self,
        model: Encoder,
        stage: Stage,
        settings: Trial | TeacherConfig,
        data: TaskData,
        targets: Targets | None,
        matched: tuple[int, ...],
        world: DistributedContext,
        frozen: FrozenActivations | None = None,
        activations_dir: Path | None = None,
        rows: np.ndarray | None = None,
        memory: StepMemory | None = None,
    ) -> None:
        rows = np.arange(len(data.train)) if rows is None else rows
        is_labelled = np.isin(rows, data.train.labelled_rows)
        if not stage.uses_teacher:
            rows, is_labelled = rows[is_labelled], is_labelled[is_labelled]
        self._labelled_fraction = float(is_labelled.mean())
        self.stage = stage
        self.optimizer = StageOptimizer(model, stage, settings, data, rows)
        self._loss = StageLoss(model, stage, matched, world.autocast, some_unlabelled=not is_labelled.all())
        cells = partial(ModelShape.of(model.config).training_cells, stage, len(model.layers))
        bound = memory or StepMemory()
        split = partial(bound.split, lengths=data.train.lengths, cells=cells, processes=world.size)
        self._loader = StageDataLoader(stage, settings, data, rows, targets, matched, world, frozen, split)
        self._seed, self._world = settings.seed, world
        self._frozen, self._activations_dir = frozen, activations_dir

    def train_epoch(self, number: int) -> dict[str, float]:
        """Train epoch `number` (1-based) on top of those before it.

        Returns:
            The epoch's mean losses, `train/<loss>`.

        Raises:
            DivergedError: a loss became NaN or infinite.
        """
        stage, world = self.stage, self._world
        if self._frozen:
            self._frozen.advance(stage.frozen(len(self._loss.model.layers)), self._activations_dir)
        with self.optimizer.installed():
            set_trainable(self._loss.model, stage)
            # Wrapped anew for each epoch: after its first step DDP sums gradients in another order, so that an epoch's
            # numbers would depend on whether this process trained the one before.
            # The attention loss alone gives the top layer's values and feed-forward part no gradient.
            stage_loss = world.wrap(self._loss, some_unused=not (stage.cos or stage.classifies))
            torch.manual_seed(int(digest("dropout", self._seed, stage.name, number, world.rank)[:15], 16))
            plan = self._loader.plan(number)
            sums = torch.zeros((), device=world.device)
            for index, inputs in enumerate(self._loader.load(plan)):
                batch = self.optimizer.translate(inputs.batch)
                with world.accumulate(stage_loss, inputs.ends_step):
                    total, losses = stage_loss(batch, inputs.target, inputs.start)
                    # DDP averages gradients as if the processes' shares were equal.
                    (total * (len(batch) * world.size / inputs.step_size)).backward()
                if inputs.ends_step:
                    step = (number - 1) * len(plan) + inputs.step
                    self.optimizer.step(lr_factor(stage, step, len(plan)))
                sums = sums + torch.stack([total.detach(), *losses.values()]) * len(batch)
                if index % TRIM_EVERY == 0:
                    trim_heap()
        means = (world.all_reduce_sum(sums) / sum(len(rows) for step in plan for rows in step)).tolist()
        metrics = {f"train/{name}": value for name, value in zip(("loss", *losses), means, strict=True)}
        if "train/hard" in metrics and self._labelled_fraction:  # a mean over the labelled examples
            metrics["train/hard"] /= self._labelled_fraction
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(f"{name} became {value} in stage {stage.name}, epoch {number}")
        return metrics

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor] | None = None) -> None:
        """Restore the state after an epoch of this stage (`StageOptimizer.load`)."""
        if self._frozen and self.stage.frozen(len(self._loss.model.layers)) < self._frozen.depth:
            self._frozen.advance(0)  # layers change whose output is stored
        self.optimizer.load(weights, optimizer)


def train_stage(trainer: StageTrainer) -> Iterator[dict[str, float]]:
    """Train until the stage ends, and yield each epoch's mean losses."""
    for number in range(1, trainer.stage.epochs + 1):
        metrics = trainer.train_epoch(number)
        yield metrics
        if trainer.stage.ends(metrics):
            return


def stage_losses(
    stage: Stage,
    output: EncoderOutput,
    target: EncoderOutput | None,
    batch: Batch,
    matched: tuple[int, ...],
    some_unlabelled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute a stage's losses on one batch.

    The cosine loss of the top active layer is computed even where it has no weight, since stages end on it.

    Args:
        stage: the weights of the losses.
        output: the student's outputs.
        target: the teacher's outputs; None for hard labels alone.
        batch: mask and labels.
        matched: the teacher layer of each student layer, counted from 1.
        some_unlabelled: whether labels may be missing.

    Returns:
        The weighted total, and each loss by name, unweighted.
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
        losses["hard"] = hard_label_loss(output.logits, batch.labels, some_unlabelled)
        weights["hard"] = stage.hard
    total = sum(weights[name] * loss for name, loss in losses.items() if weights[name])
    assert isinstance(total, Tensor), "a stage has a loss with a weight"
    return total, losses


class StageLoss(nn.Module):
    """Forward pass and losses of a stage as one module.

    The weighted total is its one output with a gradient, so DDP can tell which parameters the total depends on.
    """

    def __init__(
        self,
        model: Encoder,
        stage: Stage,
        matched: tuple[int, ...],
        autocast: Callable[[], AbstractContextManager[Any]],
        some_unlabelled: bool = False,
    ) -> None:
        super().__init__()
        self.model, self._stage, self._matched, self._autocast = model, stage, matched, autocast
        self._some_unlabelled = some_unlabelled

    def forward(
        self, batch: Batch, target: EncoderOutput | None, start: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute `stage_losses`; `start` is the stored output of the frozen layers, None where it is not stored."""
        stage, depth = self._stage, len(self.model.layers)
        with self._autocast():
            output = self.model(
                batch,
                depth=stage.depth(depth),
                attention_layers=stage.layers if stage.kl else (),
                classify=stage.classifies,
                start=start,
                start_layer=0 if start is None else stage.frozen(depth),
            )
        total, losses = stage_losses(stage, output, target, batch, self._matched, self._some_unlabelled)
        return total, {name: loss.detach() for name, loss in losses.items()}


class MicroBatch(NamedTuple):
    """One process's share of a micro-batch, on its device. Nearly always a step has one."""

    batch: Batch
    target: EncoderOutput | None
    start: Tensor | None
    """Stored output of the frozen layers, (B, L, hidden), or (B, hidden) where all layers are frozen."""
    step: int
    """The step of the epoch that it is a part of, counted from 0."""
    step_size: int
    """Examples of the step, over all its micro-batches and processes."""
    ends_step: bool
    """True if it is the last micro-batch of the step."""


class StageDataLoader:
    """Loads what each step of a stage reads: a batch, the teacher's targets, the frozen layers' output.

    A thread reads the next steps from memory and memory maps while the current one trains.
    """

    def __init__(
        self,
        stage: Stage,
        settings: Trial | TeacherConfig,
        data: TaskData,
        rows: np.ndarray,
        targets: Targets | None,
        matched: tuple[int, ...],
        world: DistributedContext,
        frozen: FrozenActivations | None,
        split: Callable[[np.ndarray], list[np.ndarray]],
    ) -> None:
        self._stage, self._settings, self._split = stage, settings, split
        self._data, self._rows, self._targets = data, rows, targets
        layers = [matched[layer - 1] for layer in stage.layers]
        self._layers = {"cls": layers, "attention": layers if stage.kl else []}
        self._world, self._frozen = world, frozen

    def plan(self, epoch: int) -> list[list[np.ndarray]]:
        """Return the rows of each micro-batch of each step of an epoch (1-based), over all processes.

        It is the same in every process, so that all of them take part in every micro-batch.
        """
        lengths, settings = self._data.train.lengths[self._rows], self._settings
        plan = training_batches(lengths, settings.batch_size, settings.seed, self._stage.name, epoch)
        return [self._split(self._rows[batch]) for batch in plan]

    def load(self, plan: list[list[np.ndarray]]) -> Iterator[MicroBatch]:
        """Yield this process's share of every micro-batch of a plan."""
        world = self._world
        shares = prefetch(self._read, [rows[world.rank :: world.size] for step in plan for rows in step])
        for number, step in enumerate(plan):
            for left in reversed(range(len(step))):
                batch, target, start = next(shares)
                batch = batch.to(world.device)
                if target:
                    assert self._targets is not None
                    target = self._targets.complete(target, batch, self._layers["attention"])
                if start is not None:
                    start = start.to(world.device, non_blocking=True)
                yield MicroBatch(batch, target, start, number, sum(map(len, step)), ends_step=not left)

    def _read(self, rows: np.ndarray) -> tuple[Batch, EncoderOutput | None, Tensor | None]:
        batch, target = collate(self._data.train, rows, self._data.pad_id), None
        logits = self._stage.soft > 0
        if self._layers["cls"] or logits:
            assert self._targets is not None
            target = self._targets.read("train", rows, logits=logits, **self._layers)
        start = self._frozen.read("train", rows) if self._frozen else None
        if self._world.device.type != "cuda":
            return batch, target, start
        # Only pinned memory is copied while the GPU computes.
        return batch.map(_pin), target and target.map(_pin), start if start is None else _pin(start)


def _pin(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()


class StageOptimizer:
    """The parameters of a model that a stage trains, and the optimizer that updates them.

    Only the embeddings of tokens in `rows`, the training examples in use, can change, so others are not trained.
    """

    def __init__(
        self, model: Encoder, stage: Stage, settings: Trial | TeacherConfig, data: TaskData, rows: np.ndarray
    ) -> None:
        assert settings.learning_rate is not None
        self.stage = stage
        self._model, self._peak_lr = model, settings.learning_rate
        self._data, self._rows = data, rows
        self._vocabulary: CompactVocabulary | None = None

    def installed(self) -> AbstractContextManager[None]:
        """Return a context within which embeddings that train are the compact ones."""
        if self.stage.embeddings and self._vocabulary is None:
            embedding = self._model.model.get_input_embeddings()
            assert isinstance(embedding, nn.Embedding)
            self._vocabulary = CompactVocabulary(embedding, self._data.train, self._data.pad_id, self._rows)
        return self._vocabulary.installed() if self._vocabulary else nullcontext()

    def translate(self, batch: Batch) -> Batch:
        """Return the batch with ids of the compact embeddings. The teacher, whose targets these are not, has none."""
        return self._vocabulary.translate(batch) if self._vocabulary else batch

    @cached_property
    def _adamw(self) -> torch.optim.Optimizer:
        """The optimizer, created at the first step, within `installed`."""
        parameters = list(self._trainable().values())
        return torch.optim.AdamW(parameters, lr=self._peak_lr, weight_decay=0.0, fused=True)

    def step(self, lr_factor: float) -> None:
        """Update the parameters by their clipped gradients, which it clears, at `lr_factor` times the peak rate."""
        self._adamw.param_groups[0]["lr"] = self._peak_lr * lr_factor
        clip_gradients(self._adamw.param_groups[0]["params"])
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters that the stage trains, by name, after an epoch; not copied."""
        with self.installed():
            return {name: parameter.detach() for name, parameter in self._trainable().items()}

    def state(self) -> dict[str, Tensor]:
        """Return AdamW's state after an epoch, `<parameter>/<moment>` -> tensor; not copied."""
        names, state = list(self.weights()), self._adamw.state_dict()["state"]
        return {
            f"{names[index]}/{moment}": tensor
            for index, moments in state.items()
            for moment, tensor in moments.items()
        }

    def load(self, weights: dict[str, Tensor], state: dict[str, Tensor] | None = None) -> None:
        """Restore `weights` and `state` after an epoch; the latter is None where training does not resume here."""
        with self.installed():
            set_trainable(self._model, self.stage)
            parameters = self._trainable()
            with torch.no_grad():
                for name, tensor in weights.items():
                    parameters[name].copy_(tensor)
            if state is None:
                return
            index = {name: number for number, name in enumerate(parameters)}
            restored = self._adamw.state_dict() | {"state": {}}
            for key, tensor in state.items():
                name, _, moment = key.rpartition("/")
                restored["state"].setdefault(index[name], {})[moment] = tensor
            self._adamw.load_state_dict(restored)


def set_trainable(model: Encoder, stage: Stage) -> None:
    """Let only the stage's parts train, and drop out nowhere else.

    All that lies below the lowest part that trains is then a constant function of the input.
    """
    parts: list[tuple[nn.Module, bool]] = [(model.embeddings, stage.embeddings), (model.head, stage.head)]
    parts += [(layer, number in stage.trains) for number, layer in enumerate(model.layers, start=1)]
    model.eval().requires_grad_(False)
    for module, trains in parts:
        module.train(trains).requires_grad_(trains)
    dropout = getattr(model.model, "dropout", None)
    if dropout is not None:
        dropout.train(stage.head)


def clip_gradients(parameters: list[nn.Parameter]) -> None:
    """Scale the gradients of all parameters down to a common norm of at most `CLIP_NORM`."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # Most steps clip nothing, and a pass over all gradients is saved. On a GPU the comparison would wait for it.
    if norm.device.type != "cpu" or not norm <= CLIP_NORM:
        nn.utils.clip_grads_with_norm_(parameters, CLIP_NORM, norm)


def lr_factor(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """Return the factor of the peak learning rate at a step of the stage (0-based).

    The rate rises linearly over the warm-up; then it falls linearly to zero (`stage.decays`) or stays.
    """
    total = stage.epochs * steps_per_epoch
    warmup = max(1, round(WARMUP * (total if stage.decays else steps_per_epoch)))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup)) if stage.decays else 1.0


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
