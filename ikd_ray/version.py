"""Which code made a result."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

TIMEOUT_S = 2
PACKAGE = Path(__file__).resolve().parent


def code_version() -> str:
    """The package's version; in a git checkout with the commit, e.g. `0.1.0+g1a2b3c4`, and `.dirty` if the
    package differs from it.
    """
    try:
        version = metadata.version("ikd-ray")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        version = "unknown"
    try:
        top, commit = _git("rev-parse", "--show-toplevel", "--short", "HEAD").splitlines()
        # A package installed inside some other repository is none of that repository's commits.
        if Path(top) != PACKAGE.parent:
            return version
        changed = _git("status", "--porcelain", "--", PACKAGE.name)
    except (OSError, subprocess.SubprocessError, ValueError):
        return version
    return f"{version}+g{commit}{'.dirty' if changed else ''}"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    return done.stdout.strip()
