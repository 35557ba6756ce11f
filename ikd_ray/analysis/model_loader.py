"""The students and the teacher of a sweep, loaded from their weights, and their predictions on the dev set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoTokenizer
from transformers.utils import logging

from ikd_ray.analysis.evaluation_data import read_again, tokens_folder
from ikd_ray.data.dataset import Split
from ikd_ray.data.tokens import TaskData, TokenSplit, open_data
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.evaluate import predict
from ikd_ray.distill.teacher import load_teacher
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.errors import UnavailableError, UsageError, first_line
from ikd_ray.formatting import clean
from ikd_ray.records import STUDENT, SweepRecord, TrialRecord, teacher_folder, trial_folder
from ikd_ray.storage import store
from ikd_ray.storage.remote import SharedStorage

FORMAT = 1
SPLIT = "dev"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Model:
    """A student or the teacher on disk."""

    name: str
    folder: Path  # with the manifest of checksums
    weights: Path  # folder of the Hugging Face model


class ModelLoader:
    """Loads a sweep's models and dev set; predictions are computed once and cached.

    Missing files are fetched from `output`. `notify` is called with a line of text before something that takes a while.
    """

    def __init__(
        self,
        output: SharedStorage,
        folder: Path,
        sweep: SweepRecord,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        logging.disable_progress_bar()
        self._output, self._folder, self._sweep, self._notify = output, folder, sweep, notify
        self._cache = folder.parent / "cache"

    @cached_property
    def device(self) -> torch.device:
        """The device that models are loaded to."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def student(self, trial: TrialRecord) -> Model:
        """Return a trial's student."""
        folder = trial_folder(self._folder, trial.id)
        return Model(f"the student of {clean(trial.id)}", folder, folder / STUDENT)

    @property
    def teacher(self) -> Model:
        """The sweep's teacher.

        Raises:
            UnavailableError: the sweep's record names none.
        """
        try:
            folder = teacher_folder(self._folder, self._sweep)
        except UsageError:
            raise UnavailableError("The sweep's record does not say where its teacher is kept.") from None
        return Model("the teacher", folder, folder)

    @cached_property
    def data(self) -> TaskData:
        """The tokens that the sweep was trained and evaluated on.

        Raises:
            UnavailableError: they are missing or damaged.
        """
        if not self._sweep.teacher.get("source_key"):
            raise UnavailableError(
                "The sweep is of an earlier version, whose records do not name its tokens."
            )
        folder = tokens_folder(self._folder.parent, self._sweep)
        self._fetch(folder, "The tokenized dev set")
        data = open_data(folder)
        if SPLIT not in data.splits:
            raise UnavailableError(f"{folder} has no {SPLIT} set.")
        return data

    @property
    def dev(self) -> TokenSplit:
        """The dev set.

        Raises:
            UnavailableError: it is missing or damaged.
        """
        return self.data.splits[SPLIT]

    def load(self, model: Model) -> Encoder:
        """Load a model for inference.

        Raises:
            UnavailableError: it is missing, damaged, or no model.
        """
        self._fetch_model(model)
        try:
            return load_teacher(model.weights).requires_grad_(False).to(self.device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UnavailableError(f"{model.weights} holds no model ({first_line(error)}).") from None

    def tokenizer(self) -> Any:
        """Load the tokenizer of the teacher, which its students share.

        Raises:
            UnavailableError: it is missing or damaged.
        """
        self._fetch_model(self.teacher)
        try:
            return AutoTokenizer.from_pretrained(self.teacher.weights, **NO_REMOTE_CODE)
        except Exception as error:  # each file format raises its own
            raise UnavailableError(f"The teacher's tokenizer cannot be read ({first_line(error)}).") from None

    @cached_property
    def original_dev(self) -> Split | None:
        """The dev set as the data has it; None where its folder is gone, has changed, or never was on this machine."""
        if not self._sweep.settings.get("data_dir"):  # reading from the hub may take long
            return None
        try:
            return read_again(self._folder, self._sweep).splits[SPLIT]
        except (UsageError, OSError, KeyError):
            return None

    def texts(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the texts of dev examples, one or two each: the original ones, or else their tokens as text.

        Raises:
            UnavailableError: the data, and the tokens or the tokenizer as well, are missing.
        """
        original = self.original_dev
        if original is not None:
            pairs = original.text_pair
            return [(original.text[row], *([pairs[row]] if pairs else [])) for row in rows]
        tokenizer, ids = self.tokenizer(), self.dev.input_ids
        special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        return [
            tuple(
                tokenizer.decode(list(group))
                for is_special, group in groupby(ids.flat(np.array([row])).tolist(), special.__contains__)
                if not is_special
            )
            for row in rows
        ]

    def teacher_size(self) -> dict[str, float]:
        """Return the teacher's metrics of size, from the header of its file; empty if the file is missing."""
        try:
            self._fetch_model(self.teacher)
            with safe_open(self.teacher.weights / "model.safetensors", "np") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping
        except Exception:  # safetensors has no public exception, and the report does without the size
            return {}
        count = float(sum(int(np.prod(shape)) for shape in shapes))
        return {"student/params": count, "student/size_mb": 4 * count / 1e6}

    def logits(self, model: Model) -> np.ndarray:
        """Return (n, labels) float32: a model's logits on the dev set, from the cache where they are there.

        Raises:
            UnavailableError: the model or the tokens are missing or damaged.
        """
        data = self.data
        self._fetch_model(model)
        manifest = json.loads((model.folder / store.MANIFEST).read_text(encoding="utf-8"))
        inside = str(model.weights.relative_to(model.folder))
        checksums = {
            name: checksum for name, checksum in manifest.items() if inside in (".", name.split("/")[0])
        }
        if not checksums:
            raise UnavailableError(f"{model.folder} has no weights.")
        folder = self._cache / PREDICTIONS / store.digest(FORMAT, data.key, checksums)

        def write(staging: Path) -> None:
            self._notify(f"predictions of {model.name} on {len(self.dev)} dev examples")
            np.save(staging / f"{SPLIT}.npy", predict(self.load(model), self.dev, data.pad_id))

        store.get_or_build(folder, write)
        return np.load(folder / f"{SPLIT}.npy", allow_pickle=False)

    def _fetch_model(self, model: Model) -> None:
        self._fetch(model.folder, model.name[0].upper() + model.name[1:])

    def _fetch(self, folder: Path, what: str) -> None:
        self._output.download(folder)
        if not store.is_intact(folder):
            state = "is damaged" if folder.exists() else "is not there any more"
            raise UnavailableError(f"{what} {state} ({folder}); resume the sweep to make it again.")
