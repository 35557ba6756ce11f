"""Content-addressed folders: written aside, checksummed, renamed; safe when two processes build one at once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from ikd_ray.errors import causes

MANIFEST = "manifest.json"
VERIFIED = ".verified"  # which files had their checksums, and the files' stamps then
TICK_NS = 2_000_000_000  # the coarsest clock of a file system
MAX_DISK_SHARE = 0.9  # of the free disk that may be taken


def digest(*parts: Any) -> str:
    """A key of 32 hex digits for JSON-able parts: equal parts, equal key, in any process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk, or somebody's share of one, had no room left: for the error itself or what it came from."""
    return any(_says_full(cause) for cause in causes(error))  # Optuna hides what SQLite said


def _says_full(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    # What comes from safetensors or SQLite has no number, but says what the system said.
    text = str(error)
    told = any(f"os error {number}" in text or os.strerror(number) in text for number in full)
    return getattr(error, "errno", None) in full or told or "disk is full" in text


@contextmanager
def staging_dir(target: Path) -> Iterator[Path]:
    """A new folder to fill; published as `target` when the block ends well, removed when it does not.

    No half-written folder is ever seen under its name. `target` must not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        publish(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(folder: Path, target: Path) -> None:
    """Add a manifest with every file's sha256 to a complete folder and rename it to `target`, durably.

    `target` must not exist; both must be on one file system.
    """
    own = (folder / MANIFEST, folder / VERIFIED)  # of a process killed in the middle of this
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    manifest: dict[str, str] = {}
    verified: dict[str, list[str | int]] = {}
    for path in files:
        name, stamp = str(path.relative_to(folder)), _settled_stamp(path)
        manifest[name] = file_sha256(path)
        if stamp:
            verified[name] = [manifest[name], *stamp]
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _remember(folder, verified)
    for path in [*files, folder / MANIFEST, folder]:
        fsync(path)
    os.rename(folder, target)
    fsync(target.parent)


def swap_dir(new: Path, target: Path) -> None:
    """Rename a complete folder to `target`; the one that was there goes. Both on one file system.

    A folder cannot be renamed onto one that has files, so the old one steps aside first, and comes back where
    the new one cannot take its place.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as room:
        old = Path(room) / "old"
        if os.path.lexists(target):
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if os.path.lexists(old):
                os.rename(old, target)
            raise
        fsync(target.parent)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file of which every reader, also after a power loss, sees all or what was there before."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(descriptor)
        os.chmod(name, 0o644)
        os.replace(name, path)
        fsync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def is_intact(folder: Path) -> bool:
    """Whether the folder has its manifest and every file in it still has its checksum.

    A file that had its checksum before is not read again while its size, its times of change and its inode are
    what they were then.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            return False
        before, now = _remembered(folder), {}
        for name, checksum in manifest.items():
            stamp = _settled_stamp(folder / name)
            known = stamp and before.get(name) == [checksum, *stamp]
            if not known and file_sha256(folder / name) != checksum:
                return False
            if stamp:
                now[name] = [checksum, *stamp]
    except (OSError, ValueError):
        return False
    if now != before:
        _remember(folder, now)
    return True


def _settled_stamp(path: Path) -> list[int] | None:
    """What changes with a file's content; none where a change right after this one might not show in it."""
    status = path.stat()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < TICK_NS:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remembered(folder: Path) -> dict[str, list[str | int]]:
    try:
        known = json.loads((folder / VERIFIED).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(folder: Path, verified: dict[str, list[str | int]]) -> None:
    # Only speed is lost where the folder cannot be written to.
    with suppress(OSError):
        write_atomic(folder / VERIFIED, json.dumps(verified))


def discard(target: Path) -> None:
    """Remove the folder and what killed processes left of it aside. Hold its lock."""
    for left in (target, *target.parent.glob(f".{target.name}.????????")):
        shutil.rmtree(left, ignore_errors=True)


def get_or_build(target: Path, write: Callable[[Path], None]) -> bool:
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
        with staging_dir(target) as folder:
            write(folder)
        return True
