"""The training loop: stages of epochs of steps. It knows no regime by name, no Ray and no tracker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.data.batches import Batch, training_plan
from ikd_ray.data.store import digest
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder, Output
from ikd_ray.distill.evaluate import Comparison
from ikd_ray.distill.feed import Feed
from ikd_ray.distill.linear import use_onednn
from ikd_ray.distill.losses import attention_kl, cls_cosine, hard_label_loss, soft_label_loss
from ikd_ray.distill.prefix import Prefix
from ikd_ray.distill.regimes import REGIMES, Stage
from ikd_ray.distill.student import build_student, layer_map, size_metrics
from ikd_ray.distill.targets import TargetBatch, Targets
from ikd_ray.distill.vocabulary import CompactVocabulary
from ikd_ray.distill.world import World
from ikd_ray.errors import UsageError

CLIP_NORM = 1.0
WARMUP = 0.1  # of the stage's steps where the rate decays, of its first epoch's where it does not


class DivergedError(RuntimeError):
    """The loss is no finite number any more."""


class Optimization(Protocol):
    """What the loop reads of a configuration: `Trial` and `TeacherConfig` both have it."""

    learning_rate: float
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    """One epoch's report. `epoch` and `stage` count from 1; `remaining` is the most that may still follow."""

    epoch: int
    remaining: int
    stage: int
    stages: int
    stage_name: str
    metrics: dict[str, float]


def freeze(model: Encoder, stage: Stage) -> None:
    """Let just the stage's parameters train, and drop out nowhere else.

    What lies below the lowest part that trains is then a constant function of the input.
    """
    groups = [(model.embeddings, stage.embeddings), (model.head, stage.head)]
    groups += [(layer, number in stage.trains) for number, layer in enumerate(model.layers, start=1)]
    model.eval().requires_grad_(False)
    for module, trains in groups:
        module.train(trains).requires_grad_(trains)
    if hasattr(model.model, "dropout"):
        model.model.dropout.train(stage.head)


def stage_losses(
    stage: Stage, output: Output, target: TargetBatch | None, batch, matched: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total, and each loss by itself, unweighted.

    The top active layer's cosine loss is among them even where it has no weight, since stages end on it.
    """
    losses: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    for layer in stage.layers:
        source = matched[layer - 1]
        if stage.kl:
            losses[f"layer_{layer}/kl"] = attention_kl(
                output.attention[layer], target.attention[source], batch.mask
            )
            weights[f"layer_{layer}/kl"] = stage.kl
        losses[f"layer_{layer}/cos"] = cls_cosine(output.cls[layer], target.cls[source])
        weights[f"layer_{layer}/cos"] = stage.cos
    if stage.soft:
        losses["soft"] = soft_label_loss(output.logits, target.logits, stage.temperature)
        weights["soft"] = stage.soft
    if stage.hard:
        losses["hard"] = hard_label_loss(output.logits, batch.labels)
        weights["hard"] = stage.hard
    total = sum(weights[name] * loss for name, loss in losses.items() if weights[name])
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
        autocast: Callable[[], AbstractContextManager],
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
                attend=stage.layers if stage.kl else (),
                classify=stage.classifies,
                start=start,
                below=0 if start is None else stage.frozen(depth),
            )
        total, losses = stage_losses(stage, output, target, batch, self._matched)
        return total, {name: loss.detach() for name, loss in losses.items()}


def _learning_rate(stage: Stage, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the peak rate at a step of the stage: linear warm-up, then linear decay or constant."""
    total = stage.epochs * steps_per_epoch
    warmup = max(1, round(WARMUP * (total if stage.decays else steps_per_epoch)))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total - step) / max(1, total - warmup)) if stage.decays else 1.0

    return factor


def _seed(*key: object) -> int:
    return int(digest(*key)[:15], 16)


def train_stage(
    model: Encoder,
    stage: Stage,
    settings: Optimization,
    data: TaskData,
    targets: Targets | None,
    matched: tuple[int, ...],
    world: World,
    prefix: Prefix | None = None,
) -> Iterator[dict[str, float]]:
    """Train through one stage; yields each epoch's mean losses (`train/...`) until the stage ends.

    A stage's course depends on the model, its own losses and the settings alone: optimizer and schedule start
    anew, batches and dropout come from (seed, stage, epoch, rank).

    Args:
        prefix: where the output of layers that the stage freezes is kept; without one they run at every step.

    Raises:
        DivergedError: a loss became NaN or infinite.
    """
    split, training, vocabulary = data.train, None, None
    if stage.embeddings:
        vocabulary = CompactVocabulary(model.model.get_input_embeddings(), split, data.pad_id)
    if prefix:
        prefix.raise_to(stage.frozen(len(model.layers)))
    feed = Feed(stage, data, targets, matched, world, prefix)
    steps = len(training_plan(split.lengths, settings.batch_size))
    for epoch in range(1, stage.epochs + 1):
        with vocabulary.in_place() if vocabulary else nullcontext():
            freeze(model, stage)
            training = training or _Training(model, stage, settings, steps, matched, world)
            torch.manual_seed(_seed("dropout", settings.seed, stage.name, epoch, world.rank))
            plan = training_plan(split.lengths, settings.batch_size, settings.seed, stage.name, epoch)
            sums = torch.zeros((), device=world.device)
            for rows, (batch, target, start) in zip(plan, feed(plan), strict=True):
                seen = vocabulary.translate(batch) if vocabulary else batch
                names, losses = training.step(seen, target, start, len(rows))
                sums = sums + losses * len(batch)
        means = (world.total(sums) / len(split)).tolist()
        metrics = {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        _check_finite(metrics, stage, epoch)
        yield metrics
        if (
            stage.cosine_threshold
            and metrics[f"train/layer_{stage.layers[-1]}/cos"] <= stage.cosine_threshold
        ):
            return


class _Training:
    """Optimizer and schedule of a stage, made when its parameters are in place and free to train."""

    def __init__(
        self, model: Encoder, stage: Stage, settings: Optimization, steps: int, matched, world: World
    ):
        # Attention alone gives the top layer's values and feed-forward part no gradient.
        some_unused = not (stage.cos or stage.classifies)
        self._loss_of = world.wrap(StageLoss(model, stage, matched, world.autocast), some_unused)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._world = world
        rate = settings.learning_rate
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.0, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, _learning_rate(stage, steps))

    def step(
        self, batch: Batch, target: TargetBatch | None, start: Tensor | None, total_rows: int
    ) -> tuple[list[str], Tensor]:
        """One step on this process's share of a batch of `total_rows`; returns the share's mean losses."""
        total, losses = self._loss_of(batch, target, start)
        self._optimizer.zero_grad(set_to_none=True)
        # Workers' gradients are averaged as if their shares were equal.
        (total * (len(batch) * self._world.size / total_rows)).backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        self._optimizer.step()
        self._schedule.step()
        return ["loss", *losses], torch.stack([total.detach(), *losses.values()])


def _check_finite(metrics: dict[str, float], stage: Stage, epoch: int) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(f"{name} became {value} in stage {stage.name}, epoch {epoch}")


class Distillation:
    """One trial: a student, the stages it goes through, and what each epoch measured.

    Iterating trains, one epoch at a time; rank 0's evaluation is the others' pause.
    """

    def __init__(
        self,
        trial: Trial,
        data: TaskData,
        targets: Targets,
        world: World | None = None,
        prefix: PrefixConfig | None = None,
    ) -> None:
        self.trial, self.data, self.targets = trial, data, targets
        self.world = world or World(device=next(targets.teacher.parameters()).device)
        together = min(trial.batch_size, len(data.train))
        if together < 2 * self.world.size and self.world.size > 1:
            raise UsageError(
                f"batch_size {together}: too few examples for {self.world.size} workers to split; "
                "give at least two a worker"
            )
        self.matched = layer_map(trial.student_layers, len(targets.teacher.layers))
        self.student = build_student(targets.teacher, trial.student_layers, trial.student_init)
        self.student.to(self.world.device)
        self.stages = REGIMES[trial.regime](trial)
        self._prefix = Prefix(self.student, data, prefix or PrefixConfig())
        self._compare = Comparison(self.student, data, targets, self.matched, self._prefix)

    def __iter__(self) -> Iterator[Epoch]:
        done = 0
        for number, stage in enumerate(self.stages, start=1):
            later = sum(following.epochs for following in self.stages[number:])
            arguments = (self.trial, self.data, self.targets, self.matched, self.world, self._prefix)
            start = time.perf_counter()
            for taken, metrics in enumerate(train_stage(self.student, stage, *arguments), start=1):
                metrics["time/epoch_s"] = time.perf_counter() - start
                metrics["stage"] = float(number)
                start = time.perf_counter()
                if self.world.rank == 0:
                    metrics |= self._compare()
                metrics["time/evaluation_s"] = time.perf_counter() - start
                done += 1
                left = stage.epochs - taken + later
                yield Epoch(done, left, number, len(self.stages), stage.name, metrics)
                start = time.perf_counter()


@dataclass(frozen=True)
class Result:
    """A trained student and what was measured of it: the last epoch's metrics and its sizes."""

    student: Encoder
    metrics: dict[str, float]


def distill(
    trial: Trial,
    data: TaskData,
    targets: Targets,
    report: Callable[[Epoch], None] = lambda epoch: None,
    world: World | None = None,
) -> Result:
    """Distil one student in this process.

    Args:
        targets: the teacher and what it says about `data`.
        report: called after every epoch.

    Raises:
        DivergedError: a loss became NaN or infinite.
    """
    course = Distillation(trial, data, targets, world)
    for epoch in course:
        report(epoch)
    use_onednn(course.student.model, False)  # from here on it is its user's
    return Result(course.student, epoch.metrics | size_metrics(course.student))
