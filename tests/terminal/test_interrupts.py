"""Ctrl-C, SIGTERM and SIGHUP before and after a command has begun, sent to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.run_command import restore_sighup

ROOT = Path(__file__).resolve().parents[2]
BEFORE = """
import time
from ikd_ray.terminal import interrupts
interrupts.exit_on_interrupt()
print("ready", flush=True)
time.sleep(60)
"""
AFTER = """
import signal, time
from ikd_ray.terminal import interrupts
interrupts.exit_on_interrupt()
interrupts.raise_on_interrupt()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", interrupts.was_interrupted())
"""
DROPPED = """
import os, signal, weakref
from ikd_ray.terminal import interrupts
interrupts.raise_on_interrupt()

class Referent:
    pass

first, second = Referent(), Referent()
references = [
    weakref.ref(first, lambda _: os.kill(os.getpid(), signal.SIGINT)),
    weakref.ref(second, lambda _: 1 / 0),
]
del first
del second
print("interrupted", interrupts.was_interrupted())
interrupts.raise_if_interrupted()
"""
ENDED = """
import atexit, time, typer
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.command_line import run
app = typer.Typer()

@app.command()
def main():
    interrupts.raise_on_interrupt()
    atexit.register(lambda: (print("ready", flush=True), time.sleep(1)))
    raise typer.Exit(1)

run(app, [])
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(script: str, number: signal.Signals, *within: str) -> tuple[int, str]:
    """Send a signal to a process that says it is ready; return its exit status and its output."""
    command = [*within, sys.executable, "-c", script]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=restore_sighup, **streams)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=2 if within else 30)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.parametrize("number", SIGNALS)
def test_before_a_command_has_begun_it_exits_at_once(number):
    assert send(BEFORE, number) == (130, "\ninterrupted: nothing has begun\ngo on: the same command does\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_later_it_is_a_keyboard_interrupt(number):
    assert send(AFTER, number) == (0, "interrupted True\n")


def test_python_drops_it_in_a_weakref_callback_without_a_traceback():
    done = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == "interrupted True\n"
    dropped, raised = done.stderr.split("ZeroDivisionError: division by zero")
    assert "KeyboardInterrupt" not in dropped, "it is remembered, and raised where it can be handled"
    assert "KeyboardInterrupt" in raised


def test_under_nohup_a_closed_terminal_is_ignored():
    ignoring = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    assert send(AFTER, signal.SIGHUP, *ignoring) == (-signal.SIGKILL, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_has_ended_keeps_its_status(number):
    assert send(ENDED, number) == (1, "")
