"""One trial of a sweep: its distillation, the results that it reports, and its record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ikd_ray.config import make_trial
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch import TIME_METRICS, Epoch
from ikd_ray.distill.epoch_cache import DISK_ERRORS, PendingEpoch
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.stage_training import DivergedError
from ikd_ray.distill.student import size_metrics
from ikd_ray.errors import first_line
from ikd_ray.records import TrialRecord, require_sweep, trial_folder, write_trial
from ikd_ray.redaction import redact_text
from ikd_ray.storage import store
from ikd_ray.sweep.artifacts import LoadedArtifacts
from ikd_ray.sweep.trial_context import TrialContext
from ikd_ray.sweep.trial_results import FAILED, PAUSED, REPORT, SPEC_FIELDS, STOPPED, Paused, trial_id
from ikd_ray.tasks import constant_scores_warning


def run_trial(
    context: TrialContext,
    config: dict[str, Any],
    artifacts: LoadedArtifacts,
    distributed: DistributedContext,
) -> Generator[dict[str, Any], None, None]:
    """Run one trial, and yield a Tune result for each epoch; rank 0 writes the trial's folder with the last one.

    A trial that is started again repeats its epochs from where they were saved. Other results than `REPORT` end
    the trial: `FAILED` with the reason of a diverged loss, `PAUSED` where another trial is training the next
    epoch, and `STOPPED` where files cannot be read or written: the disk is full, the cache was deleted, the output
    cannot be reached.
    """
    warnings = config.get("warnings", [])
    times: list[float] = []
    epochs: list[Epoch] = []
    trial, cache = make_trial(config["params"]), context.epoch_cache(trial_id(config["number"]))
    try:
        start = time.monotonic()
        targets, reference = artifacts.targets_of(trial)
        run = (context.distillation or Distillation)(
            trial, artifacts.data, targets, distributed, context.prefix, cache, reference, context.memory
        )
        for event in run:
            if isinstance(event, PendingEpoch):
                # Several workers wait for the end of the stage: they take too long to restart for a single epoch.
                pending = event if distributed.size == 1 else replace(event, folder=None)
                yield {PAUSED: Paused(pending, warnings + run.warnings)}
                return
            epochs.append(event)
            times.append(time.time())
            if event.remaining == 0:
                latency_ms = context.artifacts.latency_ms[run.trial.student_layers]
                event = epochs[-1] = add_final_metrics(run, epochs, latency_ms, time.monotonic() - start)
                if distributed.rank == 0:
                    _write_record(context, config, run, epochs, times, warnings + run.warnings)
            yield {REPORT: event}
    except DivergedError as error:
        yield {FAILED: str(error)}
    except DISK_ERRORS as error:
        if distributed.size > 1 and not store.is_disk_full(error):
            raise  # the other workers wait for this one; Ray Train restarts all of them
        yield {STOPPED: format_error(error)}


def add_final_metrics(run: Distillation, epochs: list[Epoch], latency_ms: float, seconds: float) -> Epoch:
    """Return the last epoch with the metrics of the trial as a whole.

    It took so many seconds, and before them those of the epochs that an earlier run of it trained.
    """
    last, resumed = epochs[-1], [epoch for epoch in epochs if epoch.resumed]
    seconds += sum(epoch.metrics[name] for epoch in resumed for name in TIME_METRICS)
    final = size_metrics(run.student) | {
        "student/latency_ms": latency_ms,
        "time/spent_s": seconds,
        "time/saved_s": sum(epoch.metrics["time/reused_s"] for epoch in epochs),
    }
    return replace(last, metrics=last.metrics | final)


def _write_record(
    context: TrialContext,
    config: dict[str, Any],
    run: Distillation,
    epochs: list[Epoch],
    times: list[float],
    warnings: list[str],
) -> None:
    trial, output = trial_id(config["number"]), context.artifacts.output
    folder = trial_folder(context.sweep, trial)
    if output.uri:  # this node may hold a trial of an earlier sweep with the same name
        store.discard(folder)
    elif folder.exists():
        return
    else:
        require_sweep(context.sweep)
    spec = {name: config[name] for name in SPEC_FIELDS}
    record = replace(finished_record(trial, run, epochs, times, warnings), number=config["number"], **spec)
    write_trial(context.sweep, record, lambda folder: run.student.model.save_pretrained(folder))
    output.upload(folder)


def finished_record(
    id: str, run: Distillation, epochs: list[Epoch], times: list[float], warnings: list[str]
) -> TrialRecord:
    """Return the record of a trial whose last epoch has the final metrics.

    Args:
        id: its name.
        run: the trial.
        epochs: all of its epochs.
        times: the end of each epoch, in seconds since 1970.
        warnings: those of its saved epochs.
    """
    metrics = epochs[-1].metrics
    advice = "give more epochs or a larger learning_rate"
    if warning := constant_scores_warning(metrics, "its", advice):
        warnings = [*warnings, warning]
    return TrialRecord(
        id=id,
        number=0,
        params=run.trial.params(),
        layer_map=list(run.matched),
        status="finished",
        metrics=metrics,
        history=[epoch.metrics for epoch in epochs],
        times=times,
        duration_s=metrics["time/spent_s"],
        reused_from=sorted({epoch.reused_from for epoch in epochs} - {""}),
        warnings=warnings,
        precision=run.world.training_precision,
    )


def format_error(error: BaseException) -> str:
    """Describe an unexpected error in one line, without secrets: its type, message and place, and advice on memory."""
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in frames)
    advice = "; a sweep with a smaller --step-memory takes less" if _is_out_of_memory(error) else ""
    return f"{type(error).__name__}: {redact_text(first_line(error))}{where}{advice}"


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU PyTorch raises a RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
