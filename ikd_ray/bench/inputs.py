"""What is asked for, and the data and the teacher that everything is measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ikd_ray.config import DataConfig
from ikd_ray.data.dataset import Dataset, Split, fingerprint
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.tokens import TaskData, open_data, tokenize
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import TeacherSource, find_teacher, load_source, load_teacher, load_tokenizer
from ikd_ray.errors import UsageError
from ikd_ray.tasks import get_task

DEFAULT_SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "default.yaml"


@dataclass(frozen=True)
class Request:
    """The command line's flags. `overhead_trials` and `sharing_trials` ask for just what they name."""

    task: str
    data_dir: Path | None = None
    teacher: str | None = None
    limit: int | None = None
    student_layers: int = 3
    batch_size: int = 32
    peers: tuple[str, ...] = ()
    overhead_trials: tuple[int, ...] = ()
    sharing_trials: int | None = None


@dataclass(frozen=True)
class Inputs:
    """Where data, teacher and targets lie, and how to train on them; small enough to send to a process."""

    data: Path
    teacher: Path
    targets: Path  # empty until they are built
    scratch: Path  # for what else is written
    student_layers: int
    batch_size: int
    threads: int

    def open(self) -> tuple[TaskData, Targets]:
        data = open_data(self.data)
        return data, Targets(self.targets, data, load_teacher(self.teacher))

    def matched(self) -> tuple[int, ...]:
        """The teacher layer of each student layer, both counted from 1."""
        return layer_map(self.student_layers, len(load_teacher(self.teacher).layers))


def find(request: Request) -> tuple[TeacherSource, Dataset]:
    """The teacher and the examples, cut to the limit; nothing is written.

    Raises:
        UsageError: a flag is wrong.
    """
    task = get_task(request.task)
    source = find_teacher(request.teacher, task)
    if not 1 <= request.student_layers <= source.layers:
        raise UsageError(
            f"--student-layers {request.student_layers}: the teacher {source.name} has {source.layers} "
            f"layers; give 1 to {source.layers}"
        )
    dataset = load_dataset(task, request.data_dir)
    return source, dataset if request.limit is None else first(dataset, request.limit)


def first(dataset: Dataset, limit: int) -> Dataset:
    """The first `limit` examples of every split."""
    splits = {
        name: Split(split.text[:limit], split.text_pair and split.text_pair[:limit], split.labels[:limit])
        for name, split in dataset.splits.items()
    }
    return replace(
        dataset,
        splits=splits,
        description=f"{dataset.description}, the first {limit} of each",
        fingerprint=fingerprint(dataset.task, splits),
    )


def lay_out(request: Request, source: TeacherSource, dataset: Dataset, folder: Path, threads: int) -> Inputs:
    """Tokens and teacher in `folder`. A teacher without a head gets a random one: times do not depend on it."""
    tokenizer, length = load_tokenizer(source), min(DataConfig().max_length, source.max_tokens)
    data = tokenize(dataset, tokenizer, source.key, length, folder / "tokens")
    load_source(source, dataset.task, seed=0).model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    (folder / "scratch").mkdir()
    return Inputs(
        data=data.folder,
        teacher=folder / "teacher",
        targets=folder / "targets",
        scratch=folder / "scratch",
        student_layers=request.student_layers,
        batch_size=request.batch_size,
        threads=threads,
    )


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Share of the batches' tokens that are padding, each batch padded to its longest example.

    Args:
        lengths: (n,) tokens of each example.
        batches: rows of each batch.
    """
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1 - sum(int(lengths[rows].sum()) for rows in batches) / padded
