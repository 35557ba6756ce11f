"""Where sweeps and what they share lie: a folder that every node sees, or a URI and a folder on each node for it.

For a URI (s3://, gs://, hdfs://: what `pyarrow.fs` opens) all work is done in a folder on the node's own disk, its
home for that URI. What is complete there goes to the URI, and what the home lacks comes from there:

URI/NAME/...            the files of the published folder HOME/NAME (see `ikd_ray.storage.store`)
URI/NAME/manifest.json  comes last: a folder without it is not there
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from filelock import FileLock

from ikd_ray.errors import UsageError, first_line
from ikd_ray.storage import store

BLOCK = 1 << 24  # bytes of a request
TRANSFERS = 4  # files at once
OBJECT_STORES = ("s3", "gcs", "abfs")  # they have no folders that must be there first
SECRET = re.compile("key|secret|token|password|credential|signature", re.IGNORECASE)


class _DamagedError(Exception):
    """What was fetched is not what its manifest says."""


@dataclass(frozen=True)
class SharedStorage:
    """A folder that every node sees under the same path: nothing needs to be sent or fetched."""

    path: str

    @property
    def folder(self) -> Path:
        """The folder, on whichever node asks."""
        return Path(self.path)

    @property
    def uri(self) -> str | None:
        """What the folder stands for; none: for itself."""
        return None

    def download(self, path: Path, only: Collection[str] = ()) -> bool:
        """Make the published folder at a path below `folder` what the URI has of it; false: that has none.

        One that is here already stays as it is if it is the same. Safe when several processes ask at once.

        Args:
            only: the files that are needed of it; all of them, if none is named.

        Raises:
            OSError: the URI cannot be reached, or the disk does not take it.
        """
        return False

    def delete(self, path: Path) -> None:
        """Remove a published folder, from the URI too.

        Raises:
            OSError: the URI cannot be reached.
        """
        shutil.rmtree(path)

    def delete_remote(self, path: Path) -> None:
        """Remove all that the URI has below a path; the folder stays as it is.

        Raises:
            OSError: the URI cannot be reached.
        """

    def upload(self, path: Path) -> None:
        """Leave a published folder at the URI for others; where one is there by now, that replaces this one.

        So all nodes go on with the same one, whoever made it first.

        Raises:
            OSError: the URI cannot be reached.
        """

    def download_file(self, path: Path) -> bool:
        """Make a single file what the URI has of it, unless this one is newer; false: that has none.

        Raises:
            OSError: the URI cannot be reached, or the disk does not take it.
        """
        return False

    def upload_file(self, path: Path, content: Path | None = None) -> None:
        """Replace a single file at the URI.

        Args:
            content: where it lies, if not there.

        Raises:
            OSError: the URI cannot be reached.
        """

    def list_names(self, path: Path) -> list[str]:
        """What the URI has directly below a path: nothing, where the folder is all there is.

        Raises:
            OSError: the URI cannot be reached.
        """
        return []

    @contextmanager
    def usage_errors(self) -> Iterator[None]:
        """Within it the user is told in a line what is wrong with the URI, by a `UsageError`."""
        yield


@dataclass(frozen=True)
class RemoteStorage(SharedStorage):
    """A URI; each node has a folder of its own for it. Credentials are those of the node, never the URI's."""

    @property
    def folder(self) -> Path:
        return Path.home() / ".cache" / "ikd-ray" / store.digest(self.path)

    @property
    def uri(self) -> str:
        return self.path

    def download(self, path: Path, only: Collection[str] = ()) -> bool:
        name = self._name(path)
        manifest = self._manifest(name)
        if manifest is None or not manifest.keys() >= set(only):
            return False
        manifest = {file: manifest[file] for file in only or manifest}
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.name}.lock"):
            if not store.is_intact(path):
                store.discard(path)
            elif json.loads((path / store.MANIFEST).read_text()) == manifest:
                return True
            try:
                with store.staging_dir(path) as folder:
                    self._each(
                        manifest, lambda file: self._get(f"{name}/{file}", folder / file, manifest[file])
                    )
                    shutil.rmtree(path, ignore_errors=True)
            except (_DamagedError, FileNotFoundError):
                return False
        return True

    def delete(self, path: Path) -> None:
        files, base = _opened(self.path)
        with suppress(FileNotFoundError):
            files.delete_file(f"{base}/{self._name(path)}/{store.MANIFEST}")
        shutil.rmtree(path, ignore_errors=True)

    def delete_remote(self, path: Path) -> None:
        files, base = _opened(self.path)
        with suppress(FileNotFoundError):
            files.delete_dir(f"{base}/{self._name(path)}")

    def upload(self, path: Path) -> None:
        if self.download(path):
            return
        name, manifest = self._name(path), json.loads((path / store.MANIFEST).read_text())
        self._each(manifest, lambda file: self._put(path / file, f"{name}/{file}"))
        self._put(path / store.MANIFEST, f"{name}/{store.MANIFEST}")

    def download_file(self, path: Path) -> bool:
        files, base = _opened(self.path)
        name = self._name(path)
        changed = files.get_file_info(f"{base}/{name}").mtime_ns
        if changed is None:
            return False
        if path.exists() and path.stat().st_mtime_ns >= changed:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as room:
            got = Path(room) / path.name
            self._get(name, got)
            os.utime(got, ns=(changed, changed))
            os.replace(got, path)
        return True

    def upload_file(self, path: Path, content: Path | None = None) -> None:
        self._put(content or path, self._name(path))

    def list_names(self, path: Path) -> list[str]:
        from pyarrow.fs import FileSelector

        files, base = _opened(self.path)
        below = base if path == self.folder else f"{base}/{self._name(path)}"
        selector = FileSelector(below, allow_not_found=True)
        return sorted({info.base_name for info in files.get_file_info(selector)} - {"", ".", ".."})

    @contextmanager
    def usage_errors(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except (OSError, ArrowException) as error:
            if store.is_disk_full(error):
                raise
            raise UsageError(
                f"--output {self.path.partition('?')[0]}: cannot be used ({first_line(error)}); give a folder, or "
                "a URI that pyarrow opens, with credentials where its store's own tools look for them"
            ) from None

    def _name(self, path: Path) -> str:
        name = path.relative_to(self.folder).as_posix()
        if not _stays_within(name):  # it may be made of what a record from there says
            raise ValueError(f"{name}: leaves its folder")
        return name

    def _manifest(self, name: str) -> dict[str, str] | None:
        """The checksums of a folder's files; none where it is not there or no folder of ours."""
        files, base = _opened(self.path)
        try:
            with files.open_input_stream(f"{base}/{name}/{store.MANIFEST}") as stream:
                manifest = json.loads(stream.read())
        except (FileNotFoundError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and all(map(_stays_within, manifest)) else None

    @staticmethod
    def _each(names: dict[str, str], transfer: Any) -> None:
        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(transfer, names))

    def _get(self, name: str, target: Path, checksum: str | None = None) -> None:
        files, base = _opened(self.path)
        seen = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.open_input_stream(f"{base}/{name}") as stream, open(target, "wb") as file:
            while block := stream.read(BLOCK):
                seen.update(block)
                file.write(block)
        if checksum not in (None, seen.hexdigest()):
            raise _DamagedError(name)

    def _put(self, source: Path, name: str) -> None:
        files, base = _opened(self.path)
        target = f"{base}/{name}"
        if files.type_name not in OBJECT_STORES:
            files.create_dir(target.rpartition("/")[0], recursive=True)
        with open(source, "rb") as file, files.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, BLOCK)


def _stays_within(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


@lru_cache
def _opened(uri: str) -> tuple[Any, str]:
    """The URI's file system, once a process, and the path in it."""
    from pyarrow.fs import FileSystem  # imported late: only who uses a URI waits for it

    files, base = FileSystem.from_uri(uri)
    return files, base.rstrip("/")


def open_storage(where: str) -> SharedStorage:
    """What `--output` names: a folder, or a URI that can be reached.

    Raises:
        UsageError: it is a URI with credentials in it, of a kind that is not known, or nobody answers there.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", where):
        return SharedStorage(where)
    _refuse_secrets(where)
    path, mark, query = where.partition("?")
    output = RemoteStorage(path.rstrip("/") + mark + query)
    with output.usage_errors():
        files, base = _opened(output.path)
        if files.type_name in OBJECT_STORES:  # which list an absent bucket as an empty one
            bucket = base.partition("/")[0]
            if files.get_file_info(bucket).type.name == "NotFound":
                raise FileNotFoundError(f"there is no bucket {bucket}")
        output.list_names(output.folder)
    return output


def _refuse_secrets(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if SECRET.search(name)]
        secret = (
            bool(named) or ":" in parts.netloc.rpartition("@")[0] or (parts.scheme == "s3" and parts.username)
        )
    except ValueError:
        raise UsageError(f"--output {uri.partition(':')[0]}://...: no URI that can be read") from None
    if secret:
        raise UsageError(
            f"--output {parts.scheme}://...: no keys in it, please: put them where the store's own tools look for "
            "them (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role)"
        )
