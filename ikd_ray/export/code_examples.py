"""Python code that loads an exported student, as its model card and the terminal show it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ikd_ray.formatting import clean
from ikd_ray.records import SweepRecord
from ikd_ray.tasks import Task

UNKNOWN_FOLDER = "PATH/OF/THIS/FOLDER"
"""Stands for the exported folder in its model card, which does not know where it is."""
GENERIC = ("A sentence.", "Another sentence.")


def recorded_example(sweep: SweepRecord, task: Task) -> tuple[str, ...]:
    """Return the texts of one of the sweep's dev examples; none where its record has no example."""
    texts = sweep.data.get("example")
    if not isinstance(texts, list) or len(texts) != len(task.text_columns):
        return ()
    return tuple(map(clean, texts))


def example_texts(sweep: SweepRecord, task: Task) -> tuple[str, ...]:
    """Return the recorded example's text, or both of a pair; without one, texts that fit any task."""
    return recorded_example(sweep, task) or GENERIC[: len(task.text_columns)]


def pipeline_code(place: str, texts: Sequence[str]) -> str:
    """Return code that answers for an example with a pipeline of transformers.

    Args:
        place: folder of the student, or its name on the hub.
        texts: the example's text, or both of a pair.
    """
    given = _literal(texts[0])
    if len(texts) == 2:
        given = f'{{"text": {_literal(texts[0])}, "text_pair": {_literal(texts[1])}}}'
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", {_literal(place)}, truncation=True)\n'
        f"print(classify({given}))\n"
    )


def onnx_code(place: str, file: str, texts: Sequence[str], *, on_hub: bool = False) -> str:
    """Return code that computes the logits of an example with onnxruntime.

    Args:
        place: folder of the student, or its name on the hub.
        file: path of the ONNX model in that folder.
        texts: the example's text, or both of a pair.
        on_hub: whether `place` is a name on the hub.
    """
    imports = ["import onnxruntime", "from transformers import AutoTokenizer"]
    folder = _literal(place)
    if on_hub:
        imports.insert(1, "from huggingface_hub import snapshot_download")
        folder = f"snapshot_download({folder})"
    given = ", ".join(map(_literal, texts))
    return "\n".join(
        [
            *imports,
            "",
            f"folder = {folder}",
            f'session = onnxruntime.InferenceSession(f"{{folder}}/{file}")',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f'tokens = tokenizer({given}, truncation=True, return_tensors="np", return_token_type_ids=True)',
            'inputs = {given.name: tokens[given.name].astype("int64") for given in session.get_inputs()}',
            'print(session.run(["logits"], inputs)[0])',
            "",
        ]
    )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
