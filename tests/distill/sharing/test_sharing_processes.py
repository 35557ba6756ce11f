"""Processes that share epochs: two trials at once, one of them killed, and two workers of one trial."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.data.tokens import open_data
from ikd_ray.distill.cache_keys import environment, stage_key, start_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch
from ikd_ray.distill.loop import Distillation, Result, distill
from ikd_ray.distill.stage_training import StageOptimizer, StageTrainer
from ikd_ray.distill.targets import Targets
from ikd_ray.storage import store
from ikd_ray.storage.eviction import cache_entries, evict
from tests.helpers.distributed_jobs import process_group
from tests.helpers.shared_trials import comparable_metrics
from tests.helpers.tiny_models import changed_tensors, copy_state, make_encoder

pytestmark = pytest.mark.slow

SMALL = {"student_layers": 2, "batch_size": 8, "learning_rate": 3e-3, "epochs": 2, "epochs_per_layer": 2}
TRIAL = Trial(**SMALL, regime="pid")
TOGETHER = TRIAL.model_copy(update={"soft_labels": "always", "embeddings": "train"})
OTHER_LAMBDA = TOGETHER.model_copy(update={"lambda_": 0.7})
NAMES = [("1", 1), ("1", 2), ("2", 1), ("2", 2), ("C", 1), ("C", 2)]
KILLED_IN = ("2", 1)
SECONDS = 100


class Jobs:
    """The work of one of two processes."""

    def __init__(self, rank: int, data_folder: Path, target_folder: Path, out: Path, barrier, reached, waits):
        torch.set_num_threads(1)
        self.rank, self.out = rank, out
        self.barrier, self.reached, self.waits = barrier, reached, waits
        self.data = open_data(data_folder)
        self.targets = Targets(target_folder, self.data, make_encoder(dropout=0.1))
        self.log = out / "no log"
        epoch = StageTrainer.train_epoch

        def spy(trainer, number: int):
            with open(self.log, "a") as file:
                file.write(f"{trainer.stage.name} {number}\n")
            return epoch(trainer, number)

        StageTrainer.train_epoch = spy

    def open_cache(self, folder: str, name: str) -> EpochCache:
        return EpochCache(self.out / folder, 20, name, f"owner of {name}")

    def create(self, trial: Trial, job: str, folder: str = "", workers: int = 2, **options) -> Distillation:
        """Create a trial that shares its epochs in a folder, or shares none without one."""
        cache = self.open_cache(folder, job if workers == 2 else str(self.rank)) if folder else None
        world = DistributedContext(self.rank, 2) if workers == 2 else DistributedContext()
        return Distillation(trial, self.data, self.targets, world, checkpoints=cache, **options)

    def store(self, job: str, trained: Distillation | Result, events: list) -> None:
        epochs = [event for event in events if not isinstance(event, PendingEpoch)]
        result = {
            "metrics": [epoch.metrics for epoch in epochs],
            "order": [epoch.epoch for epoch in epochs],
            "warnings": [warning for epoch in epochs for warning in epoch.warnings],
            "pending": len(events) - len(epochs),
            "state": copy_state(trained.student),
        }
        torch.save(result, self.out / f"{job}-{self.rank}.pt")

    def at_once(self) -> None:
        """Run the same trial in both processes at once, by iterating and with `distill`."""
        distillation = self.create(TRIAL, "iterated", "iterated", workers=1)
        self.log = self.out / "iterated.log"
        self.barrier.wait(SECONDS)
        self.store("iterated", distillation, list(distillation))
        self.log, epochs = self.out / "distilled.log", []
        cache = self.open_cache("distilled", f"{self.rank}")
        self.barrier.wait(SECONDS)
        result = distill(TRIAL, self.data, self.targets, epochs.append, checkpoints=cache)
        self.store("distilled", result, epochs)

    @contextmanager
    def workers(self, job: str):
        """Make the two processes workers of one trial within the block."""
        torch.manual_seed(self.rank)  # the state of the generator must not matter
        self.log = self.out / f"{job}-{self.rank}.log"
        with process_group(self.out / f"{job}.rendezvous", self.rank):
            yield

    def together(self, job: str, trial: Trial, folder: str = "", **options) -> None:
        with self.workers(job):
            distillation = self.create(trial, job, folder, **options)
            self.store(job, distillation, list(distillation))

    def interrupted(self) -> None:
        """Interrupt a trial after three epochs and start it again under the same name."""
        with self.workers("cut"):
            events = iter(self.create(TOGETHER, "cut", "cut"))
            for _ in range(3):
                next(events)
            events.close()
            self.log = self.out / f"cut-{self.rank}.rest.log"
            distillation = self.create(TOGETHER, "cut", "cut")
            self.store("cut", distillation, list(distillation))

    def lost(self) -> None:
        """Reuse all epochs up to the last stage, and remove them before their weights are loaded."""
        with self.workers("lost"):
            distillation = self.create(OTHER_LAMBDA, "lost", "lost")
            events = iter(distillation)
            epochs = [next(events) for _ in range(4)]
            dist.barrier()
            if self.rank == 0:
                for path in (self.out / "lost").glob("[!.]*/[!.]*"):
                    shutil.rmtree(path)
            dist.barrier()
            self.store("lost", distillation, [*epochs, *events])

    def waiting(self) -> None:
        """Start while another trial has claimed the first stage, and release it after the first wait."""
        with self.workers("held"), ExitStack() as stack:
            distillation = self.create(TOGETHER, "held", "held")
            if self.rank == 0:
                environments = [environment(DistributedContext(0, 2))] * 2
                key = start_key(TOGETHER, self.data, self.targets, distillation.matched, environments)
                holder = self.open_cache("held", "holder")
                stack.enter_context(holder.lease())
                stage = holder.stage_cache(stage_key(key, 0, distillation.stages[0], False), {})
                assert stack.enter_context(stage).find(1) is None
            events = iter(distillation)
            dist.barrier()
            first = next(events)
            dist.barrier()
            stack.close()
            dist.barrier()
            self.store("held", distillation, [first, *events])

    def without_space(self) -> None:
        """Leave process 1 no disk space for the outputs of frozen layers."""
        share = store.MAX_DISK_SHARE
        store.MAX_DISK_SHARE = 0 if self.rank else share
        self.together("no space", TRIAL, "no space", prefix=PrefixConfig(memory_gb=0))
        store.MAX_DISK_SHARE = share

    def killed(self) -> None:
        """Kill process 1 in the middle of an epoch that process 0 waits for."""
        distillation = self.create(TRIAL, "killed", "killed", workers=1)
        self.log = self.out / "killed.log"
        if self.rank == 1:
            step, steps = StageOptimizer.step, Counter()

            def kill_in_the_third_step(optimizer, loss):
                stage = optimizer.stage.name
                steps[stage] += 1
                if (stage, steps[stage]) == (KILLED_IN[0], 3):
                    self.reached.set()
                    self.waits.wait(SECONDS)
                    os.kill(os.getpid(), signal.SIGKILL)
                step(optimizer, loss)

            StageOptimizer.step = kill_in_the_third_step
            list(distillation)
            return
        assert self.reached.wait(SECONDS)
        events = []
        for event in distillation:
            events.append(event)
            if isinstance(event, PendingEpoch) and not self.waits.is_set():
                assert not event.ready()
                self.waits.set()
        self.store("killed", distillation, events)


def work(rank: int, *arguments) -> None:
    jobs = Jobs(rank, *arguments)
    jobs.at_once()
    jobs.together("alone", TOGETHER)
    jobs.together("saved", TOGETHER, "two")
    jobs.together("taken", TOGETHER, "two")
    jobs.together("shorter", TOGETHER.model_copy(update={"epochs_per_layer": 1}), "part")
    jobs.together("longer", OTHER_LAMBDA.model_copy(update={"epochs_per_layer": 3}), "part")
    jobs.together("part", TOGETHER, "part")
    jobs.together("strangers", TOGETHER, "one")  # epochs of a single worker
    jobs.interrupted()
    jobs.together("to lose", TOGETHER, "lost")
    jobs.lost()
    jobs.together("lambda", OTHER_LAMBDA)
    jobs.waiting()
    jobs.without_space()
    jobs.barrier.wait(SECONDS)
    jobs.killed()


@pytest.fixture(scope="module")
def processes(tmp_path_factory, data, targets, dropping):
    """Run both processes, which find the epochs of a single worker in the folder `one`.

    `of("job")` returns their results of a job, `trained("log")` the epochs that they trained.
    """
    out, context = tmp_path_factory.mktemp("sharing"), multiprocessing.get_context("spawn")
    distill(TOGETHER, data, dropping, checkpoints=EpochCache(out / "one", 20, "one worker"))
    shared = data.folder, targets.folder, out, context.Barrier(2), context.Event(), context.Event()
    started = [context.Process(target=work, args=(rank, *shared)) for rank in range(2)]
    for process in started:
        process.start()
    deadline = time.monotonic() + SECONDS
    for process in started:
        process.join(max(0, deadline - time.monotonic()))
        process.kill()
        process.join()

    def trained(log: str) -> list[tuple[str, int]]:
        path = out / f"{log}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, int(number)) for name, number in map(str.split, lines)]

    def of(job: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(**torch.load(out / f"{job}-{rank}.pt")) for rank in range(2)]

    codes = [process.exitcode for process in started]
    return SimpleNamespace(codes=codes, of=of, trained=trained, out=out)


def comparable(found: SimpleNamespace) -> list[dict[str, float]]:
    return [comparable_metrics(metrics) for metrics in found.metrics]


def assert_same(found: SimpleNamespace, expected: SimpleNamespace) -> None:
    assert comparable(found) == comparable(expected)
    assert_same_training(found, expected)


def assert_same_training(found: SimpleNamespace, expected: SimpleNamespace) -> None:
    """Assert equal losses and weights; only rank 0 has evaluation metrics."""
    assert found.order == list(range(1, len(expected.metrics) + 1))
    for mine, theirs in zip(comparable(found), comparable(expected), strict=True):
        assert {name: mine[name] for name in theirs} == theirs
    assert not changed_tensors(found.state, expected.state)


@pytest.fixture(scope="module")
def alone(data, dropping):
    """Return the result of `TRIAL` in one process that shares nothing."""
    distillation = Distillation(TRIAL, data, dropping)
    metrics = [epoch.metrics for epoch in distillation]
    return SimpleNamespace(metrics=metrics, state=copy_state(distillation.student))


def test_only_the_killed_process_fails(processes):
    assert processes.codes == [0, -signal.SIGKILL]


@pytest.mark.parametrize("job", ["iterated", "distilled"])
def test_two_trials_at_once_train_each_epoch_once(processes, alone, job):
    found = processes.of(job)
    for process in found:
        assert_same(process, alone)
        assert not process.warnings
    assert sorted(processes.trained(job)) == NAMES
    spent = [sum(metrics["time/epoch_s"] > 0 for metrics in process.metrics) for process in found]
    assert spent == [process.metrics[-1]["trained_epochs"] for process in found]
    assert sum(spent) == 6


def test_a_waiting_trial_takes_over_from_a_killed_one(processes, alone):
    """Only the epoch that was lost is trained twice."""
    found = SimpleNamespace(**torch.load(processes.out / "killed-0.pt"))
    assert_same(found, alone)
    assert found.pending
    assert sorted(processes.trained("killed")) == sorted([*NAMES, KILLED_IN])
    assert found.metrics[-1]["reused_epochs"] == NAMES.index(KILLED_IN)
    assert not found.warnings


def test_a_killed_process_holds_no_lease(processes):
    """All epochs that it used can be evicted."""
    folder = processes.out / "killed"
    assert len(evict(folder, 0)) == len(NAMES)
    assert not cache_entries(folder)


@pytest.mark.parametrize(
    ("job", "like", "reused"),
    [("saved", "alone", 0), ("taken", "alone", 6), ("part", "alone", 2), ("strangers", "alone", 0)],
)
def test_two_workers_reuse_what_two_workers_trained(processes, job, like, reused):
    """Reusing all epochs, some and none gives the numbers of two workers alone."""
    for rank, (found, expected) in enumerate(zip(processes.of(job), processes.of(like), strict=True)):
        # A reused epoch has the metrics of rank 0, which evaluates.
        assert_same_training(found, expected)
        assert found.metrics[-1]["reused_epochs"] == reused
        assert found.metrics[-1]["trained_epochs"] == 6 - reused
        assert len(processes.trained(f"{job}-{rank}")) == 6 - reused
        assert not found.warnings
        if rank == 0:
            assert comparable(found) == comparable(expected)


def test_two_interrupted_workers_resume(processes):
    for rank, (found, expected) in enumerate(zip(processes.of("cut"), processes.of("alone"), strict=True)):
        assert_same_training(found, expected)
        assert found.metrics[-1]["reused_epochs"] == 0
        assert processes.trained(f"cut-{rank}.rest") == NAMES[3:]


def test_two_workers_train_a_lost_epoch_anew(processes):
    for rank, (found, expected) in enumerate(zip(processes.of("lost"), processes.of("lambda"), strict=True)):
        assert_same_training(found, expected)
        assert processes.trained(f"lost-{rank}") == NAMES


def test_two_workers_wait_together(processes):
    for found, expected in zip(processes.of("held"), processes.of("alone"), strict=True):
        assert found.pending == 1
        assert_same_training(found, expected)


def test_without_space_on_one_worker_nothing_is_shared(processes):
    """Its gradients differ in their last digits from those that the key stands for."""
    cards = (processes.out / "no space").glob("[!.]*/*/epoch.json")
    assert sorted(json.loads(card.read_text())["about"]["stage"] for card in cards) == ["1", "1"]


def test_workers_report_the_same_counts(processes):
    for job in ("taken", "part", "cut", "lost"):
        first, second = processes.of(job)
        for name in ("stage", "reused_epochs", "trained_epochs"):
            assert [m[name] for m in first.metrics] == [m[name] for m in second.metrics]


def test_one_worker_does_not_reuse_epochs_of_two(processes, data, dropping):
    shared = EpochCache(processes.out / "two", 20, "one worker")
    epochs = list(Distillation(TOGETHER, data, dropping, checkpoints=shared))
    assert epochs[-1].metrics["reused_epochs"] == 0
