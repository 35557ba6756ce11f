"""The forms in which a student's weights are exported, and what each is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ikd_ray.formatting import null_nonfinite

WEIGHTS, ONNX, INT8 = "model.safetensors", "model.onnx", "model.int8.onnx"
MOST_ONNX_MB = 2_147  # one file of protocol buffers holds 2 GiB


class ExportError(Exception):
    """Why a student is not exported, in one line."""


@dataclass(frozen=True)
class ExportedFile:
    """One file of weights."""

    file: str
    kind: str  # runtime and numbers: "onnxruntime, int8"
    metrics: dict[str, float]  # on the evaluation splits
    size_mb: float  # 10^6 bytes
    latency_ms: float


@dataclass(frozen=True)
class ExportedFiles:
    """A student's files of weights, PyTorch's first, and how they were made and measured."""

    forms: tuple[ExportedFile, ...]
    inputs: tuple[str, ...]  # of the ONNX models, each (batch, sequence), int64
    opset: int
    compared: int  # dev sequences that PyTorch and model.onnx both got
    largest_difference: float  # of their logits
    batch: int  # sequences at once where the metrics of ONNX models were measured
    tokens: int  # of the sequence that latency was measured with
    versions: dict[str, str]
    processor: str

    def how(self) -> list[str]:
        """How the numbers came about, a sentence each."""
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        quantised = (
            f"{INT8}: weights of matrix products in int8, with a scale for each output and 7 bits in use, so that "
            "no processor's sums overflow; embeddings in uint8; activations in uint8, a whole batch at one scale, so "
            "that results depend a little on what is in it."
        )
        return [
            f"{WEIGHTS}: the metrics are what the sweep recorded.",
            f"ONNX files: metrics of the same examples, measured with onnxruntime in batches of {self.batch} of "
            f"similar length. Opset {self.opset}.",
            f"{ONNX} gave the labels of PyTorch for {self.compared} dev sequences in batches of several lengths and "
            f"sizes; logits differed by about {self.largest_difference:.1g} at most.",
            *([quantised] if any(form.file == INT8 for form in self.forms) else []),
            f"Latency: median of one sequence of {self.tokens} tokens with one CPU thread, all files in turn on "
            f"{self.processor}, with {made}.",
        ]

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self) | {
            "forms": [asdict(form) | {"metrics": null_nonfinite(form.metrics)} for form in self.forms],
            "how": self.how(),
        }
