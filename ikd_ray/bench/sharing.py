"""What a sweep costs whose trials share what they have trained, against one whose trials do not."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ikd_ray.analysis.savings import compute_savings, is_reused
from ikd_ray.bench.inputs import DEFAULT_SPACE, Request
from ikd_ray.bench.processes import RESULT, sweep_alone
from ikd_ray.config import SweepConfig
from ikd_ray.distill.epoch_cache import STAGES
from ikd_ray.records import TrialRecord, read_trials
from ikd_ray.terminal.console import Console

NAMES = {True: "shared", False: "alone"}
# PID and SID at one depth, with three learning rates; all that does not shape a prefix is free.
STAGED = """
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


@dataclass(frozen=True)
class Sharing:
    """The same trials twice: each by itself, and sharing. Seconds are those from the first trial to the last.

    None where they did not run by themselves.
    """

    space: str
    trials: int
    concurrent: int
    internal: int
    """Layer-epochs in internal stages: what is trained where nothing is shared."""
    internal_trained: int
    internal_ratio: float | None
    classification: int
    """Epochs in stages with classification."""
    classification_trained: int
    seconds_shared: float
    seconds_alone: float | None = None
    times_faster: float | None = None
    seconds_predicted: float | None = None
    """Those of the trials alone, less what the epochs that were not trained again took there."""
    over_predicted: float | None = None
    """Seconds by those predicted."""
    same_numbers: bool | None = None
    """Whether every metric of every epoch is the same, to the last bit."""


def measure(request: Request, trials: int, folder: Path, console: Console) -> Iterator[Sharing]:
    """Run sweeps in processes of their own: PID and SID with just the head trained on top, the same with all
    trained on top, each sharing and alone; and the default space, sharing.

    Real in every part. All use one teacher and its targets, made by the first sweep; no sweep finds an epoch
    that an earlier one saved.

    Raises:
        RuntimeError: a sweep did not end well; the message has the end of what it wrote.
    """
    spaces = {f"pid, sid: top trains {top}": (_stages(request, top), True) for top in ("head", "all")}
    spaces["default"] = DEFAULT_SPACE.read_text(), False
    for number, (name, (text, twice)) in enumerate(spaces.items()):
        space = folder / f"space-{number}.yaml"
        space.write_text(text)
        found = []
        for share in (True, False) if twice else (True,):
            sweep = f"{number}-{NAMES[share]}"
            with console.step(f"{name}: {trials} trials, {NAMES[share]}"):
                seconds, concurrent = _sweep(request, trials, space, sweep, share, folder)
            found.append((read_trials(folder / "outputs" / sweep), seconds))
            shutil.rmtree(folder / "outputs" / "cache" / STAGES, ignore_errors=True)
        yield _compare(name, concurrent, *found)


def _stages(request: Request, top: str) -> str:
    return STAGED.format(layers=request.student_layers, top=top)


def _compare(
    space: str,
    concurrent: int,
    shared: tuple[list[TrialRecord], float],
    alone: tuple[list[TrialRecord], float] | None = None,
) -> Sharing:
    trials, seconds = shared
    found = compute_savings(trials)
    sharing = Sharing(
        space=space,
        trials=len(trials),
        concurrent=concurrent,
        internal=found.internal_total,
        internal_trained=found.internal_trained,
        internal_ratio=found.internal_ratio,
        classification=found.classification_total,
        classification_trained=found.classification_trained,
        seconds_shared=seconds,
    )
    if alone is None:
        return sharing
    lone, lone_s = alone
    predicted = lone_s * _trained_share(lone, trials)
    return replace(
        sharing,
        seconds_alone=lone_s,
        times_faster=lone_s / seconds,
        seconds_predicted=predicted,
        over_predicted=seconds / predicted,
        same_numbers=list(map(_numbers, lone)) == list(map(_numbers, trials)),
    )


def _trained_share(alone: list[TrialRecord], shared: list[TrialRecord]) -> float:
    """Of the time that all epochs took in the trials alone, the share of those that the others trained too."""
    trained = total = 0.0
    for one, other in zip(alone, shared, strict=True):
        for epoch, again in zip(one.history, other.history, strict=True):
            seconds = epoch["time/epoch_s"] + epoch["time/evaluation_s"]
            total += seconds
            trained += seconds * (not is_reused(again))
    return trained / total


def _numbers(trial: TrialRecord) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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
    found = sweep_alone("ikd_ray.bench.sharing", [config.model_dump_json()], folder, f"{name}.log")
    return found["seconds"], found["concurrent"]


def child() -> None:
    """One sweep, in a process of its own."""
    from ikd_ray.sweep.request import validate

    console = _Watch()
    request = validate(SweepConfig.model_validate_json(sys.argv[1]))
    from ikd_ray.sweep import runner  # imported late, as `sweeps/run.py` does

    status = runner.run(request, "sharing", console)
    if status:
        raise SystemExit(status)
    Path(RESULT).write_text(json.dumps({"seconds": console.seconds, "concurrent": console.concurrent}))


class _Watch(Console):
    """A console that also notes when the first trial starts and the last one ends."""

    def sweep(self, total: int, concurrent: int, metric: str) -> Any:
        self.concurrent = concurrent
        self._first: float | None = None
        return super().sweep(total, concurrent, metric)

    def trial_started(self, *arguments: Any, **facts: Any) -> None:
        self._first = self._first or time.monotonic()
        super().trial_started(*arguments, **facts)

    def trial_finished(self, *arguments: Any, **facts: Any) -> None:
        assert self._first is not None
        self.seconds = time.monotonic() - self._first
        super().trial_finished(*arguments, **facts)
