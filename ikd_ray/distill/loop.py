"""One trial: a student, the stages it goes through, and each epoch's report. It knows no Ray and no tracker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.data.splits import nested_subset
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.cache_keys import environment, stage_key, start_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch_cache import (
    DISK_ERRORS,
    CachedEpoch,
    EpochCache,
    LostCheckpointError,
    PendingEpoch,
    StageCache,
)
from ikd_ray.distill.evaluate import StudentEvaluator
from ikd_ray.distill.fast_layers import use_onednn
from ikd_ray.distill.frozen_activations import FrozenActivations
from ikd_ray.distill.regimes import REGIMES, Stage
from ikd_ray.distill.student import build_student, layer_map, size_metrics
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.training import StageTrainer
from ikd_ray.errors import UsageError, first_line

POLL_SECONDS = 0.2
TIME_METRICS = ("time/epoch_s", "time/evaluation_s")  # training and evaluation


@dataclass(frozen=True)
class Epoch:
    """One epoch's report. `epoch` and `stage` count from 1; `remaining` is the most that may still follow."""

    epoch: int
    remaining: int
    stage: int
    stages: int
    stage_name: str
    metrics: dict[str, float]
    reused_from: str = ""  # the trial that trained it, where that is another one
    resumed: bool = False  # this trial trained it itself, before it was cut off
    warnings: tuple[str, ...] = ()  # what happened to saved epochs that should not, since the epoch before


class Distillation:
    """One trial. Iterating takes its epochs in order: those that are saved as they are, the others by training.

    Rank 0's evaluation is the others' pause.
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
    ) -> None:
        """
        Args:
            targets: of the model that teaches: the student starts from it, and training imitates it.
            reference: of the teacher that the student is compared with, where an assistant teaches in its place;
                none: who teaches.
            checkpoints: where epochs are saved and found; without, all are trained and none is kept.

        Raises:
            UsageError: batches are too small for the processes to split.
        """
        self.trial, self.data, self.targets = trial, data, targets
        self.reference = reference or targets
        self.world = world or DistributedContext(device=next(targets.teacher.parameters()).device)
        self._rows = nested_subset(data.train.labels, trial.train_fraction, trial.seed)
        together = min(trial.batch_size, len(self._rows))
        if together < 2 * self.world.size and self.world.size > 1:
            raise UsageError(
                f"batch_size {together}: too few examples for {self.world.size} workers to split; "
                "give at least two a worker"
            )
        self.matched = layer_map(trial.student_layers, len(self.reference.teacher.layers))
        self._imitated = layer_map(trial.student_layers, len(targets.teacher.layers))
        self.stages = REGIMES[trial.regime](trial)
        self._prefix_config, self._checkpoints = prefix or PrefixConfig(), checkpoints
        self.warnings: list[str] = []  # all, whether they are reported yet or not
        self._build()

    def _build(self) -> None:
        trial = self.trial
        self.student = build_student(self.targets.teacher, trial.student_layers, trial.student_init)
        self.student.to(self.world.device)
        self._prefix = FrozenActivations(self.student, self.data, self._prefix_config, self._rows)
        self._compare = StudentEvaluator(self.student, self.data, self.reference, self.matched, self._prefix)
        self._behind: list[
            tuple[StageTrainer, CachedEpoch]
        ] = []  # states taken whose weights are not loaded yet

    def __iter__(self) -> Iterator[Epoch | PendingEpoch]:
        """An `Epoch` for each; a `PendingEpoch` while another process trains the next one: go on, or come back, later.

        Raises:
            DivergedError: a loss became NaN or infinite.
        """
        given, told, complete = 0, 0, False
        while not complete:
            try:
                for event in self._walk():
                    if isinstance(event, PendingEpoch):
                        yield event
                    elif event.epoch > given:
                        given = event.epoch
                        told, warnings = len(self.warnings), tuple(self.warnings[told:])
                        yield replace(event, warnings=warnings)
                complete = True
            except LostCheckpointError as error:  # from the start, where what is still there is taken again
                self.warnings.append(f"{first_line(error)}; trained anew")
                self._build()

    def _walk(self) -> Iterator[Epoch | PendingEpoch]:
        done = epochs = reused = 0
        with self._in_use() as shared:
            layers = len(self.student.layers)
            key = self._start_key() if shared else ""
            for number, stage in enumerate(self.stages, start=1):
                before, later = done, sum(following.epochs for following in self.stages[number:])
                kept = None
                if shared:
                    frozen = stage.frozen(layers)
                    # The whole encoder's output is small, and the same for all that train nothing but a head on it.
                    kept = shared.sibling_dir(key, f"cls-{epochs}") if frozen == layers else None
                    key = stage_key(key, epochs, stage, self._prefix.fits(frozen))
                for event in self._epochs(stage, key, kept):
                    if isinstance(event, PendingEpoch):
                        yield event
                        continue
                    metrics, origin, resumed = event
                    done, reused = done + 1, reused + bool(origin)
                    counts = {"stage": number, "reused_epochs": reused, "trained_epochs": done - reused}
                    metrics |= {name: float(count) for name, count in counts.items()}
                    remaining = stage.epochs - (done - before) + later
                    if not remaining:
                        self._catch_up()
                    place = done, remaining, number, len(self.stages), stage.name
                    yield Epoch(*place, metrics, origin, resumed)
                epochs = done - before

    def _epochs(
        self, stage: Stage, key: str, kept: Path | None
    ) -> Iterator[tuple[dict[str, float], str, bool] | PendingEpoch]:
        """A stage's epochs until it ends: metrics, which other trial they are reused from, if any, and whether
        this one trained them before it was cut off."""
        arguments = (self.trial, self.data, self.targets, self._imitated, self.world, self._prefix)
        training = StageTrainer(self.student, stage, *arguments, kept, self._rows)
        with self._trajectory(stage, key) as trajectory:
            for number in range(1, stage.epochs + 1):
                while isinstance(saved := self._look(trajectory, number), PendingEpoch):
                    yield saved
                if saved:
                    metrics, origin = self._take(training, saved)
                else:
                    self._catch_up(training)
                    metrics, origin = self._train(training, number), ""
                    self._save(trajectory, training, number, metrics)
                yield metrics, origin, saved is not None and saved.own
                if stage.ends(metrics):
                    return

    def _start_key(self) -> str:
        environments = self.world.gather(environment(self.world))
        compared = "" if self.reference is self.targets else self.reference.fingerprint(self.matched)
        return start_key(self.trial, self.data, self.targets, self._imitated, environments, compared)

    @contextmanager
    def _in_use(self) -> Iterator[EpochCache | None]:
        """Saved epochs, of which nothing goes that this trial stands on; none where that cannot be made sure of."""
        with ExitStack() as held:
            if self._checkpoints:
                there = self.world.rank > 0  # rank 0 sees to it for all
                if not there:
                    with self._disk_may_refuse():
                        held.enter_context(self._checkpoints.lease())
                        there = True
                self._checkpoints = self._checkpoints if self.world.broadcast(there) else None
            yield self._checkpoints

    @contextmanager
    def _disk_may_refuse(self) -> Iterator[None]:
        """What the disk refuses within it costs others time, and nobody a number."""
        try:
            yield
        except DISK_ERRORS as error:
            self.warnings.append(f"epochs cannot be shared ({first_line(error)})")

    def _is_exact(self) -> bool:
        """Whether numbers are what the key says: the prefix found room, if it was to have some, on every worker."""
        return not self.world.any(self._prefix.failed)

    def _trajectory(self, stage: Stage, key: str) -> AbstractContextManager[StageCache | None]:
        if self._checkpoints is None or not self._is_exact() or self.world.rank:
            return nullcontext()
        trial = self.trial.params()
        names = ("regime", "student_layers", "student_init", "learning_rate", "seed")
        about = {"task": self.data.task.name, "stage": stage.name} | {name: trial[name] for name in names}
        with self._disk_may_refuse():
            return self._checkpoints.stage_cache(key, about)
        return nullcontext()

    def _look(self, trajectory: StageCache | None, number: int) -> CachedEpoch | PendingEpoch | None:
        """What rank 0 finds of an epoch."""
        if self._checkpoints is None:
            return None
        found = self._search(trajectory, number) if trajectory else None
        return self._checkpoints.fetch_local(self.world.broadcast(found))

    def _search(self, trajectory: StageCache, number: int) -> CachedEpoch | PendingEpoch | None:
        found, answered = None, False
        with self._disk_may_refuse():
            found, answered = trajectory.find(number), True
        if not answered:
            trajectory.abandon()
        self.warnings += [f"{folder}: damaged; trained anew" for folder in trajectory.damaged]
        trajectory.damaged.clear()
        return found

    def _take(self, training: StageTrainer, saved: CachedEpoch) -> tuple[dict[str, float], str]:
        """An epoch as it is. Its weights are loaded when they are needed."""
        if self._behind and self._behind[-1][0] is training:
            self._behind.pop()
        self._behind.append((training, saved))
        self._compare.recall(saved.metrics)
        if saved.own:  # this trial was cut off, and goes on
            return dict(saved.metrics), ""
        spared = sum(saved.metrics[name] for name in TIME_METRICS)
        metrics = saved.metrics | dict.fromkeys(TIME_METRICS, 0.0) | {"time/reused_s": spared}
        return metrics, saved.trial or "a trial without a name"

    def _catch_up(self, training: StageTrainer | None = None) -> None:
        """Load the weights of the states taken; of `training`, which goes on, the optimizer too.

        Raises:
            LostCheckpointError: in one of the processes they are gone.
        """
        behind, self._behind = self._behind, []
        lost = None
        for stage, saved in behind:
            if stage.stage.frozen(len(self.student.layers)) < self._prefix.depth:
                self._prefix.raise_to(0)  # of what is below it something changes
            try:
                stage.load(saved.weights(), saved.optimizer() if stage is training else None)
            except LostCheckpointError as error:
                assert self._checkpoints is not None
                self._checkpoints.mark_unreadable(saved)
                lost = error
        if behind and self.world.any(lost is not None):
            if self.world.size > 1:  # who sees what others do not will go on so
                self._checkpoints = None
            raise lost or LostCheckpointError("a worker cannot read what another one can")

    def _save(
        self, trajectory: StageCache | None, training: StageTrainer, number: int, metrics: dict[str, float]
    ) -> None:
        exact = self._checkpoints is not None and self._is_exact()
        if trajectory is None or not trajectory.claimed:
            return
        over = training.stage.decays and number == training.stage.epochs  # nobody goes on from there
        if exact:
            with self._disk_may_refuse():
                trajectory.save(number, metrics, training.weights(), {} if over else training.optimizer())
                return
        trajectory.abandon()  # nobody need wait for what will not come

    def _train(self, training: StageTrainer, number: int) -> dict[str, float]:
        """Train an epoch and evaluate the student."""
        start = time.perf_counter()
        metrics = training.epoch(number)
        trained = time.perf_counter()
        if self.world.rank == 0:
            metrics |= self._compare()
        seconds = trained - start, time.perf_counter() - trained
        return metrics | dict(zip(TIME_METRICS, seconds, strict=True)) | {"time/reused_s": 0.0}


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
    world: DistributedContext | None = None,
    checkpoints: EpochCache | None = None,
    reference: Targets | None = None,
) -> Result:
    """Distil one student in this process.

    Args:
        targets: the teacher and what it says about `data`.
        report: called after every epoch.
        checkpoints: where epochs are saved and found, which other processes may use at the same time.
        reference: as of `Distillation`.

    Raises:
        DivergedError: a loss became NaN or infinite.
    """
    course = Distillation(trial, data, targets, world, checkpoints=checkpoints, reference=reference)
    for event in course:
        if isinstance(event, PendingEpoch):
            time.sleep(POLL_SECONDS)
        else:
            epoch = event
            report(epoch)
    use_onednn(course.student.model, False)  # from here on it is its user's
    return Result(course.student, epoch.metrics | size_metrics(course.student))
