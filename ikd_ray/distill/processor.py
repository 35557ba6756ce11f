"""Kind of the processor, and the kernels that are used on it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

CPU = torch.device("cpu")


@cache
def cpu_model() -> str:
    """Return the CPU's vendor and model name as the operating system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    pairs = (line.partition(":") for line in lines if ":" in line)
    about = {key.strip(): value.strip() for key, _, value in pairs}
    return " ".join(about.get(key, "") for key in ("vendor_id", "model name")).strip() or platform.processor()


@cache
def supports_bfloat16(device: torch.device = CPU) -> bool:
    """Return whether a device has instructions for products of bfloat16, on CPUs AVX-512 BF16, AMX, or ARM's BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Decided by vendor instead of by a measurement: one machine must always compute the same numbers.
ONEDNN = HAS_ONEDNN and "AuthenticAMD" in cpu_model()
