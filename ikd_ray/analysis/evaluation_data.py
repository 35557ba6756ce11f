"""The examples that a finished sweep's students were evaluated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ikd_ray.data.dataset import Dataset
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.splits import HOLDOUT, hold_out
from ikd_ray.data.tokens import TaskData, data_key, open_data, tokenize
from ikd_ray.errors import UsageError
from ikd_ray.records import SweepRecord, read_task
from ikd_ray.storage import store


def tokens_folder(output: Path, sweep: SweepRecord) -> Path:
    """Return the cache folder of the sweep's tokenized examples."""
    key = data_key(sweep.data["fingerprint"], sweep.teacher.get("source_key", ""), sweep.data["max_length"])
    return output / "cache" / "tokens" / key


def load_evaluation_data(output: Path, sweep: SweepRecord, teacher: Path, workdir: Path) -> TaskData:
    """Load the sweep's evaluation splits as tokens, from the cache or else from the data as the sweep read it.

    Splits that are tokenized once more, with the tokenizer in `teacher`, go to the empty folder `workdir`.

    Raises:
        UsageError: the tokens are missing, and the data cannot be read or has changed.
    """
    cached = tokens_folder(output, sweep)
    if store.is_intact(cached):
        return open_data(cached)
    # Imported late: it takes seconds.
    from transformers import AutoTokenizer

    from ikd_ray.distill.teacher_files import NO_REMOTE_CODE

    try:
        dataset = read_again(output / sweep.name, sweep)
    except UsageError as error:
        raise UsageError(
            f"{sweep.name}: ONNX models are measured on its dev split, which is gone from {cached}, and its data "
            f"{error}"
        ) from None
    splits = {name: split for name, split in dataset.splits.items() if name != "train"}
    tokenizer = AutoTokenizer.from_pretrained(teacher, **NO_REMOTE_CODE)
    return tokenize(replace(dataset, splits=splits), tokenizer, "", sweep.data["max_length"], workdir)


def read_again(folder: Path, sweep: SweepRecord) -> Dataset:
    """Read the data of the sweep in a folder again, with the splits that the sweep had.

    Raises:
        UsageError: the data cannot be read or has changed; the message continues a sentence that begins "its data".
    """
    paths = (sweep.settings.get(name) for name in ("data_dir", "unlabelled"))
    data_dir, unlabelled_file = (Path(path) if path else None for path in paths)
    try:
        dataset = load_dataset(read_task(folder), data_dir, unlabelled_file)
        if sweep.data.get("selection") == HOLDOUT:
            dataset = hold_out(dataset)
    except UsageError as error:
        raise UsageError(f"cannot be read again: {error}") from None
    if dataset.fingerprint != sweep.data["fingerprint"]:
        was = f"{sweep.data['description']}, now it is {dataset.description}"
        raise UsageError(f"has changed: it was {was}")
    return dataset
