"""A trained student in Python."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikd_ray.analysis.dataframes import epochs_frame
from ikd_ray.api.arguments import named_arguments
from ikd_ray.api.library_settings import quiet_libraries
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.errors import UsageError
from ikd_ray.export.hf_export import check_targets, is_export
from ikd_ray.formatting import decimal, short_name

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextClassificationPipeline

    from ikd_ray.records import TrialRecord


class Student:
    """A trained student: its parameters, its metrics, and ways to use it.

    Attributes:
        id: name of its trial.
        name: name of the folder that `export` writes, as in `cola-kd-3L-t000`.
        params: every field that it was built and trained with, under the names of a space file.
        metrics: its final metrics, under the names that they have in MLflow.
        layer_map: for each of its layers the teacher's layer that it was compared with, counted from 1.
        warnings: problems of its training, usually none.
    """

    def __init__(self, trial: TrialRecord, name: str, metric: str, write: Callable[[Path], object]) -> None:
        """Describe a student.

        Args:
            trial: its record.
            name: name of the folder that it is exported to.
            metric: the metric that it was chosen by.
            write: writes it to a new folder, in the form of an exported student.
        """
        self.id, self.name = trial.id, name
        self.params, self.metrics = dict(trial.params), dict(trial.metrics)
        self.layer_map, self.warnings = list(trial.layer_map), list(trial.warnings)
        self._trial, self._metric, self._write = trial, metric, write

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: its number, its stage, and its metrics."""
        return epochs_frame([self._trial]).reset_index(drop=True)

    def save(self, to: str | os.PathLike[str], force: bool = False) -> Path:
        """Write the student to a folder, as `ikd export` does: a Hugging Face model with its tokenizer and a card.

        Args:
            to: the folder.
            force: replace the folder if it exists.

        Returns:
            The folder.

        Raises:
            UsageError: the folder exists already or cannot be written, or the student is damaged.
        """
        folder = Path(os.path.expanduser(to))
        with named_arguments({"to": to}), quiet_libraries():
            check_targets(folder.parent, [folder], force)
            if os.path.lexists(folder) and not is_export(folder):
                raise UsageError(f"--to {to}: is no exported student, so that --force does not replace it")
            self._write(folder)
        return folder

    def export(self, to: str | os.PathLike[str] = "exports", force: bool = False) -> Path:
        """Write the student to the folder `name` in the folder `to`; else like `save`."""
        return self.save(Path(to) / self.name, force)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the student as it is exported, in evaluation mode, and its tokenizer.

        The model's labels have their names, scores are in the task's units, and the tokenizer cuts texts where they
        were cut in training, with `truncation=True`.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with tempfile.TemporaryDirectory() as temporary, quiet_libraries():
            folder = self.save(Path(temporary) / self.name)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, **NO_REMOTE_CODE
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **NO_REMOTE_CODE)
        return model.eval(), tokenizer

    def pipeline(self, **options: Any) -> TextClassificationPipeline:
        """Return a transformers pipeline that classifies texts with the student; `options` are further ones of it."""
        from transformers import pipeline

        loaded: Any = self.load()
        model, tokenizer = loaded
        options = {"truncation": True, **options}
        with quiet_libraries():
            return pipeline("text-classification", model=model, tokenizer=tokenizer, **options)

    def __repr__(self) -> str:
        size = self.metrics.get("student/params")
        facts = [f"{short_name(self._metric)} {decimal(self.metrics.get(self._metric))}"]
        facts += [] if size is None else [f"{size / 1e6:.1f} M parameters"]
        return f"<Student {self.name}: {', '.join(facts)}>"
