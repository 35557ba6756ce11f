"""Content-addressed folders: written aside, checksummed, renamed; safe when two processes build one at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

MANIFEST = "manifest.json"


def digest(*parts: Any) -> str:
    """A key of 32 hex digits for JSON-able parts: equal parts, equal key, in any process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A new folder to fill; renamed to `target` when the block ends well, removed when it does not.

    No half-written folder is ever seen under its name. A manifest with every file's sha256 is added. `target`
    must not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(folder)): file_digest(path) for path in files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*files, folder / MANIFEST]:
            _flush(path)
        folder.chmod(0o755)
        os.rename(folder, target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_intact(folder: Path) -> bool:
    """Whether the folder has its manifest and every file in it still has its checksum."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return isinstance(manifest, dict) and all(
            file_digest(folder / name) == checksum for name, checksum in manifest.items()
        )
    except (OSError, ValueError):
        return False


def discard(target: Path) -> None:
    """Remove the folder and what killed processes left of it aside. Hold its lock."""
    for left in (target, *target.parent.glob(f".{target.name}.????????")):
        shutil.rmtree(left, ignore_errors=True)


def ensure(target: Path, write: Callable[[Path], None]) -> bool:
    """Make sure that `target` exists and is intact, building it with `write(folder)` where it is not.

    Of several processes that ask at once one builds and the others wait; a damaged folder is rebuilt.

    Returns:
        Whether this call built it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if is_intact(target):
            return False
        discard(target)
        with aside(target) as folder:
            write(folder)
        return True
