"""A small disk that a test fills."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

MEGABYTES = 128
BLOCK = 4096


@dataclass(frozen=True)
class Disk:
    """A small disk, mounted for a test.

    Attributes:
        folder: its path for a sweep.
        seen: its path for the test.
        within: command within which a sweep sees it.
    """

    folder: Path
    seen: Path
    within: Sequence[str]

    def fill(self) -> None:
        """Take all that is free."""
        with open(self.seen / "ballast", "wb", buffering=0) as ballast:
            for size in (1 << 20, BLOCK):
                with suppress(OSError):  # somebody else took the last of them
                    while self._free() >= size:
                        ballast.write(bytes(size))

    def _free(self) -> int:
        status = os.statvfs(self.seen)
        return status.f_bavail * status.f_frsize

    def release(self) -> None:
        (self.seen / "ballast").unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mount a file system in memory; without the right to, in a namespace where everybody has it."""
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
