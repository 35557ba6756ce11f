"""Content-addressed folders: staged, checksummed, renamed; safe when several processes build one at once."""

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
VERIFIED = ".verified"  # files whose checksums have been verified, and their stamps at that time
TICK_NS = 2_000_000_000  # resolution of the coarsest file system clock
MAX_DISK_SHARE = 0.9  # of the free disk that may be used


def digest(*parts: Any) -> str:
    """Return a key of 32 hex digits for JSON-able parts: equal parts give an equal key in any process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, says that the disk or a quota is full."""
    return any(_says_full(cause) for cause in causes(error))  # Optuna wraps SQLite's errors


def _says_full(error: BaseException) -> bool:
    numbers = (errno.ENOSPC, errno.EDQUOT)
    text = str(error)  # errors of safetensors and SQLite have no number but contain the system's text
    described = any(f"os error {number}" in text or os.strerror(number) in text for number in numbers)
    return getattr(error, "errno", None) in numbers or described or "disk is full" in text


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which is created where it is missing.

    Raises:
        OSError: They cannot; its `filename` is the folder, or the nearest one above it that exists.
    """
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(folder)  # fails for a name that is too long for the file system
        # Permissions do not suffice: a file system may be read-only or full.
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=existing))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(existing)) from None


@contextmanager
def staging_dir(target: Path) -> Iterator[Path]:
    """Provide a new folder to fill; it is published as `target` if the block ends well, else removed.

    So no half-written folder ever has the name `target`, which must not exist yet.
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
    """Add a manifest with every file's SHA-256 to a complete folder, then rename it to `target`, durably.

    `target` must not exist and must be on the same file system.
    """
    own = (folder / MANIFEST, folder / VERIFIED)  # of a process that was killed in `publish`
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    manifest: dict[str, str] = {}
    verified: dict[str, list[str | int]] = {}
    for path in files:
        name, stamp = str(path.relative_to(folder)), _settled_stamp(path)
        manifest[name] = file_sha256(path)
        if stamp:
            verified[name] = [manifest[name], *stamp]
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _write_verified(folder, verified)
    for path in [*files, folder / MANIFEST, folder]:
        fsync(path)
    os.rename(folder, target)
    fsync(target.parent)


def get_or_build(target: Path, write: Callable[[Path], None]) -> bool:
    """Build `target` with `write(folder)` unless it exists and is intact; return whether this call built it.

    Of several processes that ask at once one builds and the others wait; a damaged folder is rebuilt.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if is_intact(target):
            return False
        discard(target)
        with staging_dir(target) as folder:
            write(folder)
        return True


def is_intact(folder: Path) -> bool:
    """Return whether a folder has its manifest and every file in it still has its checksum.

    A file that was verified before is not read again while its size, modification time, change time and inode are
    the same.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            return False
        before, now = _read_verified(folder), {}
        for name, checksum in manifest.items():
            stamp = _settled_stamp(folder / name)
            verified = stamp and before.get(name) == [checksum, *stamp]
            if not verified and file_sha256(folder / name) != checksum:
                return False
            if stamp:
                now[name] = [checksum, *stamp]
    except (OSError, ValueError):
        return False
    if now != before:
        _write_verified(folder, now)
    return True


def discard(target: Path) -> None:
    """Remove a folder, and its staging folders of killed processes. The caller holds the folder's lock."""
    for folder in (target, *target.parent.glob(f".{target.name}.????????")):
        shutil.rmtree(folder, ignore_errors=True)


def swap_dir(new: Path, target: Path) -> None:
    """Rename a complete folder to `target` and remove the one that was there; both on one file system.

    A folder cannot be renamed onto one that has files, so the old one is moved away first, and back if the new one
    cannot take its place.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as parent:
        old = Path(parent) / "old"
        if os.path.lexists(target):
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if os.path.lexists(old):
                os.rename(old, target)
            raise
        fsync(target.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that every reader, also after a power loss, sees the old or the new content entirely."""
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


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Wait until a folder, and all files and folders below it, are on the disk."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def _settled_stamp(path: Path) -> list[int] | None:
    """Return what changes with a file's content; `None` if the file is so new that a further change might not show."""
    status = path.stat()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < TICK_NS:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_verified(folder: Path) -> dict[str, list[str | int]]:
    try:
        verified = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return verified if isinstance(verified, dict) else {}


def _write_verified(folder: Path, verified: dict[str, list[str | int]]) -> None:
    with suppress(OSError):  # without the file the next check only takes longer
        write_atomic(folder / VERIFIED, json.dumps(verified))
