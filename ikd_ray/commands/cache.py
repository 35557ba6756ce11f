"""Show the cache that the sweeps of an output folder share, and remove its saved epochs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.filesize import decimal

from ikd_ray.program import shell_command
from ikd_ray.storage.remote import open_storage
from ikd_ray.terminal.command_line import expand_home, print_error, usage_errors

# Modules that take seconds to import are imported where they are used.
Output = Annotated[
    str, typer.Option(help="Where the sweeps are, and the cache with them.", callback=expand_home)
]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command("list")
def show(output: Output = "outputs") -> None:
    """Show the size of each kind of content, and the stages with saved epochs."""
    from ikd_ray.distill.cache_contents import open_cache, summarize_kinds, summarize_stages
    from ikd_ray.terminal.cache_tables import STAGES_SHOWN, kinds_table, stages_table
    from ikd_ray.terminal.console import rich_console

    console = rich_console()
    with usage_errors():
        cache = open_cache(open_storage(output).folder)
        kinds, stages = summarize_kinds(cache), summarize_stages(cache)
    console.print(kinds_table(kinds))
    typer.echo()
    if not stages:
        typer.echo("No saved epochs of stages.")
    else:
        console.print(stages_table(stages))
        if hidden := stages[STAGES_SHOWN:]:
            typer.echo(f"… and {len(hidden)} more, {decimal(sum(stage.bytes for stage in hidden))}")
    typer.echo()
    typer.echo("Nothing here is lost for good: what is deleted is made again when a sweep needs it.")
    typer.echo(
        f"`{shell_command('cache', 'clear', output)}` removes the saved epochs; other folders may be deleted while no "
        "sweep runs."
    )


@app.command()
def clear(output: Output = "outputs") -> None:
    """Remove the saved epochs of stages, except those that running trials use."""
    from ikd_ray.distill.cache_contents import STAGES, clear_stages, open_cache
    from ikd_ray.terminal.cache_tables import format_count

    with usage_errors():
        location = open_storage(output)
        if location.uri:
            with location.usage_errors():
                location.delete_remote(location.folder / "cache" / STAGES)
            (location.folder / "cache").mkdir(parents=True, exist_ok=True)
        cache = open_cache(location.folder)
        result = clear_stages(cache)
    if not (result.removed or result.in_use or result.failed):
        typer.echo("Nothing to remove: no saved epochs of stages.")
    if result.removed:
        typer.echo(
            f"Removed: {format_count(result.removed)}. They are trained again when a trial needs them."
        )
    if result.in_use:
        typer.echo(f"Kept: {format_count(result.in_use)}. Running trials use them.")
    if result.failed:
        print_error(f"{cache / STAGES}: no permission to remove {format_count(result.failed)}")
        raise typer.Exit(1)
