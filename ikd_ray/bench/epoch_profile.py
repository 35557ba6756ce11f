"""Shares of an epoch's CPU time by kind of operation."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

from ikd_ray.bench.epochs import make_trial, trained_epochs
from ikd_ray.bench.inputs import Inputs
from ikd_ray.distill.loop import Distillation

KINDS = {
    "products of linear layers": ("mm", "addmm", "_linear_pointwise"),
    "products of attention": ("bmm",),
    "copies, casts to other types": ("copy_",),
    "random masks of dropout": ("bernoulli_", "random_", "ge_"),
    "optimizer, clipping": ("_fused_adamw_", "_foreach_norm", "linalg_vector_norm", "_foreach_mul_"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "activation functions": ("gelu", "gelu_backward"),
    "layer norms": ("native_layer_norm", "native_layer_norm_backward"),
    "elementwise sums, products": ("add", "add_", "sub", "mul", "mul_", "div", "div_", "sum"),
}
"""Names of PyTorch's operations, without their namespace, by kind."""
OTHER = "everything else"


def profile_epoch(inputs: Inputs) -> list[dict[str, Any]]:
    """Train the second epoch of an `id` trial and evaluate it under PyTorch's profiler.

    Returns:
        A row for each kind of operation: its CPU seconds in all threads, without those of operations that it calls,
        and its share of all.
    """
    found = trained_epochs(Distillation(make_trial(inputs, regime="id"), *inputs.load(), inputs.world))
    next(found)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        next(found)
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    seconds = Counter(dict.fromkeys((*KINDS, OTHER), 0.0))
    for event in profiler.key_averages():
        seconds[kinds.get(event.key.rpartition("::")[2], OTHER)] += event.self_cpu_time_total / 1e6
    total = seconds.total()
    return [
        {"operations": kind, "s": value, "share": f"{value / total:.1%}"} for kind, value in seconds.items()
    ]
