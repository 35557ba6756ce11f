"""The benchmark: what is measured, in which order, and where it is said."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ikd_ray.bench import epochs, inputs, machine, table
from ikd_ray.bench.epochs import REGIMES, RegimeTimes, Timing
from ikd_ray.bench.floor import Work, layer_weights
from ikd_ray.bench.inputs import Inputs, Request
from ikd_ray.bench.peers import PEERS, check_peers
from ikd_ray.bench.processes import alone, temporary_files_in, together
from ikd_ray.bench.reference import reference_epoch
from ikd_ray.bench.results import Concurrency, Memory, Report, mean_of_stages, rows
from ikd_ray.data.batches import training_batches
from ikd_ray.data.dataset import Dataset
from ikd_ray.data.tokens import TokenSplit, open_data
from ikd_ray.distill.teacher import TeacherSource, load_teacher
from ikd_ray.errors import UsageError
from ikd_ray.terminal.console import Console

TRIALS_AT_ONCE = 2


def bench(request: Request, as_json: bool) -> None:
    """Measure and print: a table, or JSON on standard output and the table on standard error.

    Raises:
        UsageError: a flag is wrong; nothing was written.
    """
    file = sys.stderr if as_json else sys.stdout
    console = Console(file)
    if request.sharing_trials:
        found = _sharing(request, request.sharing_trials, console)
        table.show_sweeps(found, file)
        document: Any = {"sharing": [asdict(result) for result in found]}
    elif request.overhead_trials:
        found = _overhead(request, console)
        table.show_sweeps(found, file)
        document = {"overhead": [asdict(result) for result in found]}
    else:
        report = _epochs(request, console)
        table.show(report, file)
        document = asdict(report)
    if as_json:
        print(json.dumps(document, indent=1, default=str))


def _overhead(request: Request, console: Console) -> list[Any]:
    """What `measure` says of sweeps of so many trials."""
    if request.peers:
        raise UsageError("--overhead-trials measures the sweep alone; leave --peer out")
    from ikd_ray.bench.overhead import measure  # starts Ray, which nothing else here needs

    found = []
    for count in request.overhead_trials:
        with TemporaryDirectory(prefix="ikd-bench-") as folder, console.step(f"a sweep of {count} trials"):
            found.append(measure(count, Path(folder)))
    return found


def _sharing(request: Request, trials: int, console: Console) -> list[Any]:
    """What `sharing.measure` says of sweeps of so many trials."""
    if request.peers or request.limit or request.overhead_trials:
        raise UsageError("--sharing-trials measures that alone; leave --peer, --limit, --overhead-trials out")
    inputs.find(request)  # what is wrong with a flag is said now
    from ikd_ray.bench.sharing import measure  # starts Ray, which nothing else here needs

    with TemporaryDirectory(prefix="ikd-bench-") as folder:
        return list(measure(request, trials, Path(folder), console))


def _epochs(request: Request, console: Console) -> Report:
    load = machine.load()
    check_peers(request.peers)
    source, dataset = inputs.find(request)
    console.note("data", dataset.description)
    threads = machine.cores()
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="ikd-bench-") as folder:
        with console.step("tokens and teacher"):
            laid_out = inputs.lay_out(request, source, dataset, Path(folder), threads)
        with console.step("matrix products"):
            at_start = machine.matmul_peaks()
        with temporary_files_in(laid_out.scratch):
            measured = _measure(laid_out, request.peers, console)
        with console.step("matrix products again"):
            at_end = machine.matmul_peaks()
        return _report(request, source, dataset, laid_out, load, measured, at_start, at_end)


@dataclass(frozen=True)
class _Measured:
    store: epochs.Store
    regimes: dict[str, RegimeTimes]
    teacher: Timing
    distil: list[Timing]  # the reference and peers
    fine_tune: list[Timing]
    concurrency: Concurrency


def _measure(laid_out: Inputs, peers: tuple[str, ...], console: Console) -> _Measured:
    """Everything that takes epochs, one after the other."""
    with console.step("storing the teacher's targets"):
        store = alone(epochs.build_store, laid_out)
    regimes = {}
    for regime in REGIMES:
        with console.step(f"{regime}: {epochs.EPOCHS} epochs of each stage"):
            regimes[regime] = alone(epochs.regime_times, laid_out, regime)
    with console.step("fine-tuning the teacher: an epoch"):
        teacher = alone(epochs.teacher_times, laid_out)
    with console.step("reference: an epoch"):
        distil = [Timing("reference", alone(reference_epoch, laid_out), laid_out.student_layers)]
    fine_tune: list[Timing] = []
    for name in dict.fromkeys(peers):
        with console.step(f"{name}: an epoch"):
            seconds = alone(PEERS[name].epoch, laid_out)
        layers = laid_out.student_layers if PEERS[name].distils else teacher.layers
        (distil if PEERS[name].distils else fine_tune).append(Timing(name, seconds, layers))
    with console.step("two trials at once and in turn"):
        concurrency = _concurrency(laid_out)
    return _Measured(store, regimes, teacher, distil, fine_tune, concurrency)


def _concurrency(laid_out: Inputs) -> Concurrency:
    each = max(1, laid_out.threads // TRIALS_AT_ONCE)
    in_turn = alone(epochs.epochs_in_turn, laid_out, TRIALS_AT_ONCE)
    calls = [(laid_out, seed, each) for seed in range(TRIALS_AT_ONCE)]
    at_once = max(together(epochs.epoch_beside_others, calls))
    return Concurrency(TRIALS_AT_ONCE, each, in_turn, at_once, in_turn / at_once)


def _report(
    request: Request,
    source: TeacherSource,
    dataset: Dataset,
    laid_out: Inputs,
    load: float | None,
    measured: _Measured,
    at_start: dict[str, dict[str, float]],
    at_end: dict[str, dict[str, float]],
) -> Report:
    split = open_data(laid_out.data).train
    tokens = int(split.lengths.sum())
    weights = layer_weights(load_teacher(laid_out.teacher).layers[0])
    work = Work(*weights, tokens, len(split))
    peaks = [max(*at_start[name].values(), *at_end[name].values()) for name in at_start]
    gflops = peaks[0], max(peaks)
    students = [timing for regime in measured.regimes.values() for timing in regime.stages]
    students.append(mean_of_stages("sid, mean", measured.regimes["sid"].stages))
    plan, random = _padding(split, request.batch_size)
    return Report(
        task=request.task,
        data=dataset.description,
        teacher=source.name,
        examples=len(split),
        tokens=tokens,
        student_layers=request.student_layers,
        batch_size=request.batch_size,
        cores=machine.cores(),
        threads=laid_out.threads,
        load_before=load,
        peak_gflops=gflops[0],
        best_gflops=gflops[1],
        gflops_at_start=at_start,
        gflops_at_end=at_end,
        padding_of_plan=plan,
        padding_of_random=random,
        rows=rows(students, measured.distil, work, gflops, True)
        + rows([measured.teacher], measured.fine_tune, work, gflops, False),
        store=measured.store,
        memory=_memory(measured.regimes),
        concurrency=measured.concurrency,
    )


def _padding(split: TokenSplit, batch_size: int) -> tuple[float, float]:
    """Share of padding in the project's batches, and in batches drawn at random."""
    plan = training_batches(split.lengths, batch_size, 0, "bench", 1)
    order = np.random.default_rng(0).permutation(len(split))
    random = np.split(order, range(batch_size, len(order), batch_size))
    return inputs.padding_share(split.lengths, plan), inputs.padding_share(split.lengths, random)


def _memory(regimes: dict[str, RegimeTimes]) -> Memory:
    idle = max(times.idle_mib for times in regimes.values())
    return Memory(idle, {name: times.peak_mib - times.idle_mib for name, times in regimes.items()})
