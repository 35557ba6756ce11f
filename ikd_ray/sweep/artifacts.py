"""Artifacts that all trials of a sweep share, as a worker process loads them: data, and targets of the teachers."""

from __future__ import annotations

from functools import cached_property

import torch

from ikd_ray.config import Trial
from ikd_ray.data.tokens import TaskData, open_data
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import load_teacher
from ikd_ray.sweep.trial_context import SharedArtifacts, TeacherArtifacts


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
        return self._load_targets(self._shared.teacher)

    def targets_of(self, trial: Trial) -> tuple[Targets, Targets | None]:
        """Return the targets that a trial learns from, and those that it is compared with if these are others.

        An assistant teaches in the teacher's place, but metrics still compare with the teacher.
        """
        if trial.assistant_layers:
            return self.assistant_targets(trial.assistant_layers), self.teacher_targets
        return self.teacher_targets, None

    def assistant_targets(self, layers: int) -> Targets:
        """Return the targets of the assistant with `layers` layers."""
        if layers not in self._assistant_targets:
            self._assistant_targets[layers] = self._load_targets(self._shared.assistants[layers])
        return self._assistant_targets[layers]

    def _load_targets(self, artifacts: TeacherArtifacts) -> Targets:
        """Load a teacher's targets, fetching first what this node lacks."""
        output, data = self._shared.output, self.data
        for path in (artifacts.teacher, *(artifacts.targets / part for part in artifacts.parts)):
            output.download(output.folder / path)
        teacher = load_teacher(output.folder / artifacts.teacher)
        return Targets(
            output.folder / artifacts.targets, data, teacher, artifacts.attention_stored, self._device
        )
