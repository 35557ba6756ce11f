"""Convert a student to ONNX, compare it with PyTorch, and measure it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ikd_ray.config import latency_tokens
from ikd_ray.data.batches import Batch, collate, evaluation_batches
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import uses_segment_ids
from ikd_ray.distill.latency import LATENCY_ID, latencies_ms
from ikd_ray.distill.memory import BATCH
from ikd_ray.distill.processor import cpu_model
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.errors import first_line
from ikd_ray.export.hf_export import ExportError
from ikd_ray.export.model_card import INT8, ONNX, WEIGHTS, ExportedFile, ExportedFiles
from ikd_ray.records import TrialRecord

OPSET = 18  # written by PyTorch's exporter without conversion; onnxruntime reads it since 1.18
MAX_MB = 2_147  # a protocol buffer file holds 2 GiB
TOLERANCE = 1e-4  # of the logits, in the range that scores are trained in
COMPARED_BATCHES = (1, 2, 7, 32)  # sequences
TRACED_SHAPE = (2, 8)  # sequences and tokens; the exported dimensions are dynamic
MAX_LENGTH_KEY = "max_length"  # name in the models' metadata
KINDS = {WEIGHTS: "PyTorch, fp32", ONNX: "onnxruntime, fp32", INT8: "onnxruntime, int8"}


def export_onnx(
    folder: Path, trial: TrialRecord, data: TaskData, int8: bool, max_length: int
) -> ExportedFiles:
    """Write an ONNX model, and with `int8` a quantized one, beside the files of a student in its Hugging Face folder.

    Their metadata say as `max_length` at how many tokens inputs were cut for the student.

    Raises:
        ExportError: the student cannot be converted, or its ONNX model has other logits.
    """
    transformers_logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, attn_implementation="eager", **NO_REMOTE_CODE
    ).eval()
    segments = ("token_type_ids",) if uses_segment_ids(model) else ()
    inputs = ("input_ids", "attention_mask", *segments)
    (folder / ONNX).parent.mkdir(exist_ok=True)
    try:
        with _quiet():
            _convert(model, inputs, folder / ONNX, max_length)
            if int8:
                _quantize(folder)
    except OSError:
        raise
    except Exception as error:  # exporters raise what their parts raise
        raise ExportError(
            f"no ONNX model can be made of it ({type(error).__name__}: {first_line(error)[:200]})"
        ) from None
    compared, difference = compare_logits(model, folder / ONNX, data)
    tokens = latency_tokens(model.config.max_position_embeddings)
    return ExportedFiles(
        files=_measure(folder, model, trial, data, [ONNX, INT8] if int8 else [ONNX], tokens),
        inputs=inputs,
        opset=OPSET,
        compared=compared,
        largest_difference=difference,
        batch=BATCH,
        tokens=tokens,
        versions={"PyTorch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        processor=cpu_model(),
    )


def compare_logits(model: PreTrainedModel, path: Path, data: TaskData) -> tuple[int, float]:
    """Compare the logits of an ONNX model with PyTorch's on dev sequences of all lengths, in batches of several sizes.

    Returns:
        The number of sequences and the largest absolute difference.

    Raises:
        ExportError: logits differ by more than `TOLERANCE`, or a label differs.
    """
    tolerance = TOLERANCE * max(1, data.task.score_scale if data.task.is_regression else 1)
    split, session = next(iter(data.evaluation_splits.values())), _Session(path)
    order = split.order.rows  # by length
    spread = (order[np.linspace(0, len(order) - 1, size).astype(int)] for size in COMPARED_BATCHES)
    count, largest = 0, 0.0
    for rows in (order[-1:], *spread):
        batch = collate(split, rows, data.pad_id)
        with torch.inference_mode():
            expected = model(**dict(zip(session.inputs, _tensors(batch), strict=False))).logits.numpy()
        logits = session.logits(batch)
        difference = float(np.abs(logits - expected).max())
        if not difference <= tolerance or (logits.argmax(1) != expected.argmax(1)).any():
            raise ExportError(
                f"its ONNX model is not what PyTorch's is: for {len(rows)} dev sequences of up to "
                f"{batch.input_ids.shape[1]} tokens logits differ by {difference:.2g} (at most {tolerance:g} are "
                "allowed, and no other label)"
            )
        count, largest = count + len(rows), max(largest, difference)
    return count, largest


class _Session:
    """An ONNX model in onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Load the model; 0 threads stand for one per core."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self._session.get_inputs()]

    def logits(self, batch: Batch) -> np.ndarray:
        """Return the logits of a batch, (B, labels)."""
        return self.run([tensor.numpy() for tensor in _tensors(batch)])

    def run(self, values: list[np.ndarray]) -> np.ndarray:
        """Return the logits for ids, mask and, unless the model takes none, segments."""
        return self._session.run(None, dict(zip(self.inputs, values, strict=False)))[0]


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs of a model in their order."""
    return batch.input_ids, batch.attention_mask.long(), batch.token_type_ids


def _convert(model: PreTrainedModel, inputs: tuple[str, ...], path: Path, max_length: int) -> None:
    if (size := model.num_parameters() * 4 / 1e6) > MAX_MB:
        raise ValueError(f"{size:,.0f} MB of weights; one file holds up to {MAX_MB:,}")
    ids = torch.full(TRACED_SHAPE, LATENCY_ID)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        model,
        kwargs=dict(zip(inputs, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=False)),
        input_names=inputs,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(inputs, axes),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # it names source files of this machine
        del node.metadata_props[:]
        node.ClearField("doc_string")
    onnx.helper.set_model_props(proto, {MAX_LENGTH_KEY: str(max_length)})
    onnx.save(proto, path)


def _quantize(folder: Path) -> None:
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


def _measure(
    folder: Path, model: PreTrainedModel, trial: TrialRecord, data: TaskData, names: list[str], tokens: int
) -> tuple[ExportedFile, ...]:
    """Measure metrics, size and latency of PyTorch's and the ONNX files."""
    metrics = [_metrics(_Session(folder / name), data) for name in names]
    recorded = {name: trial.metrics[name] for name in metrics[0] if name in trial.metrics}
    ids = np.full((1, tokens), LATENCY_ID, np.int64)
    values = [ids, np.ones_like(ids), np.zeros_like(ids)]
    sessions = [_Session(folder / name, threads=1) for name in names]
    calls = [lambda session=session: session.run(values) for session in sessions]
    return tuple(
        ExportedFile(name, KINDS[name], measured, (folder / name).stat().st_size / 1e6, milliseconds)
        for name, measured, milliseconds in zip(
            [WEIGHTS, *names], [recorded, *metrics], latencies_ms(Encoder(model), *calls), strict=True
        )
    )


def _metrics(session: _Session, data: TaskData) -> dict[str, float]:
    """Return the task's metrics on every evaluation split, named as by `ikd_ray.distill.evaluate.score`."""
    metrics: dict[str, float] = {}
    for name, split in data.evaluation_splits.items():
        logits = np.empty((len(split), data.task.num_labels), np.float32)
        for rows in evaluation_batches(split.lengths, BATCH):
            logits[rows] = session.logits(collate(split, rows, data.pad_id))
        if data.task.is_regression:
            logits = data.task.scale_scores(logits)
        metrics |= {f"{name}/{key}": value for key, value in data.task.score(split.labels, logits).items()}
    return metrics


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress reports of exporter and quantizer; their errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
