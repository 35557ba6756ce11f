"""Entry points: the program `ikd`, and a script for each of its commands."""

from __future__ import annotations

import os
from typing import NoReturn

from ikd_ray.terminal import interrupts


def main() -> NoReturn:
    """Run `ikd COMMAND ...` and exit with its status."""
    _prepare()
    from ikd_ray.commands.program import app
    from ikd_ray.terminal.command_line import run

    run(app)


def run_script(command: str) -> NoReturn:
    """Run one command under the name of its script in `sweeps/` and exit with its status."""
    _prepare()
    from ikd_ray.commands.program import load_app
    from ikd_ray.terminal.command_line import run

    run(load_app(command))


def _prepare() -> None:
    """Handle Ctrl-C before the imports that take long, and set what libraries read when they are imported."""
    interrupts.exit_on_interrupt()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
