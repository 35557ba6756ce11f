"""What a sweep costs whose trials share what they have trained, against one whose trials do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ikd_ray.bench.inputs import Request
from ikd_ray.config import SweepConfig
from ikd_ray.report.console import Console
from ikd_ray.report.records import TrialRecord, read_trials
from ikd_ray.report.savings import savings, was_reused

NAMES = {True: "shared", False: "alone"}
RESULT = "seconds.json"
# PID and SID at one depth, with three learning rates; all that does not shape a prefix is free.
STAGES = """
params:
  regime: {{choice: [pid, sid]}}
  student_layers: {layers}
  learning_rate: {{choice: [5.0e-5, 1.0e-4, 2.0e-4]}}
  epochs_per_layer: {{int: [1, 4]}}
  cosine_threshold: {{float: [0.01, 0.5], log: true}}
  lambda: {{float: [0.01, 1], log: true}}
  temperature: {{float: [1, 10], log: true}}
  top_trains: {top}
  epochs: 1
"""
DEFAULT = Path(__file__).resolve().parents[2] / "search_spaces" / "default.yaml"


@dataclass(frozen=True)
class Sharing:
    """The same trials twice: each by itself, and sharing. Seconds are those from the first trial to the last."""

    space: str
    trials: int
    concurrent: int
    internal_alone: int
    """Layer-epochs trained in internal stages."""
    internal_shared: int
    internal_ratio: float
    classification_alone: int
    """Epochs trained in stages with classification."""
    classification_shared: int
    seconds_alone: float
    seconds_shared: float
    times_faster: float
    seconds_predicted: float
    """Those of the trials alone, less what the epochs that were not trained again took there."""
    over_predicted: float
    """Seconds by those predicted."""
    same_numbers: bool
    """Whether every metric of every epoch is the same, to the last bit."""


def measure(request: Request, trials: int, folder: Path, console: Console) -> Iterator[Sharing]:
    """Run pairs of sweeps in processes of their own: PID and SID with just the head on top, with all on top, and
    the default space.

    Real in every part. All use one teacher and its targets, made by the first sweep; no sweep finds an epoch
    that an earlier one saved.

    Raises:
        RuntimeError: a sweep did not end well; the message has the end of what it wrote.
    """
    spaces = {f"pid, sid: top trains {top}": _stages(request, top) for top in ("head", "all")}
    for number, (name, text) in enumerate((spaces | {"default": DEFAULT.read_text()}).items()):
        space = folder / f"space-{number}.yaml"
        space.write_text(text)
        found = {}
        for share in (True, False):
            sweep = f"{number}-{NAMES[share]}"
            with console.step(f"{name}: {trials} trials, {NAMES[share]}"):
                seconds, concurrent = _sweep(request, trials, space, sweep, share, folder)
            found[share] = read_trials(folder / "outputs" / sweep), seconds
            shutil.rmtree(folder / "outputs" / "cache" / "stages", ignore_errors=True)
        yield _compare(name, concurrent, found[False], found[True])


def _stages(request: Request, top: str) -> str:
    return STAGES.format(layers=request.student_layers, top=top)


def _compare(
    space: str,
    concurrent: int,
    alone: tuple[list[TrialRecord], float],
    shared: tuple[list[TrialRecord], float],
) -> Sharing:
    (lone, lone_s), (sharers, shared_s) = alone, shared
    without, with_sharing = savings(lone), savings(sharers)
    predicted = lone_s * _trained_share(lone, sharers)
    return Sharing(
        space=space,
        trials=len(lone),
        concurrent=concurrent,
        internal_alone=without.internal_trained,
        internal_shared=with_sharing.internal_trained,
        internal_ratio=without.internal_trained / max(1, with_sharing.internal_trained),
        classification_alone=without.classification_trained,
        classification_shared=with_sharing.classification_trained,
        seconds_alone=lone_s,
        seconds_shared=shared_s,
        times_faster=lone_s / shared_s,
        seconds_predicted=predicted,
        over_predicted=shared_s / predicted,
        same_numbers=list(map(_numbers, lone)) == list(map(_numbers, sharers)),
    )


def _trained_share(alone: list[TrialRecord], shared: list[TrialRecord]) -> float:
    """Of the time that all epochs took in the trials alone, the share of those that the others trained too."""
    trained = total = 0.0
    for one, other in zip(alone, shared, strict=True):
        for epoch, again in zip(one.history, other.history, strict=True):
            seconds = epoch["time/epoch_s"] + epoch["time/evaluation_s"]
            total += seconds
            trained += seconds * (not was_reused(again))
    return trained / total


def _numbers(trial: TrialRecord) -> tuple[dict, list[dict]]:
    """A trial without what says when it ran and who trained it."""
    history = [
        {
            name: value
            for name, value in epoch.items()
            if not name.startswith("time/") and "_epochs" not in name
        }
        for epoch in trial.history
    ]
    return trial.params, history


def _sweep(
    request: Request, trials: int, space: Path, name: str, share: bool, folder: Path
) -> tuple[float, int]:
    """Run a sweep in `folder`; returns the seconds of its trials, and how many ran at once."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    config = SweepConfig(
        task=request.task,
        data_dir=request.data_dir and request.data_dir.resolve(),
        teacher=request.teacher,
        space=space,
        trials=trials,
        output=folder / "outputs",
        name=name,
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        no_share=not share,
    )
    log = folder / f"{name}.log"
    with open(log, "w") as file:
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                "from ikd_ray.bench.sharing import child; child()",
                config.model_dump_json(),
            ],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode:
        raise RuntimeError(f"status {ended.returncode}: {log.read_text()[-2000:]}")
    found = json.loads((folder / RESULT).read_text())
    return found["seconds"], found["concurrent"]


def child() -> None:
    """One sweep, in a process of its own."""
    from ikd_ray.sweep.request import check

    console = _Watch()
    request = check(SweepConfig.model_validate_json(sys.argv[1]))
    from ikd_ray.sweep import runner  # imported late, as `sweeps/run.py` does

    status = runner.run(request, "sharing", console)
    if status:
        raise SystemExit(status)
    Path(RESULT).write_text(json.dumps({"seconds": console.seconds, "concurrent": console.concurrent}))


class _Watch(Console):
    """A console that also notes when the first trial starts and the last one ends."""

    def sweep(self, total: int, concurrent: int, metric: str):
        self.concurrent = concurrent
        self._first = None
        return super().sweep(total, concurrent, metric)

    def trial_started(self, *arguments, **facts) -> None:
        self._first = self._first or time.monotonic()
        super().trial_started(*arguments, **facts)

    def trial_finished(self, *arguments, **facts) -> None:
        self.seconds = time.monotonic() - self._first
        super().trial_finished(*arguments, **facts)
