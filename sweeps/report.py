"""Why a sweep's students are good, in figures (--task), or whether all its records tell one story (--check)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ikd_ray.errors import UsageError
from ikd_ray.redaction import refuse_secrets
from ikd_ray.storage.remote import SharedStorage, open_storage
from ikd_ray.sweep.sync import SweepSync, pull_sweeps
from ikd_ray.tasks import TASKS
from ikd_ray.terminal.command_line import print_error, print_warning, run, script_command, usage_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def report(
    task: Annotated[
        str | None,
        typer.Option(
            help=f"Draw a sweep of this task: {', '.join(TASKS)}; or a task file, or its task's name."
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
        str | None, typer.Option(help="Name of the sweep to check; what can be derived is mended.")
    ] = None,
    output: Annotated[
        str, typer.Option(help="Where the sweeps are: a folder, or s3://BUCKET/...")
    ] = "outputs",
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store. Default: the one that the sweep was given.")
    ] = None,
) -> None:
    with usage_errors():
        refuse_secrets("--tracking-uri", tracking_uri)
        if (task is None) == (check is None):
            raise UsageError("give --task TASK to draw a sweep, or --check NAME to check one")
        if check is not None and (name is not None or sentence):
            raise UsageError("--check takes neither --name nor --sentence: they say what --task draws")
        place = open_storage(output)
        if task is not None:
            status = _draw(place, task, name, sentence or [], tracking_uri)
        elif check is not None:
            status = _check(place, check, tracking_uri, output)
    raise typer.Exit(status)


def _check(place: SharedStorage, name: str, uri: str | None, output: str) -> int:
    from ikd_ray.records import num_pending
    from ikd_ray.sweep.request import find_sweep
    from ikd_ray.sweep.verify import verify  # imported late: it takes seconds

    folder = find_sweep(name, "--check", place)
    sweep, trials, found = verify(place, folder, uri)
    SweepSync(place, folder, print_error).push()
    for finding in found:
        state = "mended" if finding.mended else "NOT mended"
        typer.echo(f"{finding.where}: {finding.what}: {state}")
    finished = sum(trial.status == "finished" for trial in trials)
    typer.echo(
        f"{sweep.name}: {len(trials)} of {sweep.trials} trials have ended, {finished} of them finished; "
        f"{len(found)} differences"
    )
    left = [finding for finding in found if not finding.mended]
    if left or num_pending(sweep.trials, trials):
        typer.echo(f"go on: {script_command('run', f'--resume {sweep.name}', output)}")
    return 1 if left else 0


def _draw(place: SharedStorage, task: str, name: str | None, texts: list[str], uri: str | None) -> int:
    from ikd_ray.records import read_sweep, resolve_task, select_sweep  # imported late: it takes seconds
    from ikd_ray.sweep.request import tracking_uri_of
    from ikd_ray.tracking.publish import log_report

    with place.usage_errors():
        pull_sweeps(place)
    folder = select_sweep(place.folder, resolve_task(task, place.folder), name)
    sweep = read_sweep(folder)
    store = tracking_uri_of(sweep, uri, "--name")  # before anything is computed: it may ask for a password

    from ikd_ray.report.report import make_report

    with place.usage_errors():
        files = make_report(place, folder, texts, typer.echo)
        for file in files:
            place.upload_file(file)
    typer.echo(f"report: {_where(place, files[0])}")
    typer.echo(f"{len(files) - 1} figures beside it")
    problem = log_report(sweep, files, store)
    if problem:
        print_warning(f"the report is not in MLflow: {problem}")
    return 0


def _where(place: SharedStorage, page: Path) -> str:
    if place.uri is None:
        return str(page)
    return f"{page} and {place.uri.partition('?')[0]}/{page.relative_to(place.folder)}"


if __name__ == "__main__":
    run(app)
