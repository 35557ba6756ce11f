from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage, SharedStorage, _filesystem, open_storage
from tests.helpers.processes import run_processes


@pytest.fixture(params=["file", "s3"])
def uri(request, tmp_path):
    """Return the URI of a folder, then of an S3 server."""
    return f"file://{tmp_path}/remote/deep" if request.param == "file" else request.getfixturevalue("s3")


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Return a function that makes this process a node of another name, with a home directory of its own."""

    def become(name: str) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path / name))
        return tmp_path / name

    become("first")
    return become


def publish(path: Path, text: str = "abc") -> None:
    with store.staging_dir(path) as folder:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "sub" / "b.bin").write_bytes(os.urandom(1 << 18))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != store.VERIFIED
    }


@pytest.fixture
def storage(uri, node) -> SharedStorage:
    """Return the storage at the URI after this node has uploaded a folder `x`."""
    storage = RemoteStorage(uri)
    publish(storage.folder / "x")
    storage.upload(storage.folder / "x")
    return storage


def remote_file(storage: SharedStorage, name: str, content: bytes | None = None) -> bytes:
    """Return the content of a file at the URI, after writing it if `content` is given."""
    filesystem, base = _filesystem(storage.path)
    if content is not None:
        with filesystem.open_output_stream(f"{base}/{name}") as stream:
            stream.write(content)
    with filesystem.open_input_stream(f"{base}/{name}") as stream:
        return stream.read()


def test_uploaded_folder_is_downloaded_unchanged_by_another_node(uri, node):
    storage = RemoteStorage(uri)
    path = storage.folder / "cache" / "x"
    assert storage.download(path) is False
    publish(path)
    storage.upload(path)
    before = files(path)
    unpickled = pickle.loads(pickle.dumps(storage))
    home = node("second")
    other = unpickled.folder / "cache" / "x"
    assert home in other.parents
    assert unpickled.download(other) is True
    assert files(other) == before
    assert store.is_intact(other)
    assert not [path for path in other.parent.iterdir() if path.name not in ("x", ".x.lock")]


def test_folder_without_manifest_counts_as_absent(storage, node):
    filesystem, base = _filesystem(storage.path)
    filesystem.delete_file(f"{base}/x/{store.MANIFEST}")
    node("second")
    assert storage.download(storage.folder / "x") is False
    assert not (storage.folder / "x").exists()


def test_damaged_remote_folder_is_refused_and_replaced_by_an_upload(storage, node):
    remote_file(storage, "x/a.txt", b"abd")
    node("second")
    path = storage.folder / "x"
    assert storage.download(path) is False
    assert not path.exists()
    publish(path, "made again")
    storage.upload(path)
    assert (path / "a.txt").read_text() == "made again", "the new folder was replaced"
    node("third")
    assert storage.download(storage.folder / "x") is True
    assert (storage.folder / "x" / "a.txt").read_text() == "made again"


def test_damaged_local_folder_is_downloaded_again(storage):
    path = storage.folder / "x"
    (path / "a.txt").write_text("xyz")
    assert storage.download(path) is True
    assert (path / "a.txt").read_text() == "abc"


def test_second_upload_takes_over_the_first(storage, node):
    """If two nodes build the same folder, both continue with the first one."""
    node("second")
    path = storage.folder / "x"
    publish(path, "second")
    storage.upload(path)
    assert (path / "a.txt").read_text() == "abc"
    assert remote_file(storage, "x/a.txt") == b"abc"


def test_newer_file_wins(uri, node):
    storage = RemoteStorage(uri)
    path = storage.folder / "sweep" / "study.db"
    assert storage.download_file(path) is False
    path.parent.mkdir(parents=True)
    path.write_text("one")
    storage.upload_file(path)
    node("second")
    other = storage.folder / "sweep" / "study.db"
    assert storage.download_file(other) is True
    assert other.read_text() == "one"
    other.write_text("two")  # and the node dies before it uploads the file
    assert storage.download_file(other) is True
    assert other.read_text() == "two"
    os.utime(other, (0, 0))
    assert storage.download_file(other) is True
    assert other.read_text() == "one"


@pytest.mark.parametrize("name", ["../escaped", "/tmp/ikd-escaped", "sub/../../escaped", ""])
def test_manifest_cannot_write_outside_its_folder(storage, name, tmp_path, node):
    remote_file(storage, f"x/{store.MANIFEST}", json.dumps({name: "0" * 64}).encode())
    node("second")
    assert storage.download(storage.folder / "x") is False
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/ikd-escaped").exists()


def _download(_rank: int, storage: SharedStorage) -> None:
    assert storage.download(storage.folder / "x") is True


def test_concurrent_downloads_on_one_node(storage, node):
    node("second")
    run_processes(_download, storage, processes=3)
    assert store.is_intact(storage.folder / "x")


def test_shared_folder_transfers_nothing(tmp_path):
    storage = open_storage(str(tmp_path))
    publish(storage.folder / "x")
    before = files(tmp_path)
    storage.upload(storage.folder / "x")
    storage.upload_file(storage.folder / "x" / "a.txt")
    assert storage.download(storage.folder / "x") is False
    assert storage.download_file(storage.folder / "x" / "a.txt") is False
    assert storage.list_names(storage.folder) == []
    assert files(tmp_path) == before
    assert storage.uri is None


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA123:hush@bucket/x",
        "s3://hush@bucket/x",
        "s3://bucket/x?access_key=hush",
        "s3://bucket/x?region=a&secret_key=hush",
        "abfs://account:hush@host/x",
        "hdfs://user:hush@host/x",
        "s3://bucket/x?AWS_SESSION_TOKEN=hush",
    ],
)
def test_secrets_in_a_uri_are_refused_and_not_shown(uri):
    with pytest.raises(UsageError, match="must not contain keys") as raised:
        open_storage(uri)
    assert "hush" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "uri",
    [
        "foo://bucket/x",
        "s3:///x",
        "s3://bucket/x?nonsense=1",
        "s3://[bucket/x",
        "file://relative/x",
        "file:///x",
    ],
)
def test_unusable_uri_is_a_one_line_error(uri):
    with pytest.raises(UsageError, match=r"^--output [^\n]*$"):
        open_storage(uri)


def test_absent_bucket_is_refused(s3_server):
    with pytest.raises(UsageError, match=r"^--output s3://no-such-bucket/x: cannot be used"):
        open_storage(f"s3://no-such-bucket/x?scheme=http&endpoint_override={s3_server}&region=us-east-1")


def test_unreachable_storage_raises_oserror(s3_server, node):
    storage = RemoteStorage("s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1&region=us-east-1")
    publish(storage.folder / "x")
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        storage.upload(storage.folder / "x")


def test_trailing_slash_does_not_change_the_folder(s3):
    assert open_storage(s3.replace("?", "/?")).folder == open_storage(s3).folder


def test_list_names_delete_and_delete_remote(storage, node):
    for name in ("a/x", "a/y"):
        publish(storage.folder / name)
        storage.upload(storage.folder / name)
    assert storage.list_names(storage.folder) == ["a", "x"]
    assert storage.list_names(storage.folder / "a") == ["x", "y"]
    storage.delete(storage.folder / "a" / "x")
    assert not (storage.folder / "a" / "x").exists()
    assert storage.download(storage.folder / "a" / "x") is False
    storage.delete_remote(storage.folder / "a")
    storage.delete_remote(storage.folder / "a")
    assert storage.list_names(storage.folder / "a") == []
    assert (storage.folder / "a" / "y").exists()
    node("second")
    assert storage.download(storage.folder / "x") is True


def test_download_of_selected_files(storage, node):
    node("second")
    path = storage.folder / "x"
    assert storage.download(path, only=("no such file",)) is False
    assert storage.download(path, only=("a.txt",)) is True
    assert files(path).keys() == {"a.txt", store.MANIFEST}
    assert store.is_intact(path)
    assert storage.download(path) is True
    assert (path / "sub" / "b.bin").exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/../../../../../x"])
def test_paths_outside_the_folder_are_refused(name, tmp_path, node):
    storage = RemoteStorage(f"file://{tmp_path}/remote")
    with pytest.raises(ValueError, match="leaves its folder"):
        storage.download(storage.folder / name)
