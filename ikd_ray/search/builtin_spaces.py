"""Search spaces that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from ikd_ray.errors import UsageError

DEFAULT_SPACE = "default"
_PACKAGE = Path(__file__).resolve().parents[1]


def find_space(name: str) -> Path:
    """Return the file of a search space.

    Args:
        name: a path, or the name of a built-in space; for a file of such a name give `./NAME`.

    Raises:
        UsageError: there is neither such a file nor such a built-in space.
    """
    if name in names():
        return _folder() / f"{name}.yaml"
    if not Path(name).exists() and Path(name).name == name and not Path(name).suffix:
        raise UsageError(f"--space {name}: no such file, and built in are {', '.join(names())}")
    return Path(name)


def names() -> list[str]:
    """Return the names of the built-in spaces."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def _folder() -> Path:
    """Return `search_spaces`: in an installed package inside of it, in a checkout beside it."""
    installed = _PACKAGE / "search_spaces"
    return installed if installed.is_dir() else _PACKAGE.parent / "search_spaces"
