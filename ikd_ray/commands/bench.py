"""Measure the cost of an epoch, of targets and of a sweep on this machine, and compare with other programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ikd_ray.config import Device, Precision
from ikd_ray.tasks import TASKS
from ikd_ray.terminal.command_line import expand_home, usage_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    task: Annotated[str, typer.Option(help=f"One of: {', '.join(TASKS)}.")] = "cola",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder in the GLUE layout (CoLA/train.tsv ...). Default: the hub.", callback=expand_home
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Hugging Face name or folder. Default: as `ikd run` has it.", callback=expand_home),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="First examples of each split to take. Default: all.")
    ] = None,
    student_layers: Annotated[int, typer.Option(min=1, help="Encoder layers of the students.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a step.")] = 32,
    precision: Annotated[
        Precision,
        typer.Option(help="Of this project's matrix products in training: auto, float32, bfloat16."),
    ] = "auto",
    device: Annotated[
        Device,
        typer.Option(help="Where models train: cpu, or cuda, a GPU; with two, a trial on both, too."),
    ] = "cpu",
    peer: Annotated[
        list[str] | None, typer.Option(help="Another program to measure: textbrewer, trainer. Repeatable.")
    ] = None,
    overhead_trials: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Measure just what a sweep of N trials costs besides them. Repeatable."),
    ] = None,
    sharing_trials: Annotated[
        int | None,
        typer.Option(min=1, help="Measure just what sharing saves in sweeps of N trials, which takes hours."),
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            min=2, help="Measure just the searches: replays of recorded trials, in N orders of each."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure just what an epoch of id spends its CPU time on.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on standard output, all else on standard error.")
    ] = False,
) -> None:
    """Run the benchmark."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also of the processes that measure
    with usage_errors():
        from ikd_ray.bench.inputs import Request  # imported late: it takes seconds
        from ikd_ray.bench.suite import bench

        request = Request(
            task, data_dir, teacher, limit, student_layers, batch_size, precision, device, tuple(peer or ())
        )
        bench(request, overhead_trials or (), sharing_trials, search, profile, as_json)
