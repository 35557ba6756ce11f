"""Artifacts that all trials of a sweep share: data, teacher, targets, assistants, latencies; as paths and loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ikd_ray.data.tokens import TaskData, open_data
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import load_teacher
from ikd_ray.storage.remote import SharedStorage


@dataclass(frozen=True)
class TeacherArtifacts:
    """Paths of a teacher (or an assistant) and of its targets, relative to the output folder."""

    teacher: Path
    targets: Path
    parts: tuple[str, ...]  # subfolders of `targets`
    attention_stored: bool

    def load_targets(self, output: SharedStorage, data: TaskData, device: torch.device) -> Targets:
        """Load the targets, fetching first what this node lacks."""
        for path in (self.teacher, *(self.targets / part for part in self.parts)):
            output.download(output.folder / path)
        teacher = load_teacher(output.folder / self.teacher)
        return Targets(output.folder / self.targets, data, teacher, self.attention_stored, device)


@dataclass(frozen=True)
class SharedArtifacts:
    """Paths of what every trial needs, relative to the output folder; small enough to be sent with each trial."""

    output: SharedStorage
    tokens: Path
    teacher: TeacherArtifacts
    latency_ms: dict[int, float]  # by student depth
    assistants: dict[int, TeacherArtifacts] = field(default_factory=dict)  # by depth


class LoadedArtifacts:
    """Data and targets as a worker process holds them, each loaded when a trial first needs it.

    What the worker's node lacks is fetched first. Every access may raise an OSError: files may be missing and out of
    reach.
    """

    def __init__(self, shared: SharedArtifacts, device: torch.device) -> None:
        self._shared, self._device = shared, device
        self._assistant_targets: dict[int, Targets] = {}

    @cached_property
    def data(self) -> TaskData:
        """The tokenized data set."""
        folder = self._shared.output.folder / self._shared.tokens
        self._shared.output.download(folder)
        return open_data(folder)

    @cached_property
    def teacher_targets(self) -> Targets:
        """The teacher's targets."""
        return self._shared.teacher.load_targets(self._shared.output, self.data, self._device)

    def assistant_targets(self, layers: int) -> Targets:
        """Return the targets of the assistant with `layers` layers."""
        if layers not in self._assistant_targets:
            self._assistant_targets[layers] = self._shared.assistants[layers].load_targets(
                self._shared.output, self.data, self._device
            )
        return self._assistant_targets[layers]
