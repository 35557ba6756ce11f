from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage, SharedStorage, _filesystem, open_storage


@pytest.fixture(params=["file", "s3"])
def uri(request, tmp_path):
    """One of a folder, one of a server."""
    return f"file://{tmp_path}/remote/deep" if request.param == "file" else request.getfixturevalue("s3")


@pytest.fixture
def node(tmp_path, monkeypatch):
    """`node("a")`: from now on this is another machine, with a home of its own."""

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


def at_uri(output: SharedStorage, name: str, content: bytes | None = None) -> bytes:
    """A file as it lies there; or put there."""
    there, base = _filesystem(output.path)
    if content is not None:
        with there.open_output_stream(f"{base}/{name}") as stream:
            stream.write(content)
    with there.open_input_stream(f"{base}/{name}") as stream:
        return stream.read()


def test_another_node_gets_a_folder_as_it_is(uri, node):
    output = open_storage(uri)
    path = output.folder / "cache" / "x"
    assert output.download(path) is False
    publish(path)
    output.upload(path)
    before = files(path)
    there = pickle.loads(pickle.dumps(output))
    home = node("second")
    other = there.folder / "cache" / "x"
    assert home in other.parents
    assert there.download(other) is True
    assert files(other) == before
    assert store.is_intact(other)
    assert not [left for left in other.parent.iterdir() if left.name not in ("x", ".x.lock")]


def test_a_folder_without_its_manifest_is_not_there(uri, node):
    output = open_storage(uri)
    path = output.folder / "x"
    publish(path)
    output.upload(path)
    there, base = _filesystem(output.path)
    there.delete_file(f"{base}/x/{store.MANIFEST}")
    node("second")
    assert output.download(output.folder / "x") is False
    assert not (output.folder / "x").exists()


def test_damage_there_is_noticed_and_goes_with_the_next_push(uri, node):
    output = open_storage(uri)
    publish(output.folder / "x")
    output.upload(output.folder / "x")
    at_uri(output, "x/a.txt", b"abd")
    node("second")
    path = output.folder / "x"
    assert output.download(path) is False
    assert not path.exists()
    publish(path, "made again")
    output.upload(path)
    assert (path / "a.txt").read_text() == "made again", "what was just made stays"
    node("third")
    assert output.download(output.folder / "x") is True
    assert (output.folder / "x" / "a.txt").read_text() == "made again"


def test_damage_here_is_mended_from_there(uri, node):
    output = open_storage(uri)
    path = output.folder / "x"
    publish(path)
    output.upload(path)
    (path / "a.txt").write_text("xyz")
    assert output.download(path) is True
    assert (path / "a.txt").read_text() == "abc"


def test_who_comes_second_takes_what_the_first_one_left(uri, node):
    """Two nodes build the same: of numbers that follow from it there is one kind only."""
    output = open_storage(uri)
    publish(output.folder / "x", "first")
    output.upload(output.folder / "x")
    node("second")
    path = output.folder / "x"
    publish(path, "second")
    output.upload(path)
    assert (path / "a.txt").read_text() == "first"
    assert at_uri(output, "x/a.txt") == b"first"


def test_of_a_file_the_newer_one_counts(uri, node):
    output = open_storage(uri)
    path = output.folder / "sweep" / "study.db"
    assert output.download_file(path) is False
    path.parent.mkdir(parents=True)
    path.write_text("one")
    output.upload_file(path)
    node("second")
    other = output.folder / "sweep" / "study.db"
    assert output.download_file(other) is True
    assert other.read_text() == "one"
    other.write_text("two")  # and this machine dies before it can send it
    assert output.download_file(other) is True
    assert other.read_text() == "two"
    os.utime(other, (0, 0))
    assert output.download_file(other) is True
    assert other.read_text() == "one"


def test_names(uri, node):
    output = open_storage(uri)
    assert output.list_names(output.folder / "trials") == []
    publish(output.folder / "trials" / "t1")
    output.upload(output.folder / "trials" / "t1")
    assert output.list_names(output.folder) == ["trials"]
    assert output.list_names(output.folder / "trials") == ["t1"]


@pytest.mark.parametrize("name", ["../escaped", "/tmp/ikd-escaped", "sub/../../escaped", ""])
def test_a_manifest_cannot_write_elsewhere(name, tmp_path, node):
    output = open_storage(f"file://{tmp_path}/remote")
    publish(output.folder / "x")
    output.upload(output.folder / "x")
    at_uri(output, f"x/{store.MANIFEST}", json.dumps({name: "0" * 64}).encode())
    node("second")
    assert output.download(output.folder / "x") is False
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/ikd-escaped").exists()


def _fetch(output: SharedStorage, name: str, results) -> None:
    results.put(output.download(output.folder / name))


def test_processes_of_a_node_may_ask_at_once(uri, node):
    output = open_storage(uri)
    publish(output.folder / "x")
    output.upload(output.folder / "x")
    node("second")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    asking = [context.Process(target=_fetch, args=(output, "x", results)) for _ in range(3)]
    for process in asking:
        process.start()
    assert [results.get(timeout=60) for _ in asking] == [True] * 3
    for process in asking:
        process.join()
    assert store.is_intact(output.folder / "x")


def test_a_plain_folder_needs_nothing(tmp_path):
    output = open_storage(str(tmp_path))
    publish(output.folder / "x")
    before = files(tmp_path)
    output.upload(output.folder / "x")
    output.upload_file(output.folder / "x" / "a.txt")
    assert output.download(output.folder / "x") is False
    assert output.download_file(output.folder / "x" / "a.txt") is False
    assert output.list_names(output.folder) == []
    assert files(tmp_path) == before
    assert output.uri is None


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
def test_keys_in_a_uri_are_refused_and_not_shown(uri):
    with pytest.raises(UsageError, match="no keys in it") as raised:
        open_storage(uri)
    assert "hush" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "uri", ["foo://bucket/x", "s3:///x", "s3://bucket/x?nonsense=1", "s3://[bucket/x", "file://relative/x"]
)
def test_what_cannot_be_used_is_said_in_a_line(uri):
    with pytest.raises(UsageError, match=r"^--output [^\n]*$"):
        open_storage(uri)


def test_a_bucket_that_is_not_there(s3_server):
    with pytest.raises(UsageError, match=r"^--output s3://no-such-bucket/x: cannot be used"):
        open_storage(f"s3://no-such-bucket/x?scheme=http&endpoint_override={s3_server}&region=us-east-1")


def test_who_is_away_raises_an_error_of_the_disk(s3_server, node):
    """As which trials and sweeps take it."""
    output = RemoteStorage("s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1&region=us-east-1")
    publish(output.folder / "x")
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        output.upload(output.folder / "x")


def test_a_slash_at_the_end_makes_no_other_home(tmp_path):
    uri = f"file://{tmp_path}"
    assert open_storage(uri + "/").folder == open_storage(uri).folder


def test_clear_and_forget(uri, node):
    output = open_storage(uri)
    for name in ("a/x", "a/y", "b/z"):
        publish(output.folder / name)
        output.upload(output.folder / name)
    output.delete(output.folder / "a" / "x")
    assert not (output.folder / "a" / "x").exists()
    assert output.download(output.folder / "a" / "x") is False
    output.delete_remote(output.folder / "a")
    output.delete_remote(output.folder / "a")
    assert output.list_names(output.folder / "a") == []
    assert (output.folder / "a" / "y").exists()
    node("second")
    assert output.download(output.folder / "b" / "z") is True


def test_a_part_of_a_folder(uri, node):
    output = open_storage(uri)
    publish(output.folder / "x")
    output.upload(output.folder / "x")
    node("second")
    path = output.folder / "x"
    assert output.download(path, only=("no such file",)) is False
    assert output.download(path, only=("a.txt",)) is True
    assert files(path).keys() == {"a.txt", store.MANIFEST}
    assert store.is_intact(path)
    assert output.download(path) is True
    assert (path / "sub" / "b.bin").exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/../../../../../x"])
def test_nothing_is_fetched_to_elsewhere(name, tmp_path, node):
    output = open_storage(f"file://{tmp_path}/remote")
    with pytest.raises(ValueError, match="leaves its folder"):
        output.download(output.folder / name)
