"""Inputs of every trial of a sweep besides its own configuration: settings, and paths of what trials share.

This module imports no transformers: Ray's processes that only forward a trial's reports unpickle its objects too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ikd_ray.config import Precision, PrefixConfig, SharingConfig
from ikd_ray.distill.epoch_cache import STAGES, EpochCache
from ikd_ray.distill.memory import StepMemory
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.resources import TrialResources

TUNE_FOLDER = ".tune"  # state of Ray Tune and Ray Train in a sweep's folder; removed when the sweep ends

if TYPE_CHECKING:
    from ikd_ray.distill.loop import Distillation


@dataclass(frozen=True)
class TeacherArtifacts:
    """Paths of a teacher (or an assistant) and of its targets, relative to the output folder."""

    teacher: Path
    targets: Path
    parts: tuple[str, ...]  # subfolders of `targets`
    attention_stored: bool


@dataclass(frozen=True)
class SharedArtifacts:
    """Paths of what every trial needs, relative to the output folder; small enough to be sent with each trial."""

    output: SharedStorage
    tokens: Path
    teacher: TeacherArtifacts
    latency_ms: dict[int, float]  # by student depth
    assistants: dict[int, TeacherArtifacts] = field(default_factory=dict)  # by depth


@dataclass(frozen=True)
class TrialContext:
    """Inputs of every trial of a sweep besides its own configuration; sent to each worker."""

    artifacts: SharedArtifacts
    resources: TrialResources
    sweep_name: str
    sweep_id: str  # unique, unlike the name
    prefix: PrefixConfig
    sharing: SharingConfig | None  # None: trials neither save epochs nor reuse saved ones
    memory: StepMemory
    precision: Precision = "auto"
    distillation: type[Distillation] | None = None  # None: `Distillation` itself

    @property
    def sweep(self) -> Path:
        """The sweep's folder on the current node."""
        return self.artifacts.output.folder / self.sweep_name

    def epoch_cache(self, trial: str) -> EpochCache | None:
        """Return the saved epochs as a trial with this id sees them."""
        if self.sharing is None:
            return None
        return EpochCache(
            self.artifacts.output.folder / "cache" / STAGES,
            self.sharing.disk_gb,
            f"{self.sweep_name}/{trial}",
            f"{self.sweep_id}-{trial}",
            self.artifacts.output,
        )
