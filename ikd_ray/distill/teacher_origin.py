"""Origin of a teacher: its name on the Hugging Face hub, and the licence that its own model card states."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load, model_info, try_to_load_from_cache
from huggingface_hub.utils import validate_repo_id

CARD, MAX_CARD_BYTES = "README.md", 2**20
LICENSE_KEYS = ("license", "license_name", "license_link")
"""Keys of a model card's metadata that tell the licence; name and link stand beside a licence `other`."""
CANONICAL = re.compile(
    r"(distil)?bert-(base|large)(-multilingual|-german)?-(un)?cased|bert-base-chinese|"
    r"(distil|xlm-)?roberta-(base|large)|camembert-base"
)
"""Names on the hub that have no organization; another single word is the name of somebody's folder."""
FOLDERS = ("checkpoint", "experiments", "exports", "model", "out", "results", "runs", "saved", "tmp", "train")
"""Beginnings of usual names of folders that models are saved in, which no organization has."""


@dataclass(frozen=True)
class TeacherOrigin:
    """A teacher's part of the hub's metadata of its students."""

    hub_name: str = ""
    """Empty where none is known."""
    license: dict[str, str] = field(default_factory=dict)
    """Those of `LICENSE_KEYS` that are known."""


def folder_origin(folder: Path) -> TeacherOrigin:
    """Return the origin of a teacher in a folder, as its configuration and its model card tell it."""
    return TeacherOrigin(_configured_name(folder), _read_license(folder / CARD))


def hub_origin(name: str, reachable: bool) -> TeacherOrigin:
    """Return the origin of a teacher on the hub; unless that is `reachable`, its cache may have the model card."""
    if not reachable:
        card = try_to_load_from_cache(name, CARD)
        return TeacherOrigin(name, _read_license(Path(card)) if isinstance(card, str) else {})
    try:
        data = model_info(name).card_data
    except Exception:  # every transport raises its own errors, and a sweep does without a licence
        data = None
    return TeacherOrigin(name, _license_of(data.to_dict() if data else {}))


def _read_license(card: Path) -> dict[str, str]:
    try:
        if not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
            return {}
        return _license_of(metadata_load(card) or {})
    except Exception:  # a card may be anything; a teacher does without
        return {}


def _license_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: metadata[key] for key in LICENSE_KEYS if isinstance(metadata.get(key), str)}


def _configured_name(folder: Path) -> str:
    """Return the hub's name that transformers noted in a configuration, unless it may be a folder's.

    It notes what the model was loaded from: a name of the hub, or a path.
    """
    try:
        name = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", ""))
        validate_repo_id(name)
    except (OSError, ValueError, AttributeError):
        return ""
    is_hub_name = CANONICAL.fullmatch(name) or ("/" in name and not name.lower().startswith(FOLDERS))
    return name if is_hub_name and "checkpoint" not in name and not os.path.exists(name) else ""
