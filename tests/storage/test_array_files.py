from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ikd_ray.storage import arrays
from ikd_ray.storage.arrays import PROGRESS, ArrayFile, ResumableArrays

ENTRIES = {"a/x": (2,), "b/x": ()}
STEPS = 6


def write(folder: Path, upto: int = STEPS, key: str = "k", entries=ENTRIES) -> list[int]:
    """Go on up to a step; returns the steps made."""
    with ResumableArrays(folder, key, np.float16, entries) as files:
        made = list(range(files.steps, upto))
        for step in made:
            for name, entry in entries.items():
                files.append(name, np.full((step + 1, *entry), step))  # steps of different sizes
            files.end_step()
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


@pytest.fixture
def every_step(monkeypatch):
    """A durable point after each."""
    monkeypatch.setattr(arrays, "SAVE_SECONDS", 0.0)


@pytest.mark.parametrize("count", [0, 1, 9, 12_345])
@pytest.mark.parametrize("entry", [(), (3,)])
def test_the_file_is_numpys_own(tmp_path, count, entry):
    values = np.arange(count * int(np.prod(entry)), dtype=np.int32).reshape(count, *entry)
    with closing(ArrayFile(tmp_path / "mine.npy", np.int32, entry)) as file:
        for chunk in np.array_split(values, 3):
            file.append(chunk)
    np.save(tmp_path / "numpys.npy", values)
    assert (tmp_path / "mine.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


def test_values_are_converted(tmp_path):
    with closing(ArrayFile(tmp_path / "x.npy", np.float16)) as file:
        file.append(np.arange(8)[::2])
    assert np.load(tmp_path / "x.npy").tolist() == [0, 2, 4, 6]


def test_a_file_is_cut_to_the_entries_that_count(tmp_path):
    with closing(ArrayFile(tmp_path / "x.npy", np.int32)) as file:
        file.append(np.arange(9))
    with closing(ArrayFile(tmp_path / "x.npy", np.int32, count=4)) as file:
        file.append(np.array([-1]))
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2, 3, -1]
    with pytest.raises(ValueError, match=r"x\.npy: shorter"):
        ArrayFile(tmp_path / "x.npy", np.int32, count=6)


def test_arrays_that_were_left_go_on(tmp_path):
    write(tmp_path / "once")
    assert write(tmp_path / "parts", 2) == [0, 1]
    assert write(tmp_path / "parts", 5) == [2, 3, 4]
    assert write(tmp_path / "parts") == [5]
    assert write(tmp_path / "parts") == []
    assert contents(tmp_path / "parts") == contents(tmp_path / "once")


def write_and_fail(folder: Path) -> None:
    """Two steps, and a part of the third."""
    with ResumableArrays(folder, "k", np.float16, ENTRIES) as files:
        for step in range(2):
            for name, entry in ENTRIES.items():
                files.append(name, np.full((step + 1, *entry), step))
            files.end_step()
        files.append("a/x", np.full((3, 2), 7))
        raise ZeroDivisionError


def test_an_exception_costs_what_follows_the_last_durable_point(tmp_path, every_step):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path / "x")
    assert write(tmp_path / "x") == [2, 3, 4, 5]
    write(tmp_path / "once")
    assert contents(tmp_path / "x") == contents(tmp_path / "once")


def test_durable_points_come_with_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(arrays.time, "monotonic", lambda: clock[0])
    with ResumableArrays(tmp_path / "x", "k", np.float16, {"x": ()}) as files:
        saved = []
        for _ in range(25):
            clock[0] += 1
            files.end_step()
            saved.append(json.loads((tmp_path / "x" / PROGRESS).read_text())["steps"])
    assert saved == [0] * 9 + [10] * 10 + [20] * 6


def damage_progress(folder: Path, **changes: object) -> None:
    path = folder / PROGRESS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: damage_progress(folder, key="another"),
        lambda folder: damage_progress(folder, counts={"a/x": 6}),
        lambda folder: damage_progress(folder, counts=None),
        lambda folder: (folder / PROGRESS).write_text("{"),
        lambda folder: (folder / PROGRESS).write_text("[]"),
        lambda folder: (folder / PROGRESS).unlink(),
        lambda folder: (folder / "a" / "x.npy").unlink(),
        lambda folder: (folder / "b" / "x.npy").write_bytes((folder / "b" / "x.npy").read_bytes()[:-1]),
    ],
)
def test_what_cannot_be_gone_on_with_starts_anew(tmp_path, damage):
    write(tmp_path / "once")
    write(tmp_path / "x", 3)
    damage(tmp_path / "x")
    assert write(tmp_path / "x") == list(range(STEPS))
    assert contents(tmp_path / "x") == contents(tmp_path / "once")


def test_fewer_arrays_go_on_and_more_start_anew(tmp_path):
    write(tmp_path / "x", 3)
    assert write(tmp_path / "x", 4, entries={"b/x": ()}) == [3]
    assert contents(tmp_path / "x").keys() == {"b/x.npy"}
    assert write(tmp_path / "x") == list(range(STEPS))
