from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from pathlib import Path

import pytest

from ikd_ray.data.store import MANIFEST, aside, digest, ensure, file_digest, is_intact


def write_two(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.bin").write_bytes(b"abc" * 1000)
    (folder / "sub" / "b.txt").write_text("hello")


def leftovers(folder: Path) -> set[str]:
    """What is there but lock files."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_digest_is_of_the_parts():
    assert digest(1, "a", {"x": 1, "y": None}) == digest(1, "a", {"y": None, "x": 1})
    different = [
        digest(1, "a"),
        digest("1", "a"),
        digest("a", 1),
        digest(1, "a", None),
        digest([1, "a"]),
        digest(),
    ]
    assert len(set(different)) == len(different)
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in different)


def test_digest_is_the_same_everywhere():
    """A key that one process or release wrote is looked up by another."""
    assert digest(1, "a") == hashlib.sha256(b'[1,"a"]').hexdigest()[:32]


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "f") == expected


def test_aside_shows_its_folder_only_when_done(tmp_path):
    target = tmp_path / "deep" / "target"
    with aside(target) as folder:
        write_two(folder)
        assert folder.parent == target.parent, "else the rename could cross file systems"
        assert not target.exists()
    assert is_intact(target)
    assert leftovers(target.parent) == {"target"}
    assert set(json.loads((target / MANIFEST).read_text())) == {"a.bin", "sub/b.txt"}
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_aside_leaves_nothing_where_the_block_fails(tmp_path, error):
    def fill() -> None:
        with aside(tmp_path / "target") as folder:
            write_two(folder)
            raise error

    with pytest.raises(error):
        fill()
    assert leftovers(tmp_path) == set()


def test_aside_does_not_replace_what_is_there(tmp_path):
    with aside(tmp_path / "target") as folder:
        write_two(folder)
    with pytest.raises(OSError, match="target"), aside(tmp_path / "target") as folder:
        (folder / "other").write_text("x")
    assert is_intact(tmp_path / "target")
    assert leftovers(tmp_path) == {"target"}
    assert not (tmp_path / "target" / "other").exists()


def test_ensure_builds_once(tmp_path):
    target, calls = tmp_path / "t", []

    def write(folder: Path) -> None:
        calls.append(folder)
        write_two(folder)

    assert ensure(target, write) is True
    assert ensure(target, write) is False
    assert len(calls) == 1


def flip(target: Path) -> None:
    content = bytearray((target / "a.bin").read_bytes())
    content[7] ^= 1
    (target / "a.bin").write_bytes(content)


def empty(target: Path) -> None:
    for path in (target / "a.bin", target / "sub" / "b.txt", target / MANIFEST):
        path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        empty,
        lambda target: (target / "sub" / "b.txt").unlink(),
        lambda target: (target / "a.bin").write_bytes(b""),
        lambda target: (target / MANIFEST).unlink(),
        lambda target: (target / MANIFEST).write_text(""),
        lambda target: (target / MANIFEST).write_text('{"a.bin": '),
        lambda target: (target / MANIFEST).write_text("[]"),
        lambda target: (target / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    ],
)
def test_ensure_rebuilds_what_is_damaged(tmp_path, damage):
    target = tmp_path / "t"
    ensure(target, write_two)
    damage(target)
    assert not is_intact(target)
    assert ensure(target, write_two) is True
    assert is_intact(target)
    assert (target / "a.bin").read_bytes() == b"abc" * 1000
    assert leftovers(tmp_path) == {"t"}


def test_a_failing_write_leaves_nothing(tmp_path):
    def write(folder: Path) -> None:
        write_two(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ensure(tmp_path / "t", write)
    assert leftovers(tmp_path) == set()
    assert ensure(tmp_path / "t", write_two) is True


def test_no_folder_is_not_intact(tmp_path):
    assert not is_intact(tmp_path / "nothing")


def _slow_write(folder: Path) -> None:
    write_two(folder)
    time.sleep(0.3)


def _ensure_in_process(target: Path, barrier, built) -> None:
    barrier.wait(60)
    if ensure(target, _slow_write):
        with built.get_lock():
            built.value += 1


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, built = context.Barrier(2), context.Value("i", 0)
    arguments = (tmp_path / "t", barrier, built)
    processes = [context.Process(target=_ensure_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert built.value == 1
    assert is_intact(tmp_path / "t")
    assert leftovers(tmp_path) == {"t"}
