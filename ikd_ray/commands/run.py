"""Distil students of a teacher: search regimes and hyperparameters for the Pareto front."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ikd_ray.config import STEP_MEMORY_GB
from ikd_ray.errors import UsageError
from ikd_ray.program import recorded_command
from ikd_ray.redaction import refuse_secrets
from ikd_ray.search.builtin_spaces import DEFAULT_SPACE, names
from ikd_ray.storage.remote import open_storage
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.command_line import expand_home, usage_errors
from ikd_ray.terminal.console import Console

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
EXAMPLES = """\
Examples:

ikd run --task cola --data-dir glue --dry-run

ikd run --task cola --data-dir glue --trials 24

ikd run --resume NAME --trials 48
"""
# Options by their panel of --help.
data, search, machine, results = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in ("What is distilled", "The search", "Where it runs", "Where results go")
)
TASK = "GLUE task: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli; or FILE.yaml, a task of your own."
DATA_DIR = (
    "Folder in the GLUE layout (CoLA/train.tsv ...), or that of a task file's tables. Default: the hub."
)
UNLABELLED = """\
Table of texts without labels (.csv, .tsv, .jsonl, .parquet); only the task's text columns are read; in place of the \
task file's `files: unlabelled`."""
TEACHER = """\
Hugging Face name or folder of an encoder. Default: bert-base-uncased where a GPU and the hub are there, \
else a 6-layer MiniLM."""
SPACE = f"Search space: a file, or a built-in one ({', '.join(names())})."
TRIALS = """\
Configurations to try, of each method where the space compares several. Default: twice as many as there are depths, at \
least 8; the whole of a grid."""
MINUTES = "Minutes in which trials run, in place of a number of trials; --resume goes on for as long again."
NO_SHARE = "Train every epoch of every trial, also those trained before."
DRY_RUN = "Print the plan and, after a ten-second probe, what it will cost; write nothing."
STEP_MEMORY = (
    "Gigabytes that a step's tensors may take in each worker; longer steps are made of several passes."
)
OUTPUT = "Folder for sweeps and what they share; s3://BUCKET/... where nodes share none."
RESUME = """\
Name of the sweep to continue. Where files were moved, give their new places as --data-dir, --unlabelled and \
--teacher; the contents must be the same."""
TRACKING_URI = "MLflow store. Default: MLFLOW_TRACKING_URI, else ./mlflow.db."


@app.command(help=__doc__, epilog=EXAMPLES)
def main(
    context: typer.Context,
    task: Annotated[str, data(help=TASK, callback=expand_home)] = "",
    data_dir: Annotated[Path | None, data(help=DATA_DIR, callback=expand_home)] = None,
    unlabelled: Annotated[Path | None, data(help=UNLABELLED, callback=expand_home)] = None,
    teacher: Annotated[str | None, data(help=TEACHER, callback=expand_home)] = None,
    space: Annotated[str, search(help=SPACE, metavar="FILE|NAME", callback=expand_home)] = DEFAULT_SPACE,
    trials: Annotated[int | None, search(help=TRIALS)] = None,
    minutes: Annotated[float | None, search(help=MINUTES)] = None,
    seed: Annotated[int, search(help="Seed of the search and of every trial.")] = 0,
    no_share: Annotated[bool, search("--no-share", help=NO_SHARE)] = False,
    dry_run: Annotated[bool, search("--dry-run", help=DRY_RUN)] = False,
    concurrent: Annotated[int | None, machine(help="Trials at once. Default: what fits.")] = None,
    workers_per_trial: Annotated[int, machine(help="Ray Train workers of each trial.")] = 1,
    gpus_per_worker: Annotated[
        float | None, machine(help="GPUs of each worker. Default: 1 where there are any.")
    ] = None,
    step_memory: Annotated[float, machine(help=STEP_MEMORY)] = STEP_MEMORY_GB,
    output: Annotated[str, results(help=OUTPUT, callback=expand_home)] = "outputs",
    name: Annotated[str | None, results(help="The sweep's name. Default: task and time.")] = None,
    resume: Annotated[str | None, results(help=RESUME)] = None,
    tracking_uri: Annotated[str | None, results(help=TRACKING_URI)] = None,
) -> None:
    """Run, resume or plan a sweep."""
    given = {
        name: value
        for name, value in context.params.items()
        if name not in ("resume", "dry_run")
        and (source := context.get_parameter_source(name))
        and source.name == "COMMANDLINE"
    }
    with usage_errors():
        refuse_secrets("--tracking-uri", tracking_uri)
        from ikd_ray.data.task_file import find_task
        from ikd_ray.sweep.request import read_config, validate

        if resume and dry_run:
            raise UsageError("--dry-run is for a new sweep; leave out --resume, or leave out --dry-run")
        config = read_config(given, open_storage(output), resume)
        console = Console()
        console.heading(
            f"{find_task(config.task).name}: students of {config.teacher or 'the default teacher'}"
        )
        with console.step("reading data and teacher"):
            request = validate(config, resumes=bool(resume))
            # Imported late, and only the one that is needed: they take seconds.
            if dry_run:
                from ikd_ray.sweep.dry_run import plan_sweep
            else:
                from ikd_ray.sweep import runner
        interrupts.raise_on_interrupt()
        if not dry_run:
            raise typer.Exit(runner.run(request, recorded_command("run"), console).status)
        for note in plan_sweep(request):
            console.note(note.label, note.text)
        console.note("nothing was written", "leave out --dry-run to begin")
