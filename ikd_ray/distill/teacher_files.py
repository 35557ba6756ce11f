"""Check a teacher's folder, which may come from anywhere, before transformers builds a model from it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from ikd_ray.distill.families import unsupported_family
from ikd_ray.errors import UsageError, first_line
from ikd_ray.formatting import clean
from ikd_ray.storage import store
from ikd_ray.tasks import Task

MAX_BYTES = 2**20
"""Size of a config.json; usual ones have a few thousand bytes."""
MAX_INDEX_BYTES = 2**23
"""Size of an index of shards, which has a line for each tensor."""
MAX_NUMBER = 2**20
"""Largest number in a configuration; a vocabulary of 250,002 entries is the largest known."""
MAX_LAYERS = 128
MISSING_PARAMETERS = 4_000_000
"""Parameters that weights may lack: a pooler and a head, made at random."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Implementations of attention that transformers has itself; other names are kernels to download."""
NO_REMOTE_CODE = {"trust_remote_code": False}
"""Arguments that keep transformers from asking at the terminal whether to run a model's own code."""

_LAYERS = ("num_hidden_layers", "n_layers")
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_LAYER = re.compile(r"\blayers?\.\d+\.")
"""Part of the name of a tensor in a layer."""
_ADAPTER = "adapter_config.json"


def weights_key(folder: Path) -> str:
    """Return a digest of the weights, the configuration and the tokenizer in a folder.

    Raises:
        UsageError: the folder has no configuration or no weights in safetensors, or they are damaged.
    """
    if (folder / _ADAPTER).exists():
        raise UsageError(
            f"--teacher {folder}: a PEFT adapter ({_ADAPTER}), not a whole model; merge it in Python, with "
            "`pip install peft`: from peft import AutoPeftModelForSequenceClassification; "
            f"AutoPeftModelForSequenceClassification.from_pretrained({str(folder)!r}).merge_and_unload()"
            ".save_pretrained('merged'); save the tokenizer there too, and give --teacher merged"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"--teacher {folder}: no config.json in it; give a Hugging Face model folder")
    weights = _weight_files(folder)
    # Configuration and tokenizer are in different files for each family.
    read = [*weights, *(path for end in ("json", "txt", "model") for path in sorted(folder.glob(f"*.{end}")))]
    for path in read:
        if not os.path.isfile(path):
            raise UsageError(f"--teacher {path}: not a regular file; download it again")
    for path in weights:
        try:
            safe_open(path, "np").__enter__()
        except Exception as error:  # safetensors has no public exception for a truncated file
            raise UsageError(f"--teacher {path}: damaged ({error}); download it again") from None
    try:
        return store.digest([[path.name, store.file_sha256(path)] for path in read])
    except OSError as error:
        raise UsageError(f"--teacher {folder}: cannot be read ({error.strerror})") from None


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads the weights from: one, or the shards that an index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        weights = sorted(folder.glob("model*.safetensors"))
    else:
        entries = _read(index, MAX_INDEX_BYTES).get("weight_map")
        names: list[Any] = list(entries.values()) if isinstance(entries, dict) else [None]
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise UsageError(
                    f"--teacher {index}: {name!r} is no safetensors file beside it; download the model again"
                )
        weights = [folder / name for name in sorted(set(names))]
    if not weights:
        raise UsageError(
            f"--teacher {folder}: no model.safetensors in it; only safetensors are read, "
            "convert with save_pretrained(folder)"
        )
    return weights


def validate_config(folder: Path) -> None:
    """Check the configuration in a folder.

    Raises:
        UsageError: it is of a model that is not supported, brings code, or has implausible values.
    """
    path = folder / "config.json"
    config = _read(path)
    if refusal := unsupported_family(str(folder), config.get("model_type")):
        raise refusal
    tokenizer = folder / "tokenizer_config.json"
    for file, entries in ((path, config), (tokenizer, _read(tokenizer) if tokenizer.exists() else {})):
        if "auto_map" in entries:
            raise UsageError(
                f"--teacher {file}: auto_map asks to run the model's own code, which is never done; "
                "choose a model and a tokenizer that transformers itself provides"
            )
    if not isinstance(config.get("architectures") or [], list):
        raise UsageError(f"--teacher {path}: architectures is not a list; download it again")
    for name, value in config.items():
        # Not `>`: JSON has NaN, too.
        if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise UsageError(f"--teacher {path}: {name} {value} is out of range; write the model's own value")
    _check_label_names(path, config.get("id2label"))
    for name in _LAYERS:
        layers = config.get(name, 1)
        if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
            raise UsageError(f"--teacher {path}: {name} {layers!r}; 1 to {MAX_LAYERS} are supported")
    for name in _ATTENTION:
        if config.get(name) not in (None, *ATTENTION):
            raise UsageError(
                f"--teacher {path}: {name} {config[name]!r} is code from elsewhere; remove it, or write 'sdpa'"
            )


def _check_label_names(path: Path, names: Any) -> None:
    """Require that label names, if a configuration has any, are texts or numbers by their output's number."""
    is_mapping = isinstance(names, dict) and all(re.fullmatch(r"-?[0-9]+", number) for number in names)
    if names is None or (is_mapping and all(isinstance(name, str | int | float) for name in names.values())):
        return
    raise UsageError(
        f"--teacher {path}: id2label {clean(json.dumps(names), 60)} does not name the outputs by their numbers; "
        'write it as in {"0": "negative", "1": "positive"}'
    )


def validate_shapes(folder: Path, name: str) -> None:
    """Compare the shapes that a folder's configuration asks for with those of its weights, before any is allocated.

    Raises:
        UsageError: a tensor has another shape, or the model has many more parameters than the weights.
    """
    path = folder / "config.json"
    stored: dict[str, list[int]] = {}
    for file in _weight_files(folder):
        with safe_open(file, "pt") as tensors:
            stored |= {tensor: tensors.get_slice(tensor).get_shape() for tensor in tensors.keys()}  # noqa: SIM118
    try:
        config = AutoConfig.from_pretrained(folder, **NO_REMOTE_CODE)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, **NO_REMOTE_CODE)
    except Exception as error:  # transformers has no common exception
        raise UsageError(
            f"--teacher {path}: no model can be built from it ({first_line(error)[:200]})"
        ) from None
    prefix = f"{model.base_model_prefix}."
    parameters = dict(model.named_parameters())
    for tensor, parameter in parameters.items():
        # A model that was saved without a head has names without the prefix.
        shape = stored.get(tensor, stored.get(tensor.removeprefix(prefix)))
        if shape is not None and tensor.startswith(prefix) and list(parameter.shape) != shape:
            raise UsageError(
                f"--teacher {name}: {tensor} has another shape than its config.json says; download it again"
            )
    wanted = sum(parameter.numel() for parameter in parameters.values())
    there = sum(map(math.prod, stored.values()))
    if wanted > 2 * there + MISSING_PARAMETERS:
        raise UsageError(
            f"--teacher {path}: describes {wanted:,} parameters, its weights have {there:,}; download it again"
        )


def _read(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        config = None if len(data) > most else json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--teacher {path}: not JSON ({first_line(error)}); download it again") from None
    if not isinstance(config, dict):
        what = f"over {most >> 20} MiB" if len(data) > most else f"a {type(config).__name__}"
        raise UsageError(f"--teacher {path}: {what} instead of a mapping of a few lines; download it again")
    return config


def load_classifier(
    path: str, name: str, task: Task, has_head: bool, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load a model with a classification head for a task, and check that its weights are complete.

    transformers alone would initialise missing weights at random without an error. Without a head of its own the model
    gets a random one. `name` stands for it in messages; with `dtype` None the weights keep their stored type.

    Raises:
        UsageError: weights are missing, have another shape than the configuration says, or are not finite.
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
            ignore_mismatched_sizes=True,  # reported below
            chunk_size_feed_forward=0,  # chunks change no number, and only fit some lengths
            output_loading_info=True,
            **NO_REMOTE_CODE,
        )
    except Exception as error:  # transformers has no common exception
        raise UsageError(
            f"--teacher {name}: it cannot be loaded ({first_line(error)[:200]}); download it again"
        ) from None

    def first(tensors: Iterable[str]) -> str | None:
        encoder = model.base_model_prefix + "."
        return min((t for t in tensors if has_head or _is_needed(t, encoder)), default=None)

    if missing := first(loaded["missing_keys"]):
        raise UsageError(f"--teacher {name}: its weights lack {missing}; download it again")
    if mismatched := first(entry[0] for entry in loaded["mismatched_keys"]):
        raise UsageError(
            f"--teacher {name}: {mismatched} has another shape than its config.json says; download it again"
        )
    if unexpected := min(filter(_LAYER.search, loaded["unexpected_keys"]), default=None):
        raise UsageError(
            f"--teacher {name}: its weights have {unexpected}, for which its config.json has no layer; write the right "
            "number of layers to it, or download it again"
        )
    for tensor_name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UsageError(
                f"--teacher {name}: {tensor_name} has values that are not finite; download it again"
            )
    return model


def _is_needed(tensor: str, encoder: str) -> bool:
    """Return whether a model without a head must have a tensor. Models trained on tokens only have no pooler."""
    return tensor.startswith(encoder) and ".pooler." not in tensor
