"""Inputs of the measurements: the command line's flags, the data and the teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ikd_ray.config import DataConfig, Device, Precision
from ikd_ray.data.dataset import Dataset
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.tokens import TaskData, open_data, tokenize
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import TeacherSource, find_teacher, load_source, load_teacher, load_tokenizer
from ikd_ray.errors import UsageError
from ikd_ray.tasks import get_task


@dataclass(frozen=True)
class Request:
    """The command line's flags of what is measured."""

    task: str
    data_dir: Path | None = None
    teacher: str | None = None
    limit: int | None = None
    student_layers: int = 3
    batch_size: int = 32
    precision: Precision = "auto"
    device: Device = "cpu"
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """Paths of the prepared inputs and settings of training; cheap to send to a process."""

    data: Path
    teacher: Path
    targets: Path  # empty until they are built
    scratch: Path  # for all other files
    student_layers: int
    batch_size: int
    threads: int
    precision: Precision = "auto"
    device: Device = "cpu"

    @property
    def world(self) -> DistributedContext:
        """One process that trains on the device in the precision."""
        return DistributedContext(device=torch.device(self.device), precision=self.precision)

    def load(self) -> tuple[TaskData, Targets]:
        """Open the data and the teacher's targets."""
        data = open_data(self.data)
        return data, Targets(self.targets, data, load_teacher(self.teacher), device=self.world.device)

    def load_teacher(self) -> Encoder:
        """Load the teacher to the device."""
        return load_teacher(self.teacher).to(self.world.device)

    def layer_map(self) -> tuple[int, ...]:
        """Return the teacher layer of each student layer, both counted from 1."""
        return layer_map(self.student_layers, len(load_teacher(self.teacher).layers))


def find_inputs(request: Request) -> tuple[TeacherSource, Dataset]:
    """Find the teacher and load the examples, cut to the limit; nothing is written.

    Raises:
        UsageError: a flag is wrong.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: PyTorch finds no GPU; install PyTorch for CUDA on a machine that has one, or leave it out"
        )
    task = get_task(request.task)
    source = find_teacher(request.teacher, task)
    if not 1 <= request.student_layers <= source.layers:
        raise UsageError(
            f"--student-layers {request.student_layers}: the teacher {source.name} has {source.layers} "
            f"layers; give 1 to {source.layers}"
        )
    dataset = load_dataset(task, request.data_dir)
    if request.limit is None:
        return source, dataset
    splits = {
        name: split.select(np.arange(min(request.limit, len(split))))
        for name, split in dataset.splits.items()
    }
    description = f"{dataset.description}, the first {request.limit} of each"
    return source, replace(dataset, splits=splits, description=description)


def prepare_inputs(
    request: Request, source: TeacherSource, dataset: Dataset, folder: Path, threads: int
) -> Inputs:
    """Tokenize the data and save the teacher below `folder`.

    A teacher without a classifier gets a random one: times do not depend on it.
    """
    tokenizer, max_length = load_tokenizer(source), min(DataConfig().max_length, source.max_tokens)
    data = tokenize(dataset, tokenizer, source.key, max_length, folder / "tokens")
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
        precision=request.precision,
        device=request.device,
    )
