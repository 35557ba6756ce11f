"""Sweeps whose disk fills up: a clear line, nothing damaged, and where there is room again they go on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ikd_ray.records import read_trials
from tests.helpers.run_command import (
    SweepExit,
    SweepProcess,
    damaged_entries,
    run_sweep_process,
    saved_epochs,
    start_sweep,
    sweep_flags,
    trial_metrics,
)

pytestmark = pytest.mark.slow

SPACE = """
sampler: grid
params: {regime: {choice: [id, kd]}, student_layers: 2, epochs: 4, batch_size: 16}
teacher: {epochs: 2}
"""
MEGABYTES = 128
BLOCK = 4096


@dataclass(frozen=True)
class Disk:
    """A small one, mounted for a test."""

    folder: Path  # as a sweep sees it
    seen: Path  # as the test does
    within: Sequence[str]  # what a command is to run in that sees it

    def fill(self) -> None:
        """Leave nothing."""
        with open(self.seen / "ballast", "wb", buffering=0) as ballast:
            for size in (1 << 20, BLOCK):
                with suppress(OSError):  # somebody else took the last of them
                    while self._free() >= size:
                        ballast.write(bytes(size))

    def _free(self) -> int:
        status = os.statvfs(self.seen)
        return status.f_bavail * status.f_frsize

    def free(self) -> None:
        (self.seen / "ballast").unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A file system in memory; without the right to mount one, in a name space where everybody has it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "ikd-test", str(folder)]
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    if subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield Disk(folder, folder, ())
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no right to mount a file system, and no unshare and nsenter")
    script = '"$@" && echo mounted && exec cat'
    holder = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script, "sh", *mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"no right to mount a file system: {holder.stderr.read().strip()}")
        within = ["nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials"]
        # Who enters starts at the root.
        home = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder.parent)]
        yield Disk(folder, Path(f"/proc/{holder.pid}/root{folder}"), [*within, *home])
    finally:
        holder.communicate()


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def arguments(inputs: Path, home: Path, name: str, output: Path) -> list[object]:
    (home / "space.yaml").write_text(SPACE)
    return [*sweep_flags(inputs, home / "space.yaml", name), "--concurrent", 1, "--output", output]


@pytest.fixture(scope="module")
def whole(large, command, tmp_path_factory):
    """The output folder of a sweep whose disk had room."""
    home = tmp_path_factory.mktemp("whole")
    done = command("run", *arguments(large, home, "whole", home / "outputs"), cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "outputs"


def with_cache_of(whole: Path, disk: Disk) -> None:
    """What trials share, but none of their epochs."""
    ignored = shutil.ignore_patterns("stages")
    shutil.copytree(whole / "cache", disk.seen / "outputs" / "cache", ignore=ignored)


def assert_told(ended: SweepExit, name: str | None) -> None:
    """Status 1 and one line on stderr: what is the matter, and how to go on."""
    assert ended.status == 1, ended.output + ended.errors
    [line] = ended.errors.splitlines()
    assert line.startswith("error: ")
    assert "no space left on device" in line.lower()
    [hint] = [line for line in ended.output.splitlines() if line.startswith("go on: ")]
    assert (f"--resume {name}" if name else "the same command") in hint
    assert "Traceback" not in ended.output
    assert (ended.processes, ended.folders) == ([], set())


def assert_finishes(environment, disk: Disk, home: Path, given: list[object], name: str, whole: Path) -> None:
    """With the numbers of a sweep whose disk had room."""
    process = start_sweep(environment, home, given, within=disk.within)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert trial_metrics(disk.seen / "outputs" / name) == trial_metrics(whole / "whole")
    assert damaged_entries(disk.seen / "outputs") == []


def reached(sweep: SweepProcess, disk: Disk, epochs: int) -> None:
    """So many epochs are saved: the next one runs."""
    sweep.wait_for("started: ")
    sweep.wait_until(lambda: len(saved_epochs(disk.seen / "outputs")) >= epochs)


def test_full_in_mid_epoch(large, environment, whole, disk, tmp_path):
    """Nothing at all can be written from a moment in the second epoch on."""
    with_cache_of(whole, disk)
    given = arguments(large, tmp_path, "full", disk.folder / "outputs")
    with run_sweep_process(environment, tmp_path, given, within=disk.within) as sweep:
        reached(sweep, disk, 1)
        disk.fill()
        ended = sweep.end()
    assert "epochs cannot be shared" in ended.output
    assert_told(ended, "full")
    disk.free()
    assert damaged_entries(disk.seen / "outputs") == []
    before = saved_epochs(disk.seen / "outputs")
    assert before
    resume = ["--resume", "full", "--output", disk.folder / "outputs"]
    assert_finishes(environment, disk, tmp_path, resume, "full", whole)
    after = saved_epochs(disk.seen / "outputs")
    assert before.items() <= after.items(), "a saved epoch was trained again"
    took = {
        epoch["time/epoch_s"] for trial in read_trials(disk.seen / "outputs/full") for epoch in trial.history
    }
    assert set(before.values()) <= took


def test_full_for_a_while(large, environment, whole, disk, tmp_path):
    """An epoch that cannot be saved is a warning, no more."""
    with_cache_of(whole, disk)
    given = arguments(large, tmp_path, "full", disk.folder / "outputs")
    with run_sweep_process(environment, tmp_path, given, within=disk.within) as sweep:
        reached(sweep, disk, 1)
        disk.fill()
        sweep.wait_for("t000: epochs cannot be shared")
        disk.free()
        ended = sweep.end()
    assert ended.status == 0, ended.output + ended.errors
    assert ended.errors == ""
    first = read_trials(disk.seen / "outputs/full")[0]
    assert any("no space left" in warning.lower() for warning in first.warnings)
    assert trial_metrics(disk.seen / "outputs/full") == trial_metrics(whole / "whole")
    assert damaged_entries(disk.seen / "outputs") == []


def test_full_while_the_sweep_is_prepared(large, environment, whole, disk, tmp_path):
    """In one phase after the other; the same command goes on each time."""
    given, made = (
        arguments(large, tmp_path, "full", disk.folder / "outputs"),
        disk.seen / "outputs/full/sweep.json",
    )
    for words in (
        "tokenizing ...",
        "teacher epoch 1/",
        "storing the teacher's targets ...",
        "measuring students' latency ...",
        "measuring students' latency: done",
    ):
        with run_sweep_process(environment, tmp_path, given, within=disk.within) as sweep:
            sweep.wait_for(words, "sweep: full")  # the phase may have been over before the disk was full
            disk.fill()
            ended = sweep.end()
        assert_told(ended, "full" if made.exists() else None)
        disk.free()
        if made.exists():  # it was prepared by then
            given = ["--resume", "full", "--output", disk.folder / "outputs"]
            break
    assert_finishes(environment, disk, tmp_path, given, "full", whole)
