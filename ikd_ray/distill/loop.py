"""Distil one student: run it through its stages and report every epoch. Knows no Ray and no tracker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.data.splits import training_rows
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.cache_keys import environment, stage_key, start_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch import TIME_METRICS, Epoch
from ikd_ray.distill.epoch_cache import CachedEpoch, EpochCache, LostCheckpointError, PendingEpoch
from ikd_ray.distill.evaluate import StudentEvaluator
from ikd_ray.distill.fast_layers import use_pytorch_layers
from ikd_ray.distill.frozen_activations import FrozenActivations
from ikd_ray.distill.memory import ModelShape, StepMemory
from ikd_ray.distill.regimes import REGIMES, Stage
from ikd_ray.distill.shared_epochs import SharedEpochs
from ikd_ray.distill.stage_training import StageTrainer
from ikd_ray.distill.student import build_student, layer_map, size_metrics
from ikd_ray.distill.targets import Targets
from ikd_ray.errors import UsageError, first_line

POLL_SECONDS = 0.2
"""Seconds between two looks at an epoch that another process trains."""


@dataclass(frozen=True)
class Result:
    """A trained student, the metrics of its last epoch, and its sizes."""

    student: Encoder
    metrics: dict[str, float]


def distill(
    trial: Trial,
    data: TaskData,
    targets: Targets,
    report: Callable[[Epoch], None] = lambda epoch: None,
    world: DistributedContext | None = None,
    checkpoints: EpochCache | None = None,
    reference: Targets | None = None,
    memory: StepMemory | None = None,
) -> Result:
    """Distil one student in this process.

    Args:
        trial: the student and its training.
        data: the task's tokenized examples.
        targets: the teacher, and its outputs for `data`.
        report: called after every epoch.
        world: the processes that train the student together; None: this one alone, on the teacher's device.
        checkpoints: where epochs are saved and found, which other processes may use meanwhile; None: nowhere.
        reference: the teacher that the student is compared with where another model (an assistant) teaches it;
            None: the one that teaches.
        memory: bound of the tensors of a step, above which batches are split; None: the default.

    Raises:
        UsageError: the batches are too small for the processes to split.
        DivergedError: a loss became NaN or infinite.
    """
    distillation = Distillation(
        trial, data, targets, world, checkpoints=checkpoints, reference=reference, memory=memory
    )
    for epoch in distillation.epochs():
        report(epoch)
    student = distillation.student
    use_pytorch_layers(student.model)
    return Result(student, epoch.metrics | size_metrics(student))


class Distillation:
    """One trial. Iterating yields its epochs in order: saved ones are reused, the others trained.

    The arguments are those of `distill`, and `prefix`: gigabytes for the outputs of frozen layers. The student starts
    from the teacher of `targets`. Rank 0 evaluates while the other workers wait.

    Raises:
        UsageError: the batches are too small for the processes to split.
    """

    def __init__(
        self,
        trial: Trial,
        data: TaskData,
        targets: Targets,
        world: DistributedContext | None = None,
        prefix: PrefixConfig | None = None,
        checkpoints: EpochCache | None = None,
        reference: Targets | None = None,
        memory: StepMemory | None = None,
    ) -> None:
        self.trial, self.data, self.targets = trial, data, targets
        self.reference = reference or targets
        self.world = world or DistributedContext(device=next(targets.teacher.parameters()).device)
        self._prefix, self._memory = prefix or PrefixConfig(), memory or StepMemory()
        self._saved = SharedEpochs(checkpoints, self.world)
        batch_size = min(trial.batch_size, len(self._rows))
        if self.world.size > 1 and batch_size < 2 * self.world.size:
            raise UsageError(
                f"batch_size {batch_size}: too few examples for {self.world.size} workers to split; "
                "give at least two per worker"
            )
        self.student = self._build_student()

    def _build_student(self) -> Encoder:
        student = build_student(self.targets.teacher, self.trial.student_layers, self.trial.student_init)
        return student.to(self.world.device)

    @property
    def _rows(self) -> np.ndarray:
        """The training examples that the student sees, ascending."""
        trial = self.trial
        return training_rows(
            self.data.train.labels, trial.train_fraction, trial.unlabelled_fraction, trial.seed
        )

    @property
    def stages(self) -> list[Stage]:
        """The stages of the trial's regime, in order."""
        return REGIMES[self.trial.regime](self.trial)

    @property
    def matched(self) -> tuple[int, ...]:
        """For each student layer the layer of the reference that it is compared with, counted from 1."""
        return layer_map(self.trial.student_layers, len(self.reference.teacher.layers))

    @property
    def _teaching_layers(self) -> tuple[int, ...]:
        """For each student layer the layer of the model that teaches it, counted from 1."""
        return layer_map(self.trial.student_layers, len(self.targets.teacher.layers))

    @property
    def warnings(self) -> list[str]:
        """All warnings so far, whether an epoch has reported them or not."""
        return self._saved.warnings

    def epochs(self) -> Iterator[Epoch]:
        """Yield each `Epoch`, and wait for those that another process trains."""
        for event in self:
            if isinstance(event, PendingEpoch):
                time.sleep(POLL_SECONDS)
            else:
                yield event

    def __iter__(self) -> Iterator[Epoch | PendingEpoch]:
        """Yield an `Epoch` for each epoch.

        A `PendingEpoch` instead means that another process trains the next epoch: iterate on later, or start the trial
        again once it is ready.

        Raises:
            DivergedError: a loss became NaN or infinite.
        """
        reported = warned = 0
        while True:
            try:
                for event in self._run():
                    if isinstance(event, PendingEpoch):
                        yield event
                    elif event.epoch > reported:
                        reported = event.epoch
                        warnings, warned = tuple(self.warnings[warned:]), len(self.warnings)
                        yield replace(event, warnings=warnings)
                return
            except LostCheckpointError as error:  # start over, and reuse what is still saved
                self.warnings.append(f"{first_line(error)}; trained anew")
                self.student = self._build_student()

    def _run(self) -> Iterator[Epoch | PendingEpoch]:
        """Run through all stages from an untrained student."""
        student, data, rows, saved = self.student, self.data, self._rows, self._saved
        stages, layers = self.stages, len(student.layers)
        activations = FrozenActivations(student, data, self._prefix, rows, self._memory)
        evaluator = StudentEvaluator(student, data, self.reference, self.matched, activations, self._memory)
        done = reused = stage_epoch = 0
        with saved.lease():
            key = self._start_key() if saved.enabled else ""
            for number, stage in enumerate(stages, start=1):
                frozen = stage.frozen(layers)
                # The whole encoder's output is small, and the same for all heads that are trained on it.
                activations_dir = saved.activations_dir(key, stage_epoch) if frozen == layers else None
                key = stage_key(key, stage_epoch, stage, activations.fits(frozen), self._memory_key(stage))
                inputs = (data, self.targets, self._teaching_layers, self.world, activations)
                trainer = StageTrainer(
                    student, stage, self.trial, *inputs, activations_dir, rows, self._memory
                )
                with saved.stage(key, self._describe(stage), not activations.out_of_space):
                    for stage_epoch in range(1, stage.epochs + 1):
                        while isinstance(cached := saved.find(stage_epoch), PendingEpoch):
                            yield cached
                        if cached:
                            saved.adopt(trainer, cached)
                            evaluator.restore(cached.metrics)
                            metrics = _reused_metrics(cached)
                        else:
                            saved.load_adopted(trainer)
                            metrics = self._train(trainer, evaluator, stage_epoch)
                            saved.save(stage_epoch, metrics, trainer, not activations.out_of_space)
                        done, reused_from = done + 1, cached.reused_from if cached else ""
                        reused += bool(reused_from)
                        counts = {"stage": number, "reused_epochs": reused, "trained_epochs": done - reused}
                        metrics |= {name: float(count) for name, count in counts.items()}
                        remaining = (
                            stage.epochs - stage_epoch + sum(later.epochs for later in stages[number:])
                        )
                        if not remaining:
                            saved.finish()
                        position = done, remaining, number, len(stages), stage.name
                        yield Epoch(*position, metrics, reused_from, resumed=bool(cached and cached.own))
                        if stage.ends(metrics):
                            break

    def _train(self, trainer: StageTrainer, evaluator: StudentEvaluator, epoch: int) -> dict[str, float]:
        """Train an epoch of a stage, and evaluate the student."""
        start = time.perf_counter()
        metrics = trainer.train_epoch(epoch)
        trained = time.perf_counter()
        if self.world.rank == 0:
            metrics |= evaluator.evaluate()
        seconds = trained - start, time.perf_counter() - trained
        return metrics | dict(zip(TIME_METRICS, seconds, strict=True)) | {"time/reused_s": 0.0}

    def _start_key(self) -> str:
        environments = self.world.gather(environment(self.world))
        compared = "" if self.reference is self.targets else self.reference.fingerprint(self.matched)
        return start_key(self.trial, self.data, self.targets, self._teaching_layers, environments, compared)

    def _memory_key(self, stage: Stage) -> list[float]:
        shape, layers = ModelShape.of(self.student.config), len(self.student.layers)
        return self._memory.key(shape, layers, [stage], self.trial.batch_size, self.data, self.world.size)

    def _describe(self, stage: Stage) -> dict[str, object]:
        trial = self.trial.params()
        names = ("regime", "student_layers", "student_init", "learning_rate", "seed")
        return {"task": self.data.task.name, "stage": stage.name} | {name: trial[name] for name in names}


def _reused_metrics(cached: CachedEpoch) -> dict[str, float]:
    """Return a saved epoch's metrics; time that another trial spent counts as saved."""
    if cached.own:
        return dict(cached.metrics)
    seconds = sum(cached.metrics[name] for name in TIME_METRICS)
    return cached.metrics | dict.fromkeys(TIME_METRICS, 0.0) | {"time/reused_s": seconds}
