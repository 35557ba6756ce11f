"""Communication between the processes that train one student together."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ikd_ray.config import Precision
from ikd_ray.distill.processor import supports_bfloat16


@dataclass(frozen=True)
class DistributedContext:
    """One of `size` processes that split every batch; by default there is one.

    With more than one, `torch.distributed` must have a process group.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"

    @property
    def training_precision(self) -> Literal["float32", "bfloat16"]:
        """Precision of the matrix products of training; `auto` is bfloat16 where the device has it."""
        if self.precision == "auto":
            return "bfloat16" if supports_bfloat16(self.device) else "float32"
        return self.precision

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass of training.

        Weights, their gradients and the optimizer stay in float32, and so do norms, softmax and losses.
        """
        if self.training_precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def wrap(self, module: nn.Module, some_unused: bool) -> nn.Module:
        """Return the module wrapped so that gradients are averaged over the processes, until other parameters train.

        `some_unused` allows parameters that train to get no gradient; to find them costs time at every step.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=some_unused)

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Return the context of one of a step's passes through a wrapped module; the last one averages gradients."""
        if last or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        return module.no_sync()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value in every process. The value must be picklable."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, device=self.device)
        return shared[0]

    def gather(self, value: Any) -> list[Any]:
        """Return all processes' values, by rank, in every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce_sum(torch.tensor(float(flag), device=self.device)))

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, elementwise and in place, and return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values
