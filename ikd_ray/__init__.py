"""Internal knowledge distillation of transformer encoders as a Ray sweep.

`ikd_ray.sweep(...)` searches for the students worth keeping, `ikd_ray.open_sweep(...)` opens a sweep that has ended,
`ikd_ray.distill(...)` trains one student. `ikd_ray/README.md` describes the subpackages and the order in which they
import each other.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["Student", "Sweep", "SweepError", "UsageError", "distill", "open_sweep", "sweep"]


class _CallablePackage(ModuleType):
    """A subpackage that is called as well.

    `distill` and `sweep` are names of a subpackage and of a function. Python makes a subpackage an attribute of its
    package when any module of it is imported, and would replace the function, so the subpackage itself passes the call
    on.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function of this name in `ikd_ray.api`."""
        return self._function(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        # Imported late: whoever imports this package, as workers do, needs none of its libraries.
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(_HOMES[name]), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)


_HOMES = {
    "Student": "ikd_ray.api.student",
    "Sweep": "ikd_ray.api.results",
    "SweepError": "ikd_ray.api.run",
    "UsageError": "ikd_ray.errors",
    "distill": "ikd_ray.api.distillation",
    "open_sweep": "ikd_ray.api.results",
    "sweep": "ikd_ray.api.run",
}

for _name in ("distill", "sweep"):
    import_module(f"{__name__}.{_name}").__class__ = _CallablePackage

if TYPE_CHECKING:
    from ikd_ray.api.distillation import distill
    from ikd_ray.api.results import Sweep, open_sweep
    from ikd_ray.api.run import SweepError, sweep
    from ikd_ray.api.student import Student
    from ikd_ray.errors import UsageError
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
