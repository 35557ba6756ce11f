"""The storage that a sweep's nodes share: a folder that all of them see, or a URI with a local folder on each node.

Behind a URI (s3://, gs://, hdfs://: what `pyarrow.fs` opens) all work is done in a folder on the node's own disk.
Complete folders are uploaded from there, and missing ones are downloaded:

URI/NAME/...            the files of the published folder FOLDER/NAME (see `ikd_ray.storage.store`)
URI/NAME/manifest.json  uploaded last: without it the folder counts as absent
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
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

BLOCK = 1 << 24  # bytes per request
TRANSFERS = 4  # files at once
OBJECT_STORES = ("s3", "gcs", "abfs")  # they have no folders that must be created first
SECRET = re.compile("key|secret|token|password|credential|signature", re.IGNORECASE)


@dataclass(frozen=True)
class SharedStorage:
    """A folder that every node sees under the same path: uploads and downloads do nothing.

    Methods take paths below `folder`. Each of them raises `OSError` where the URI cannot be reached.
    """

    path: str
    """The folder's path; for `RemoteStorage` the URI."""

    @property
    def folder(self) -> Path:
        """The folder on the node that asks."""
        return Path(self.path)

    @property
    def uri(self) -> str | None:
        """The URI behind the folder, if any."""
        return None

    def download(self, path: Path, only: Collection[str] = ()) -> bool:
        """Make a published folder equal to its copy at the URI; return `False` if the URI has none.

        A local folder that is the same already stays. Safe when several processes ask at once. `only` names the files
        that are needed, by default all.
        """
        return False

    def upload(self, path: Path) -> None:
        """Copy a published folder to the URI; one that is there already replaces the local one instead.

        So all nodes continue with the same folder, whoever made it first.
        """

    def download_file(self, path: Path) -> bool:
        """Replace a file by its copy at the URI unless the local one is newer; return `False` if there is no copy."""
        return False

    def upload_file(self, path: Path, content: Path | None = None) -> None:
        """Replace a file at the URI by the local one, or by the file `content`."""

    def delete(self, path: Path) -> None:
        """Remove a published folder here and at the URI."""
        shutil.rmtree(path)

    def delete_remote(self, path: Path) -> None:
        """Remove all that the URI has below a path; local files stay."""

    def list_names(self, path: Path) -> list[str]:
        """Return the names that the URI has directly below a path; none for a shared folder."""
        return []

    @contextmanager
    def usage_errors(self) -> Iterator[None]:
        """Turn errors of the URI's file system into a one-line `UsageError`."""
        yield


@dataclass(frozen=True)
class RemoteStorage(SharedStorage):
    """A URI, and a folder for it on each node. Credentials are the node's, never part of the URI."""

    @property
    def folder(self) -> Path:
        """The folder on the node that asks, named by the URI's digest."""
        return Path.home() / ".cache" / "ikd-ray" / store.digest(self.path)

    @property
    def uri(self) -> str:
        """The URI."""
        return self.path

    def download(self, path: Path, only: Collection[str] = ()) -> bool:
        """See `SharedStorage.download`."""
        name = self._name(path)
        manifest = self._read_manifest(name)
        if manifest is None or not manifest.keys() >= set(only):
            return False
        checksums = {file: manifest[file] for file in only or manifest}
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.name}.lock"):
            if not store.is_intact(path):
                store.discard(path)
            elif json.loads((path / store.MANIFEST).read_text(encoding="utf-8")) == checksums:
                return True
            try:
                with store.staging_dir(path) as folder:
                    _transfer(
                        lambda file: self._get(f"{name}/{file}", folder / file, checksums[file]), checksums
                    )
                    shutil.rmtree(path, ignore_errors=True)
            except (_ChecksumError, FileNotFoundError):
                return False
        return True

    def upload(self, path: Path) -> None:
        """See `SharedStorage.upload`."""
        if self.download(path):
            return
        name, manifest = self._name(path), json.loads((path / store.MANIFEST).read_text(encoding="utf-8"))
        _transfer(lambda file: self._put(path / file, f"{name}/{file}"), manifest)
        self._put(path / store.MANIFEST, f"{name}/{store.MANIFEST}")

    def download_file(self, path: Path) -> bool:
        """See `SharedStorage.download_file`."""
        filesystem, base = _filesystem(self.path)
        name = self._name(path)
        modified = filesystem.get_file_info(f"{base}/{name}").mtime_ns
        if modified is None:
            return False
        if path.exists() and path.stat().st_mtime_ns >= modified:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as staging:
            copy = Path(staging) / path.name
            self._get(name, copy)
            os.utime(copy, ns=(modified, modified))
            os.replace(copy, path)
        return True

    def upload_file(self, path: Path, content: Path | None = None) -> None:
        """See `SharedStorage.upload_file`."""
        self._put(content or path, self._name(path))

    def delete(self, path: Path) -> None:
        """See `SharedStorage.delete`."""
        filesystem, base = _filesystem(self.path)
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{base}/{self._name(path)}/{store.MANIFEST}")
        shutil.rmtree(path, ignore_errors=True)

    def delete_remote(self, path: Path) -> None:
        """See `SharedStorage.delete_remote`."""
        filesystem, base = _filesystem(self.path)
        with suppress(FileNotFoundError):
            filesystem.delete_dir(f"{base}/{self._name(path)}")

    def list_names(self, path: Path) -> list[str]:
        """See `SharedStorage.list_names`."""
        from pyarrow.fs import FileSelector

        filesystem, base = _filesystem(self.path)
        directory = base if path == self.folder else f"{base}/{self._name(path)}"
        infos = filesystem.get_file_info(FileSelector(directory, allow_not_found=True))
        return sorted({info.base_name for info in infos} - {"", ".", ".."})

    @contextmanager
    def usage_errors(self) -> Iterator[None]:
        """See `SharedStorage.usage_errors`; a full disk is not the URI's fault and passes through."""
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
        if not _is_inside(name):  # it may come from a downloaded record
            raise ValueError(f"{name}: leaves its folder")
        return name

    def _read_manifest(self, name: str) -> dict[str, str] | None:
        """Return the checksums of a folder's files; `None` if it is absent or not one of this project's."""
        filesystem, base = _filesystem(self.path)
        try:
            with filesystem.open_input_stream(f"{base}/{name}/{store.MANIFEST}") as stream:
                manifest = json.loads(stream.read())
        except (FileNotFoundError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and all(map(_is_inside, manifest)) else None

    def _get(self, name: str, target: Path, checksum: str | None = None) -> None:
        filesystem, base = _filesystem(self.path)
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_input_stream(f"{base}/{name}") as stream, open(target, "wb") as file:
            while block := stream.read(BLOCK):
                digest.update(block)
                file.write(block)
        if checksum not in (None, digest.hexdigest()):
            raise _ChecksumError(name)

    def _put(self, source: Path, name: str) -> None:
        filesystem, base = _filesystem(self.path)
        target = f"{base}/{name}"
        if filesystem.type_name not in OBJECT_STORES:
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        with open(source, "rb") as file, filesystem.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, BLOCK)


class _ChecksumError(Exception):
    """A downloaded file is not what its manifest says."""


def open_storage(location: str) -> SharedStorage:
    """Open what `--output` names: a folder, or a URI that can be reached.

    Raises:
        UsageError: the URI contains credentials, is of an unknown kind, or cannot be reached.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location):
        return SharedStorage(location)
    if location.startswith("file:"):
        raise UsageError(f"--output {location}: a folder is given as its path, without file://")
    _refuse_secrets(location)
    path, mark, query = location.partition("?")
    storage = RemoteStorage(path.rstrip("/") + mark + query)
    with storage.usage_errors():
        filesystem, base = _filesystem(storage.path)
        if filesystem.type_name in OBJECT_STORES:  # they list an absent bucket as an empty one
            bucket = base.partition("/")[0]
            if filesystem.get_file_info(bucket).type.name == "NotFound":
                raise FileNotFoundError(f"there is no bucket {bucket}")
        storage.list_names(storage.folder)
    return storage


@lru_cache
def _filesystem(uri: str) -> tuple[Any, str]:
    """Return the URI's `pyarrow` file system, opened once per process, and the path in it."""
    from pyarrow.fs import FileSystem  # imported late: slow, and only URIs need it

    filesystem, base = FileSystem.from_uri(uri)
    return filesystem, base.rstrip("/")


def _transfer(copy: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(copy, names))


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _refuse_secrets(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        query = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:
        raise UsageError(f"--output {uri.partition(':')[0]}://...: not a valid URI") from None
    has_password = ":" in parts.netloc.rpartition("@")[0] or (parts.scheme == "s3" and parts.username)
    if has_password or any(map(SECRET.search, query)):
        raise UsageError(
            f"--output {parts.scheme}://...: a URI must not contain keys; put them where the store's own tools look "
            "for them (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role)"
        )
