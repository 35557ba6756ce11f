"""Draw a report on a sweep (--task), or check that its records, study, MLflow runs and tables agree (--check)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ikd_ray.errors import UsageError
from ikd_ray.formatting import plural
from ikd_ray.program import shell_command
from ikd_ray.redaction import refuse_secrets
from ikd_ray.storage.remote import SharedStorage, open_storage
from ikd_ray.sweep.sync import SweepSync, pull_sweeps
from ikd_ray.tasks import TASKS
from ikd_ray.terminal.command_line import (
    expand_home,
    print_error,
    print_warning,
    usage_errors,
)

# Modules that take seconds to import are imported where they are used.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def report(
    task: Annotated[
        str | None,
        typer.Option(
            help=f"Draw a sweep of this task: {', '.join(TASKS)}; or a task file, or its task's name.",
            callback=expand_home,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The sweep to draw; default: the newest with a finished trial.")
    ] = None,
    sentence: Annotated[
        list[str] | None,
        typer.Option(help="Text whose attention is drawn; twice for a pair. Default: one of the dev set."),
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="Name of the sweep to check; what can be derived is repaired.")
    ] = None,
    output: Annotated[
        str, typer.Option(help="Where the sweeps are: a folder, or s3://BUCKET/...", callback=expand_home)
    ] = "outputs",
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store. Default: the one that the sweep was given.")
    ] = None,
) -> None:
    """Draw a report, or check a sweep."""
    with usage_errors():
        refuse_secrets("--tracking-uri", tracking_uri)
        if (task is None) == (check is None):
            raise UsageError("give --task TASK to draw a sweep, or --check NAME to check one")
        if check is not None and (name is not None or sentence):
            raise UsageError("--check takes neither --name nor --sentence: they say what --task draws")
        storage = open_storage(output)
        if task is not None:
            _draw(storage, task, name, sentence or [], tracking_uri)
        elif check is not None and not _check(storage, check, tracking_uri, output):
            raise typer.Exit(1)


def _check(storage: SharedStorage, name: str, tracking_uri: str | None, output: str) -> bool:
    """Print the differences from the sweep's records; return whether all of them were repaired."""
    from ikd_ray.sweep.request import find_sweep
    from ikd_ray.sweep.verify import verify

    folder = find_sweep(name, "--check", storage)
    sweep, trials, discrepancies = verify(storage, folder, tracking_uri)
    SweepSync(storage, folder, print_error).push()
    for discrepancy in discrepancies:
        state = "repaired" if discrepancy.repaired else "NOT repaired"
        typer.echo(f"{discrepancy.where}: {discrepancy.what}: {state}")
    finished = sum(trial.status == "finished" for trial in trials)
    typer.echo(
        f"{sweep.name}: {sweep.count(len(trials))} have ended, {finished} of them finished; "
        f"{len(discrepancies)} differences"
    )
    all_repaired = all(discrepancy.repaired for discrepancy in discrepancies)
    if not all_repaired or not sweep.is_complete(trials):
        typer.echo(f"go on: {shell_command('run', f'--resume {sweep.name}', output)}")
    return all_repaired


def _draw(
    storage: SharedStorage, task: str, name: str | None, texts: list[str], tracking_uri: str | None
) -> None:
    """Draw the report, and log it to MLflow where that is possible."""
    from ikd_ray.records import read_sweep, resolve_task, select_sweep
    from ikd_ray.sweep.request import tracking_uri_of

    with storage.usage_errors():
        pull_sweeps(storage)
    folder = select_sweep(storage.folder, resolve_task(task, storage.folder), name)
    sweep = read_sweep(folder)
    uri = tracking_uri_of(sweep, tracking_uri, "--name")  # may ask for a password, so before the work

    from ikd_ray.sweep.deliverables import draw_report

    files, problem = draw_report(storage, folder, texts, uri, typer.echo)
    typer.echo(f"report: {_describe_place(storage, files[0])}")
    typer.echo(
        f"{plural(len(files) - 1, 'file')} beside it: its figures, and tables where the sweep has them"
    )
    if problem:
        print_warning(f"the report is not in MLflow: {problem}")


def _describe_place(storage: SharedStorage, page: Path) -> str:
    if storage.uri is None:
        return str(page)
    return f"{page} and {storage.uri.partition('?')[0]}/{page.relative_to(storage.folder)}"
