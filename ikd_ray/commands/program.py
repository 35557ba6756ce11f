"""The program `ikd`, which imports a command when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ikd_ray.program import COMMANDS
from ikd_ray.terminal import interrupts
from ikd_ray.version import code_version


def load_app(command: str) -> typer.Typer:
    """Import the module of a command and return its Typer application."""
    app: typer.Typer = import_module(f"ikd_ray.commands.{command}").app
    if command != "run":  # which does so itself, as soon as it has something to resume
        interrupts.raise_on_interrupt()
    return app


class _Commands(TyperGroup):
    """The commands of `COMMANDS`; only the module of the one that is called is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(load_app(cmd_name))
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ikd-ray {code_version()}")
        raise typer.Exit()


@app.callback(no_args_is_help=True)
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Compress a transformer encoder: distil students, compare them, and export the best."""
