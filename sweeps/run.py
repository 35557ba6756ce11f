# ruff: noqa: E402 - Ctrl-C is handled before the imports that take long
"""Distil students of a teacher: search regimes and hyperparameters for the Pareto front."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

# Libraries read these when they are imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from ikd_ray.terminal import interrupts

interrupts.exit_on_interrupt()

import typer

from ikd_ray.config import STEP_MEMORY_GB
from ikd_ray.errors import UsageError
from ikd_ray.redaction import refuse_secrets
from ikd_ray.storage.remote import open_storage
from ikd_ray.terminal.command_line import expand_home, run, usage_errors
from ikd_ray.terminal.console import Console

SPACES = Path(__file__).resolve().parent.parent / "search_spaces"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
EXAMPLES = """\
Examples:

python sweeps/run.py --task cola --data-dir glue --dry-run

python sweeps/run.py --task cola --data-dir glue --trials 24

python sweeps/run.py --resume NAME --trials 48
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
Hugging Face name or folder of a BERT-family model. Default: bert-base-uncased where a GPU and the hub are there, \
else a 6-layer MiniLM."""
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
    space: Annotated[
        Path,
        search(help="Search space file.", show_default="search_spaces/default.yaml", callback=expand_home),
    ] = SPACES / "default.yaml",
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
    command = shlex.join(["python", "sweeps/run.py", *sys.argv[1:]])
    with usage_errors():
        refuse_secrets("--tracking-uri", tracking_uri)
        from ikd_ray.data.task_file import find_task
        from ikd_ray.sweep.request import make_config, resumed_config, validate

        if resume and dry_run:
            raise UsageError("--dry-run is for a new sweep; leave out --resume, or leave out --dry-run")
        storage = open_storage(output)
        if resume:
            config = resumed_config(resume, given, storage)
        elif not task:
            raise UsageError("--task is missing; e.g. --task cola, or a task file")
        else:
            config = make_config(given | {"space": space, "output": storage.folder, "uri": storage.uri})
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
            raise typer.Exit(runner.run(request, command, console))
        for note in plan_sweep(request):
            console.note(note.label, note.text)
        console.note("nothing was written", "leave out --dry-run to begin")


if __name__ == "__main__":
    run(app)
