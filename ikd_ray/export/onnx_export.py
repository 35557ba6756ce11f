"""A student as ONNX models: made, held against PyTorch, and measured."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ikd_ray.data.batches import Batch, collate, evaluation_batches
from ikd_ray.data.tokens import TaskData, TokenSplit
from ikd_ray.distill.encoder import Encoder, uses_segment_ids
from ikd_ray.distill.evaluate import BATCH
from ikd_ray.distill.fast_layers import cpu_model
from ikd_ray.distill.student import LATENCY_ID, latencies_ms, latency_tokens
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.errors import first_line
from ikd_ray.export.exported_files import (
    INT8,
    MOST_ONNX_MB,
    ONNX,
    WEIGHTS,
    ExportedFile,
    ExportedFiles,
    ExportError,
)
from ikd_ray.records import TrialRecord

OPSET = 18  # what PyTorch's exporter writes without converting; onnxruntime reads its files since 1.18
CLOSE = 1e-4  # what logits may differ by
COMPARED = (1, 2, 7, 32)  # batch sizes
EXAMPLE = (2, 8)  # sequences and tokens that a model is traced with; no dimension of the result depends on it
KINDS = {WEIGHTS: "PyTorch, fp32", ONNX: "onnxruntime, fp32", INT8: "onnxruntime, int8"}
CPU = ["CPUExecutionProvider"]


class OnnxExport:
    """Writes ONNX models beside a student's other files."""

    def __init__(self, data: TaskData, int8: bool) -> None:
        """
        Args:
            data: the task's evaluation splits as tokens.
            int8: also a quantised model.
        """
        self._data, self._int8 = data, int8

    def __call__(self, folder: Path, trial: TrialRecord) -> ExportedFiles:
        """Write the models of the student in a folder.

        Raises:
            ExportError: a model cannot be made, or is not what PyTorch's is.
        """
        transformers_logging.disable_progress_bar()
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, attn_implementation="eager", **NO_REMOTE_CODE
        ).eval()
        inputs = _inputs(model)
        try:
            with _quiet():
                _convert(model, inputs, folder / ONNX)
                if self._int8:
                    _quantise(folder)
        except OSError:
            raise
        except Exception as error:  # exporters raise what their parts raise
            raise ExportError(
                f"no ONNX model can be made of it ({type(error).__name__}: {first_line(error)[:200]})"
            ) from None
        compared, difference = self._compare(model, inputs, folder / ONNX)
        forms = self._measured(folder, model, trial)
        versions = {"PyTorch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        tokens = latency_tokens(model.config)
        return ExportedFiles(forms, inputs, OPSET, compared, difference, BATCH, tokens, versions, cpu_model())

    def _compare(self, model: PreTrainedModel, inputs: tuple[str, ...], path: Path) -> tuple[int, float]:
        """How many dev sequences both models were given, and by how much their logits differ at most."""
        split, session = next(iter(self._data.evaluation_splits.values())), _Session(path)
        count, largest = 0, 0.0
        for rows in _spread(split):
            batch = collate(split, rows, self._data.pad_id)
            with torch.inference_mode():
                wanted = model(**dict(zip(inputs, _tensors(batch), strict=False))).logits.numpy()
            found = session.logits(batch)
            difference = float(np.abs(found - wanted).max())
            if not difference <= CLOSE or (found.argmax(1) != wanted.argmax(1)).any():
                raise ExportError(
                    f"its ONNX model is not what PyTorch's is: for {len(rows)} dev sequences of up to "
                    f"{batch.input_ids.shape[1]} tokens logits differ by {difference:.2g} (at most {CLOSE:g} are "
                    "allowed, and no other label)"
                )
            count, largest = count + len(rows), max(largest, difference)
        return count, largest

    def _measured(self, folder: Path, model: PreTrainedModel, trial: TrialRecord) -> tuple[ExportedFile, ...]:
        files = [ONNX, INT8] if self._int8 else [ONNX]
        metrics = [self._metrics(_Session(folder / file)) for file in files]
        recorded = {name: trial.metrics[name] for name in metrics[0] if name in trial.metrics}
        tokens = latency_tokens(model.config)
        calls = [_Session(folder / file, threads=1).call(tokens) for file in files]
        return tuple(
            ExportedFile(file, KINDS[file], found, (folder / file).stat().st_size / 1e6, milliseconds)
            for file, found, milliseconds in zip(
                [WEIGHTS, *files], [recorded, *metrics], latencies_ms(Encoder(model), *calls), strict=True
            )
        )

    def _metrics(self, session: _Session) -> dict[str, float]:
        """Those of the task on every evaluation split, as `ikd_ray.distill.evaluate.score` names them."""
        metrics: dict[str, float] = {}
        for name, split in self._data.evaluation_splits.items():
            logits = np.empty((len(split), self._data.task.num_labels), np.float32)
            for rows in evaluation_batches(split.lengths, BATCH):
                logits[rows] = session.logits(collate(split, rows, self._data.pad_id))
            found = self._data.task.score(split.labels, logits)
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        return metrics


class _Session:
    """An ONNX model in onnxruntime, on the CPU."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """
        Args:
            threads: 0: as many as there are cores.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(path, options, providers=CPU)
        self._inputs = [given.name for given in self._session.get_inputs()]

    def logits(self, batch: Batch) -> np.ndarray:
        """(B, labels)"""
        return self._run([tensor.numpy() for tensor in _tensors(batch)])

    def call(self, tokens: int) -> Callable[[], object]:
        """A pass with the sequence that latency is measured with."""
        ids = np.full((1, tokens), LATENCY_ID, np.int64)
        given = [ids, np.ones_like(ids), np.zeros_like(ids)]
        return lambda: self._run(given)

    def _run(self, given: list[np.ndarray]) -> np.ndarray:
        return self._session.run(None, dict(zip(self._inputs, given, strict=False)))[0]


class _Logits(nn.Module):
    """A model that takes its inputs by place and gives its logits alone."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *given: Tensor) -> Tensor:
        return self.model(**dict(zip(self.inputs, given, strict=True))).logits


def _inputs(model: PreTrainedModel) -> tuple[str, ...]:
    segments = ("token_type_ids",) if uses_segment_ids(model.config) else ()
    return ("input_ids", "attention_mask", *segments)


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """In the order of `_inputs`."""
    return batch.input_ids, batch.attention_mask.long(), batch.token_type_ids


def _convert(model: PreTrainedModel, inputs: tuple[str, ...], path: Path) -> None:
    if (size := model.num_parameters() * 4 / 1e6) > MOST_ONNX_MB:
        raise ValueError(f"{size:,.0f} MB of weights; one file holds up to {MOST_ONNX_MB:,}")
    ids = torch.full(EXAMPLE, LATENCY_ID)
    given = (ids, torch.ones_like(ids), torch.zeros_like(ids))[: len(inputs)]
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        _Logits(model, inputs).eval(),
        given,
        input_names=inputs,
        output_names=["logits"],
        dynamic_shapes=((axes,) * len(inputs),),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # where in which files of this machine its code is
        del node.metadata_props[:]
        node.ClearField("doc_string")
    onnx.save(proto, path)


def _quantise(folder: Path) -> None:
    # One scale for a whole matrix costs several times the accuracy of one for each column. Without 7 bits sums of
    # two products overflow on x86 processors that have no VNNI, and the metrics would hold on others alone.
    quantize_dynamic(
        folder / ONNX,
        folder / INT8,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


def _spread(split: TokenSplit) -> Iterator[np.ndarray]:
    """Batches of several sizes, in each of which are lengths from the least to the greatest."""
    order = split.order.rows
    yield order[-1:]
    for size in COMPARED:
        yield order[np.linspace(0, len(order) - 1, size).astype(int)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantiser tell of their own progress; what they fail with they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
