"""A teacher's folder, which may come from anywhere, checked before transformers builds a model of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from ikd_ray.distill.encoder import FAMILIES
from ikd_ray.errors import UsageError, first_line
from ikd_ray.storage import store
from ikd_ray.tasks import Task

MOST_BYTES = 2**20  # of config.json; they have a few thousand
MOST = 2**20  # the largest number that a configuration may hold: a vocabulary's is the largest, with 250,002
MOST_LAYERS = 128
# Never a question whether to run a model's own code, which transformers asks at a terminal by default.
NO_REMOTE_CODE = {"trust_remote_code": False}

_LAYERS = ("num_hidden_layers", "n_layers")
_ADAPTER = "adapter_config.json"


def weights_key(folder: Path) -> str:
    """What identifies the weights, the configuration and the tokenizer in a folder.

    Raises:
        UsageError: it has no configuration or no weights in safetensors, or they are damaged.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"--teacher {folder}: no config.json in it; give a Hugging Face model folder")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise UsageError(
            f"--teacher {folder}: no model.safetensors in it; only safetensors are read, "
            "convert with save_pretrained(folder)"
        )
    # Configuration and tokenizer: whatever of them a family has.
    read = [*weights, *(path for end in ("json", "txt", "model") for path in sorted(folder.glob(f"*.{end}")))]
    for path in read:
        if not os.path.isfile(path):
            raise UsageError(f"--teacher {path}: no ordinary file; get it again")
    for path in weights:
        try:
            safe_open(path, "np").__enter__()
        except Exception as error:  # safetensors has no public exception for a truncated file
            raise UsageError(f"--teacher {path}: damaged ({error}); get it again") from None
    try:
        return store.digest([[path.name, store.file_sha256(path)] for path in read])
    except OSError as error:
        raise UsageError(f"--teacher {folder}: cannot be read ({error.strerror}); mend that") from None


def validate_config(folder: Path) -> None:
    """Refuse a configuration that names another kind of model, brings code, or is absurd.

    Raises:
        UsageError: it does.
    """
    path = folder / "config.json"
    config = _read(path)
    if config.get("model_type") not in FAMILIES:
        raise unsupported_family(str(folder), config.get("model_type"))
    tokenizer = folder / "tokenizer_config.json"
    for asks, entries in ((path, config), (tokenizer, _read(tokenizer) if tokenizer.exists() else {})):
        if "auto_map" in entries:
            raise UsageError(
                f"--teacher {asks}: auto_map asks to run the model's own code, which is never done; "
                "give a model and tokenizer of transformers' own"
            )
    if (folder / _ADAPTER).exists():
        raise UsageError(f"--teacher {folder / _ADAPTER}: an adapter; merge it into its model first")
    if not isinstance(config.get("architectures") or [], list):
        raise UsageError(f"--teacher {path}: architectures is no list; get it again")
    for name, value in config.items():
        if isinstance(value, int) and abs(value) > MOST:
            raise UsageError(f"--teacher {path}: {name} {value} is absurd; get it again")
    for name in _LAYERS:
        if not 1 <= config.get(name, 1) <= MOST_LAYERS:
            raise UsageError(f"--teacher {path}: {name} {config[name]}; 1 to {MOST_LAYERS} are supported")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        config = None if len(data) > MOST_BYTES else json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--teacher {path}: not JSON ({first_line(error)}); get it again") from None
    if not isinstance(config, dict):
        what = "over 1 MiB" if len(data) > MOST_BYTES else f"a {type(config).__name__}"
        raise UsageError(f"--teacher {path}: {what} where a mapping of a few lines is needed; get it again")
    return config


def unsupported_family(name: str, kind: object) -> UsageError:
    return UsageError(
        f"--teacher {name}: a {kind!r} model is no BERT-family encoder; supported: {', '.join(FAMILIES)}"
    )


def load_classifier(
    path: str, name: str, task: Task, has_head: bool, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A model with a head for the task; transformers would make up, and not tell, whatever its weights lack.

    Args:
        path: a folder, or a name on the hub.
        has_head: its own classification head is to be used; else it gets a new random one.
        dtype: of the weights; as they are by default.

    Raises:
        UsageError: weights are missing, of another shape than the configuration's, or no finite numbers.
    """
    names = list(task.labels) or ["score"]
    logging.disable_progress_bar()
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=task.num_labels,
            id2label=dict(enumerate(names)),
            label2id={label: number for number, label in enumerate(names)},
            use_safetensors=True,
            dtype=dtype or "auto",
            ignore_mismatched_sizes=True,  # and told below
            output_loading_info=True,
            **NO_REMOTE_CODE,
        )
    except Exception as error:  # transformers raises what its parts raise
        raise UsageError(
            f"--teacher {name}: no model can be made of it ({first_line(error)[:200]}); get it again"
        ) from None

    def first(tensors: Iterable[str]) -> str | None:
        encoder = model.base_model_prefix + "."
        return min((t for t in tensors if has_head or _is_needed(t, encoder)), default=None)

    if missing := first(loaded["missing_keys"]):
        raise UsageError(f"--teacher {name}: its weights lack {missing}; get it again")
    if mismatched := first(entry[0] for entry in loaded["mismatched_keys"]):
        raise UsageError(
            f"--teacher {name}: {mismatched} has another shape than its config.json says; get it again"
        )
    for tensor_name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UsageError(f"--teacher {name}: {tensor_name} is not all finite numbers; get it again")
    return model


def _is_needed(tensor: str, encoder: str) -> bool:
    """Whether a model without a head must have it. Models trained on tokens alone have no pooler."""
    return tensor.startswith(encoder) and ".pooler." not in tensor
