"""Building targets, and the content of their files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ikd_ray.distill.targets import build_targets

LAYERS = (1, 2, 3, 4)
HALF = {"rtol": 2e-3, "atol": 2e-4}  # float16 keeps 11 bits


def build_all(folder, data, teacher, layers=LAYERS, attention=True) -> list[tuple[int, int]]:
    return list(build_targets(folder, data, teacher, layers, attention))


def part_inodes(folder: Path) -> dict[str, int]:
    """Return the inode of each part, which changes when its folder is written again."""
    return {path.name: os.stat(path).st_ino for path in folder.iterdir() if path.is_dir()}


def array_contents(folder: Path) -> dict[str, np.ndarray]:
    return {str(p.relative_to(folder)): np.load(p) for p in sorted(folder.rglob("*.npy"))}


def content_bytes(folder: Path) -> dict[str, bytes]:
    files = sorted([*folder.rglob("*.npy"), *folder.rglob("manifest.json")])
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def assert_arrays_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert equality to float16 precision: which layers record attention decides the kernel and the last bit."""
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_allclose(array, expected[name], **HALF)
