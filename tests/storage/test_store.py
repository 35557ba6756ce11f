from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from ikd_ray.storage import store
from ikd_ray.storage.store import (
    MANIFEST,
    VERIFIED,
    digest,
    file_sha256,
    get_or_build,
    is_intact,
    staging_dir,
)
from tests.helpers.damage import flip
from tests.helpers.processes import run_processes


def write_two(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.bin").write_bytes(b"abc" * 1000)
    (folder / "sub" / "b.txt").write_text("hello")


def leftovers(folder: Path) -> set[str]:
    """Return the names in a folder, lock files aside."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_digest_depends_on_all_parts():
    assert digest(1, "a", {"x": 1, "y": None}) == digest(1, "a", {"y": None, "x": 1})
    parts = [(1, "a"), ("1", "a"), ("a", 1), (1, "a", None), ([1, "a"],), ()]
    assert len({digest(*each) for each in parts}) == len(parts)


def test_digests_are_stable_across_processes_and_releases(tmp_path):
    assert digest(1, "a") == hashlib.sha256(b'[1,"a"]').hexdigest()[:32]
    (tmp_path / "f").write_bytes(b"abc" * 2**20)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 2**20).hexdigest()


def test_full_disk_is_recognized_behind_a_wrapping_error(tmp_path):
    """SQLite out of pages reports a full disk; Optuna wraps that as a failed commit."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")

    @sqlalchemy.event.listens_for(storage.engine, "checkout")
    def no_more_pages(connection, *_):
        connection.execute("PRAGMA max_page_count = 1")  # existing pages stay

    study = optuna.create_study(storage=storage)
    with pytest.raises(optuna.exceptions.StorageInternalError) as raised:
        study.set_user_attr("long", "x" * 100_000)
    assert "full" not in str(raised.value)
    assert store.is_disk_full(raised.value)
    assert not store.is_disk_full(optuna.exceptions.StorageInternalError(str(raised.value)))


def test_staging_dir_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "target"
    with staging_dir(target) as folder:
        write_two(folder)
        assert folder.parent == target.parent, "else the rename could cross file systems"
        assert not target.exists()
    assert is_intact(target)
    assert leftovers(target.parent) == {"target"}
    assert set(json.loads((target / MANIFEST).read_text())) == {"a.bin", "sub/b.txt"}
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_staging_dir_is_removed_if_the_block_fails(tmp_path, error):
    def fill() -> None:
        with staging_dir(tmp_path / "target") as folder:
            write_two(folder)
            raise error

    with pytest.raises(error):
        fill()
    assert leftovers(tmp_path) == set()


def test_staging_dir_does_not_replace_an_existing_folder(tmp_path):
    with staging_dir(tmp_path / "target") as folder:
        write_two(folder)
    with pytest.raises(OSError, match="target"), staging_dir(tmp_path / "target") as folder:
        (folder / "other").write_text("x")
    assert is_intact(tmp_path / "target")
    assert leftovers(tmp_path) == {"target"}
    assert not (tmp_path / "target" / "other").exists()


def test_folder_is_built_until_it_is_complete(tmp_path):
    target, calls = tmp_path / "t", []

    def write(folder: Path) -> None:
        calls.append(folder)
        write_two(folder)
        if len(calls) == 1:
            raise OSError("disk full")

    assert not is_intact(target)
    with pytest.raises(OSError, match="disk full"):
        get_or_build(target, write)
    assert leftovers(tmp_path) == set()
    assert get_or_build(target, write) is True
    assert get_or_build(target, write) is False
    assert len(calls) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda target: shutil.rmtree(target) or target.mkdir(),
        lambda target: flip(target / "a.bin"),
        lambda target: (target / "a.bin").write_bytes(b""),
        lambda target: (target / "sub" / "b.txt").unlink(),
        lambda target: (target / MANIFEST).unlink(),
        *(
            lambda target, content=content: (target / MANIFEST).write_bytes(content)
            for content in (b"", b'{"a.bin": ', b"[]", b"\xff\xfe\x00")
        ),
    ],
)
def test_damaged_folder_is_rebuilt(tmp_path, damage):
    target = tmp_path / "t"
    get_or_build(target, write_two)
    damage(target)
    assert not is_intact(target)
    assert get_or_build(target, write_two) is True
    assert is_intact(target)
    assert (target / "a.bin").read_bytes() == b"abc" * 1000
    assert leftovers(tmp_path) == {"t"}


@pytest.fixture
def hashed(monkeypatch):
    """Record the names of files that are read for their checksum."""
    read = []
    original = store.file_sha256
    monkeypatch.setattr(store, "file_sha256", lambda path: read.append(path.name) or original(path))
    return read


@pytest.fixture
def settled(tmp_path, monkeypatch, hashed) -> Path:
    """Make a folder that was verified once, long after its files were written."""
    monkeypatch.setattr(store, "TICK_NS", 0)
    target = tmp_path / "t"
    get_or_build(target, write_two)
    for path in target.rglob("*"):
        os.utime(path, (0, 0))
    assert is_intact(target)
    hashed.clear()
    return target


def test_verified_files_are_not_read_again(settled, hashed):
    assert is_intact(settled)
    assert hashed == []
    assert set(json.loads((settled / MANIFEST).read_text())) == {"a.bin", "sub/b.txt"}


def rewrite_in_place(path: Path) -> None:
    """Write as many other bytes into the same file."""
    with open(path, "r+b") as file:
        file.write(b"xyz")


def swap(path: Path) -> None:
    """Replace a file by another of the same size and age."""
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(b"xyz" + path.read_bytes()[3:])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


def rewrite_and_hide(path: Path) -> None:
    status = path.stat()
    rewrite_in_place(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite_in_place, swap, rewrite_and_hide])
def test_change_of_equal_size_is_detected(settled, hashed, change):
    size = (settled / "a.bin").stat().st_size
    time.sleep(0.02)  # the clock of a file system may tick 100 times a second
    change(settled / "a.bin")
    assert (settled / "a.bin").stat().st_size == size
    assert not is_intact(settled)
    assert not is_intact(settled), "it was recorded as intact"
    assert set(hashed) == {"a.bin"}


def test_touched_file_is_read_once_more(settled, hashed):
    (settled / "a.bin").touch()
    assert is_intact(settled)
    assert hashed == ["a.bin"]
    assert is_intact(settled)
    assert hashed == ["a.bin"]


def test_changed_checksum_in_the_manifest_is_detected(settled):
    manifest = json.loads((settled / MANIFEST).read_text())
    (settled / MANIFEST).write_text(json.dumps(manifest | {"a.bin": "0" * 64}))
    assert not is_intact(settled)


def test_file_written_just_now_is_read_every_time(tmp_path, hashed):
    """A change within one tick of the file system's clock might not show in the times."""
    get_or_build(tmp_path / "t", write_two)
    for _ in range(2):
        hashed.clear()
        assert is_intact(tmp_path / "t")
        assert sorted(hashed) == ["a.bin", "b.txt"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a.bin": 3}', b"\xff"])
def test_broken_record_of_verified_files_is_ignored(settled, hashed, content):
    (settled / VERIFIED).write_bytes(content)
    assert is_intact(settled)
    assert sorted(hashed) == ["a.bin", "b.txt"]
    flip(settled / "a.bin")
    assert not is_intact(settled)


def test_copied_folder_is_verified_anew(settled, hashed, tmp_path):
    shutil.copytree(settled, tmp_path / "copy")
    assert is_intact(tmp_path / "copy")
    assert sorted(hashed) == ["a.bin", "b.txt"]


def test_read_only_folder_is_verified(settled, hashed, monkeypatch):
    (settled / VERIFIED).unlink()

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(store, "write_atomic", refuse)
    assert is_intact(settled)
    flip(settled / "a.bin")
    assert not is_intact(settled)


def test_published_files_are_not_read_again(tmp_path, hashed, monkeypatch):
    """Files of a large folder are complete long before it is published."""
    monkeypatch.setattr(store, "TICK_NS", 50_000_000)
    with staging_dir(tmp_path / "t") as folder:
        write_two(folder)
        time.sleep(0.1)
    hashed.clear()
    assert is_intact(tmp_path / "t")
    assert hashed == []


def test_publishing_continues_after_a_kill(tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    write_two(tmp_path / "new")
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "rename", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.publish(tmp_path / "new", tmp_path / "t")
    store.publish(tmp_path / "new", tmp_path / "t")
    assert set(json.loads((tmp_path / "t" / MANIFEST).read_text())) == {"a.bin", "sub/b.txt"}
    assert is_intact(tmp_path / "t")
    assert leftovers(tmp_path) == {"t"}


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_write_atomic_keeps_the_old_content_until_done(tmp_path, monkeypatch):
    store.write_atomic(tmp_path / "x", "first")
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.write_atomic(tmp_path / "x", "second")
    assert (tmp_path / "x").read_text() == "first"
    store.write_atomic(tmp_path / "x", "third")
    assert (tmp_path / "x").read_text() == "third"
    assert leftovers(tmp_path) == {"x"}


def _slow_write(folder: Path) -> None:
    write_two(folder)
    time.sleep(0.3)


def _build_in_process(_rank: int, target: Path, barrier, built) -> None:
    barrier.wait(60)
    if get_or_build(target, _slow_write):
        with built.get_lock():
            built.value += 1


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, built = context.Barrier(2), context.Value("i", 0)
    run_processes(_build_in_process, tmp_path / "t", barrier, built)
    assert built.value == 1
    assert is_intact(tmp_path / "t")
    assert leftovers(tmp_path) == {"t"}
