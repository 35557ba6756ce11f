"""The benchmark: what is measured, in which order, and how it is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ikd_ray.bench import epochs, machine
from ikd_ray.bench.epoch_profile import profile_epoch
from ikd_ray.bench.inputs import Inputs, Request, find_inputs, prepare_inputs
from ikd_ray.bench.peers import PEERS, REFERENCES, check_peers
from ikd_ray.bench.results import (
    Timing,
    Work,
    compare,
    layer_weights,
    mean_of_stages,
    show_report,
    show_rows,
    show_sweeps,
)
from ikd_ray.bench.search_suite import measure_search, show_search
from ikd_ray.bench.sweeps import measure_overhead, measure_sharing
from ikd_ray.data.batches import training_batches
from ikd_ray.data.tokens import open_data
from ikd_ray.distill.processor import cpu_model
from ikd_ray.distill.teacher import load_teacher
from ikd_ray.errors import UsageError
from ikd_ray.sweep.local_processes import run_alone, run_together
from ikd_ray.sweep.placement import Placement
from ikd_ray.terminal.console import Console

CONCURRENT_TRIALS = {"cpu": (2,), "cuda": (2, 4)}
WORKERS = 2


def bench(
    request: Request,
    overhead_trials: Sequence[int],
    sharing_trials: int | None,
    search_orders: int | None,
    profile: bool,
    as_json: bool,
) -> None:
    """Measure and print: a table, or JSON on standard output and the table on standard error.

    `overhead_trials` and `sharing_trials`, numbers of trials of sweeps, each ask for nothing else, and so do
    `search_orders`, the number of replays of each search, and `profile`.

    Raises:
        UsageError: a flag is wrong; nothing was written.
    """
    file = sys.stderr if as_json else sys.stdout
    console = Console(file)
    document: dict[str, Any]
    if search_orders:
        if request.peers or request.limit or overhead_trials or sharing_trials:
            raise UsageError("--search replays recorded trials; leave all flags but --search and --json out")
        document = measure_search(search_orders, console)
        show_search(document, file)
    elif profile:
        if request.peers or request.device != "cpu" or overhead_trials or sharing_trials:
            raise UsageError(
                "--profile measures an epoch of id on the CPU alone; leave --peer, --device, --overhead-trials "
                "and --sharing-trials out"
            )
        document = {"profile": _measure_profile(request, console)}
        show_rows(document["profile"], file)
    elif sharing_trials:
        if request.peers or request.limit or overhead_trials:
            raise UsageError(
                "--sharing-trials measures that alone; leave --peer, --limit, --overhead-trials out"
            )
        find_inputs(request)  # report wrong flags now
        with TemporaryDirectory(prefix="ikd-bench-") as folder:
            document = {"sharing": list(measure_sharing(request, sharing_trials, Path(folder), console))}
        show_sweeps(document["sharing"], file)
    elif overhead_trials:
        if request.peers:
            raise UsageError("--overhead-trials measures the sweep alone; leave --peer out")
        document = {"overhead": []}
        for count in overhead_trials:
            with (
                TemporaryDirectory(prefix="ikd-bench-") as folder,
                console.step(f"a sweep of {count} trials"),
            ):
                document["overhead"].append(measure_overhead(count, Path(folder)))
        show_sweeps(document["overhead"], file)
    else:
        document = _measure_epochs(request, console)
        show_report(document, file)
    if as_json:
        print(json.dumps(document, indent=1, default=str))


def _measure_profile(request: Request, console: Console) -> list[dict[str, Any]]:
    source, dataset = find_inputs(request)
    console.note("data", dataset.description)
    threads = machine.cores()
    with TemporaryDirectory(prefix="ikd-bench-") as folder:
        with console.step("tokens and teacher"):
            inputs = prepare_inputs(request, source, dataset, Path(folder), threads)
        with console.step("storing the teacher's targets"):
            run_alone(epochs.time_targets, inputs, threads=threads)
        with console.step(f"two epochs in {inputs.world.training_precision}"):
            return run_alone(profile_epoch, inputs, threads=threads)


def _measure_epochs(request: Request, console: Console) -> dict[str, Any]:
    """Measure epochs, targets, memory and concurrency; return the JSON document."""
    load_average = os.getloadavg()[0]
    check_peers(request.peers)
    source, dataset = find_inputs(request)
    console.note("data", dataset.description)
    threads = machine.cores()
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="ikd-bench-") as folder:
        with console.step("tokens and teacher"):
            inputs = prepare_inputs(request, source, dataset, Path(folder), threads)
        with console.step("matrix products"):
            gflops_at_start = machine.matmul_peaks(inputs.device)
        with patch.dict(os.environ, TMPDIR=str(inputs.scratch)):  # some libraries leave temporary files
            comparisons, facts = _measure(inputs, request.peers, console)
        with console.step("matrix products again"):
            gflops_at_end = machine.matmul_peaks(inputs.device)
        split, layer = open_data(inputs.data).train, load_teacher(inputs.teacher).layers[0]
    peaks = {
        name: max(*gflops_at_start[name].values(), *gflops_at_end[name].values()) for name in gflops_at_start
    }
    precision = inputs.world.training_precision
    exact = max(
        gflops for name, gflops in peaks.items() if name != machine.BFLOAT16 or precision == "bfloat16"
    )
    work = Work(*layer_weights(layer), tokens=int(split.lengths.sum()), examples=len(split))
    gflops = peaks["torch.mm"], exact
    plan = training_batches(split.lengths, request.batch_size, 0, "bench", 1)
    order = np.random.default_rng(0).permutation(len(split))
    random = np.split(order, range(request.batch_size, len(order), request.batch_size))
    return {
        "task": request.task,
        "data": dataset.description,
        "teacher": source.name,
        "examples": work.examples,
        "tokens": work.tokens,
        "student_layers": request.student_layers,
        "batch_size": request.batch_size,
        "device": torch.cuda.get_device_name() if inputs.device == "cuda" else cpu_model(),
        "precision": precision,
        "cores": machine.cores(),
        "threads": threads,
        "load_before": load_average,  # where others compute too, all times are too long
        "peak_gflops": gflops[0],  # of torch.mm: the plain floor's
        "best_gflops": gflops[1],  # of any library, in the precision: the exact floor's
        "gflops_at_start": gflops_at_start,
        "gflops_at_end": gflops_at_end,
        "padding_of_plan": padding_share(split.lengths, plan),
        "padding_of_random": padding_share(split.lengths, random),
        "rows": [row for timings in comparisons for row in compare(*timings, work, gflops)],
        **facts,
    }


def _measure(
    inputs: Inputs, peers: Sequence[str], console: Console
) -> tuple[list[tuple[list[Timing], list[Timing], bool]], dict[str, Any]]:
    """Measure everything that takes epochs, one after the other.

    Returns:
        The timings to `compare`: this project's, those of other programs that do the same work, and whether the
        embeddings are frozen in this project's. And what was measured besides.
    """

    def measure(step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        with console.step(step):
            return run_alone(function, inputs, *arguments, threads=inputs.threads)

    store = measure("storing the teacher's targets", epochs.time_targets)
    regimes = {
        regime: measure(f"{regime}: {epochs.EPOCHS} epochs of each stage", epochs.time_regime, regime)
        for regime in epochs.REGIMES
    }
    teacher = measure("fine-tuning the teacher: an epoch", epochs.time_teacher)
    distil, fine_tune = [], []
    references = {"reference": REFERENCES["float32"]}
    if inputs.world.training_precision == "bfloat16":
        references["bfloat16 reference"] = REFERENCES["bfloat16"]
    for name, peer in (references | {name: PEERS[name] for name in peers}).items():
        seconds = measure(f"{name}: an epoch", peer.epoch)
        if peer.distils:
            distil.append(Timing(name, seconds, inputs.student_layers))
        else:
            fine_tune.append(Timing(name, seconds, teacher.layers))
    with console.step("trials at once and in turn"):
        concurrency = list(_compare_placements(inputs))
    workers = None
    if torch.cuda.device_count() >= WORKERS and inputs.device == "cuda":
        with console.step(f"a trial with {WORKERS} workers"):
            workers = _time_workers(inputs, WORKERS)
    students = [stage for stages, _, _ in regimes.values() for stage in stages]
    students.append(mean_of_stages("sid, mean", regimes["sid"][0]))
    memory = {  # MiB
        "idle": max(idle for _, idle, _ in regimes.values()),
        "peak_above_idle": {name: peak - idle for name, (_, idle, peak) in regimes.items()},
    }
    comparisons = [(students, distil, True), ([teacher], fine_tune, False)]
    return comparisons, {"store": store, "memory": memory, "concurrency": concurrency, "workers": workers}


def _time_workers(inputs: Inputs, workers: int) -> dict[str, float]:
    """Time an epoch of a trial that several workers train together."""
    calls = [(inputs, rank, workers, inputs.scratch / "rendezvous") for rank in range(workers)]
    threads = max(1, inputs.threads // workers)
    return {
        "count": workers,
        "seconds": max(run_together(epochs.time_epoch_of_workers, calls, threads)),
    }


def _compare_placements(inputs: Inputs) -> Iterator[dict[str, float]]:
    """Compare trials one after the other, with all threads, with trials at once that share the threads."""
    placements = [
        Placement(trials, max(1, inputs.threads // trials))
        for trials in (1, *CONCURRENT_TRIALS[inputs.device])
    ]
    alone, *others = epochs.time_concurrent_trials(inputs, placements)
    for placement, at_once in zip(placements[1:], others, strict=True):
        in_turn = placement.trials * alone
        yield {
            "trials": placement.trials,
            "threads_each": placement.threads,
            "in_turn_s": in_turn,
            "at_once_s": at_once,
            "gain": in_turn / at_once,
        }


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Return the share of padding among the tokens of batches that are padded to their longest example.

    Args:
        lengths: (n,) tokens of each example.
        batches: rows of each batch.
    """
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1 - sum(int(lengths[rows].sum()) for rows in batches) / padded
