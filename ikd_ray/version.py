"""Version of the code that produced a result."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

TIMEOUT_S = 2
PACKAGE = Path(__file__).resolve().parent


def code_version() -> str:
    """Return the package's version, in a git checkout with its commit: `0.1.0+g1a2b3c4`.

    `.dirty` is appended if files of the package differ from the commit.
    """
    try:
        version = metadata.version("ikd-ray")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        version = "unknown"
    try:
        root, commit = _git("rev-parse", "--show-toplevel", "--short", "HEAD").splitlines()
        if Path(root) != PACKAGE.parent:  # installed inside another project's repository
            return version
        changed = _git("status", "--porcelain", "--", PACKAGE.name)
    except (OSError, subprocess.SubprocessError, ValueError):
        return version
    return f"{version}+g{commit}{'.dirty' if changed else ''}"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=PACKAGE.parent,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=True,
    )
    return done.stdout.strip()
