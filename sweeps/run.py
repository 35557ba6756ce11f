# ruff: noqa: E402 - Ctrl-C is heeded before what takes long is imported
"""Distil students of a teacher: search regimes and hyperparameters until there is a Pareto front."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

# Libraries read these when they are imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from ikd_ray.report import interrupt

interrupt.end_at_once()

import typer

from ikd_ray.data.remote import open_output
from ikd_ray.errors import UsageError
from ikd_ray.report.cli import run, usage_errors
from ikd_ray.report.console import Console
from ikd_ray.report.passwords import given_in_full, hide_command_line, printable_command

SPACES = Path(__file__).resolve().parent.parent / "search_spaces"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    task: Annotated[
        str,
        typer.Option(
            help="GLUE task: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli; or FILE.yaml, a task of your own."
        ),
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder in the GLUE layout (CoLA/train.tsv ...), or that of a task file's tables. Default: the hub."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face name or folder of a BERT-family model. Default: bert-base-uncased where a GPU "
            "and the hub are there, else a 6-layer MiniLM."
        ),
    ] = None,
    space: Annotated[
        Path, typer.Option(help="Search space file.", show_default="search_spaces/default.yaml")
    ] = SPACES / "default.yaml",
    trials: Annotated[
        int | None, typer.Option(help="Students to train. Default: 8, or the whole of a grid.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option(help="Trials at once. Default: what fits.")] = None,
    workers_per_trial: Annotated[int, typer.Option(help="Ray Train workers of each trial.")] = 1,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of each worker. Default: 1 where there are any.")
    ] = None,
    output: Annotated[
        str,
        typer.Option(help="Folder for sweeps and what they share; s3://BUCKET/... where nodes share none."),
    ] = "outputs",
    name: Annotated[str | None, typer.Option(help="The sweep's name. Default: task and time.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search and of every trial.")] = 0,
    no_share: Annotated[
        bool, typer.Option("--no-share", help="Train every epoch of every trial, also those trained before.")
    ] = False,
    resume: Annotated[str | None, typer.Option(help="Name of a sweep to go on with.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store. Default: MLFLOW_TRACKING_URI, else ./mlflow.db.")
    ] = None,
    context: typer.Context = None,
) -> None:
    given = {
        key: value
        for key, value in context.params.items()
        if key != "resume" and context.get_parameter_source(key).name == "COMMANDLINE"
    }
    if "tracking_uri" in given:
        given["tracking_uri"] = given_in_full(tracking_uri)
    command = printable_command(["python", "sweeps/run.py", *sys.argv[1:]])
    with usage_errors():
        from ikd_ray.data.task_file import find_task
        from ikd_ray.sweep.request import check, make_config, resumed

        place = open_output(output)
        if resume:
            config = resumed(resume, given, place)
        elif not task:
            raise UsageError("--task is missing; e.g. --task cola, or a task file")
        else:
            config = make_config(given | {"space": space, "output": place.folder, "uri": place.uri})
        console = Console()
        console.heading(
            f"{find_task(config.task).name}: students of {config.teacher or 'the default teacher'}"
        )
        with console.step("reading data and teacher"):
            request = check(config, resumes=bool(resume))
            from ikd_ray.sweep import runner  # imported late: it takes seconds
        interrupt.raise_it()
        status = runner.run(request, command, console)
    raise typer.Exit(status)


if __name__ == "__main__":
    hide_command_line("--tracking-uri")
    run(app)
