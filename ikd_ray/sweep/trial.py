"""Run one trial of a sweep: its distillation, the results that Tune gets of it, and its record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ikd_ray.config import PrefixConfig, SharingConfig, make_trial
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import DISK_ERRORS, EpochCache, PendingEpoch
from ikd_ray.distill.loop import TIME_METRICS, Distillation, Epoch
from ikd_ray.distill.student import size_metrics
from ikd_ray.distill.training import DivergedError
from ikd_ray.errors import first_line
from ikd_ray.records import TrialRecord, trial_folder, write_trial
from ikd_ray.search.results import FAILED, HALTS, PLACE, REPORT, WAITS, Paused, trial_id
from ikd_ray.storage import store
from ikd_ray.sweep.cluster import TrialResources
from ikd_ray.sweep.prepare import LoadedArtifacts, SharedArtifacts
from ikd_ray.terminal.cache_tables import STAGES

SCRATCH = ".tune"  # Tune's and Train's own state below a sweep's folder; removed at its end


@dataclass(frozen=True)
class TrialContext:
    """All that a trial needs besides its own configuration; travels to every worker."""

    shared: SharedArtifacts
    shares: TrialResources
    name: str  # of the sweep
    identity: str  # the same, unlike any other's anywhere
    prefix: PrefixConfig
    sharing: SharingConfig | None  # none: trials neither leave epochs for others nor take theirs
    method: type[Distillation] = Distillation

    @property
    def sweep(self) -> Path:
        """The sweep's folder, on whichever node asks."""
        return self.shared.output.folder / self.name

    def checkpoints(self, number: int) -> EpochCache | None:
        """Saved epochs, as a trial uses them."""
        if self.sharing is None:
            return None
        name = trial_id(number)
        folder = self.sweep.parent / "cache" / STAGES
        return EpochCache(
            folder,
            self.sharing.disk_gb,
            f"{self.name}/{name}",
            f"{self.identity}-{name}",
            self.shared.output,
        )


def run_trial(
    course: TrialContext, config: dict[str, Any], opened: LoadedArtifacts, world: DistributedContext
) -> Generator[dict[str, Any], None, None]:
    """Run one trial; yields a result an epoch. Rank 0 leaves its folder with the last one.

    One that comes again starts anew, and finds the epochs that it has trained before where they were saved.

    A loss that diverges ends the trial with a result that has the reason under `FAILED`; an epoch that another
    trial is training ends it for now, with one under `WAITS`, and a full disk, or an output that is away, with one
    under `HALTS`.
    """
    start, warnings = time.monotonic(), config.get("warnings", [])
    times: list[float] = []
    epochs: list[Epoch] = []
    trial, checkpoints = make_trial(config["params"]), course.checkpoints(config["number"])
    try:
        targets, reference = opened.teacher, None
        if trial.assistant_layers:  # it teaches; what is measured is against the teacher all the same
            targets, reference = opened.assistant(trial.assistant_layers), targets
        run = course.method(trial, opened.data, targets, world, course.prefix, checkpoints, reference)
        for event in run:
            if isinstance(event, PendingEpoch):
                # Several workers take too long to start for the sake of one epoch.
                busy = event if world.size == 1 else replace(event, folder=None)
                yield {WAITS: Paused(busy, warnings + run.warnings)}
                return
            epochs.append(event)
            times.append(time.time())
            if event.resumed:  # before it was cut off
                start -= sum(event.metrics[name] for name in TIME_METRICS)
            if event.remaining == 0:
                event = epochs[-1] = _finished(course, run, epochs, time.monotonic() - start)
                if world.rank == 0:
                    _save(course, config, run, epochs, times, warnings + run.warnings)
            yield {REPORT: event}
    except DivergedError as error:
        yield {FAILED: str(error)}
    except DISK_ERRORS as error:
        if not (store.is_full(error) or course.shared.output.uri):
            raise
        yield {HALTS: first_line(error)}


def _finished(course: TrialContext, run: Distillation, epochs: list[Epoch], seconds: float) -> Epoch:
    """The last epoch with what is known of the trial as a whole."""
    last = epochs[-1]
    final = size_metrics(run.student) | {
        "student/latency_ms": course.shared.latency_ms[run.trial.student_layers],
        "time/spent_s": seconds,
        "time/saved_s": sum(epoch.metrics["time/reused_s"] for epoch in epochs),
    }
    return replace(last, metrics=last.metrics | final)


def _save(
    course: TrialContext,
    config: dict[str, Any],
    run: Distillation,
    epochs: list[Epoch],
    times: list[float],
    warnings: list[str],
) -> None:
    name, output = trial_id(config["number"]), course.shared.output
    folder = trial_folder(course.sweep, name)
    if output.uri:  # what is on this node may be of an earlier sweep of that name
        store.discard(folder)
    elif folder.exists():
        return
    record = TrialRecord(
        id=name,
        number=config["number"],
        params=run.trial.params(),
        layer_map=list(run.matched),
        status="finished",
        metrics=epochs[-1].metrics,
        history=[epoch.metrics for epoch in epochs],
        times=times,
        duration_s=epochs[-1].metrics["time/spent_s"],
        reused_from=sorted({epoch.reused_from for epoch in epochs} - {""}),
        warnings=warnings,
        **{name: config[name] for name in PLACE},
    )
    write_trial(course.sweep, record, lambda folder: run.student.model.save_pretrained(folder))
    output.push(folder)


def format_error(error: BaseException) -> str:
    """An error that nobody expected, in a line: what, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in place)
    return f"{type(error).__name__}: {first_line(error)}{where}"
