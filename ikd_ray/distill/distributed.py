"""The processes that train one student together; alone by default."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among `size` that split every batch. With size > 1 a process group must be up."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 matrix products on a GPU; float32 as it is elsewhere."""
        return (
            torch.autocast(self.device.type, torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        )

    def wrap(self, module: nn.Module, some_unused: bool) -> nn.Module:
        """The module with gradients averaged over the processes.

        Wrap anew whenever other parameters train.

        Args:
            some_unused: parameters that train may get no gradient, which takes a search at every step.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=some_unused)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, in every process. It is pickled among the processes of a trial."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, device=self.device)
        return shared[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, in every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce_sum(torch.tensor(float(flag), device=self.device)))

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, elementwise."""
        if self.size > 1:
            dist.all_reduce(values)
        return values
