"""A student beside its teacher: how much smaller and faster it is, and how much of the metric it keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ikd_ray.analysis.objectives import LATENCY, SIZE, dev_metric, direction, main_metric
from ikd_ray.formatting import decimal, metric_title, plural
from ikd_ray.records import SweepRecord, TrialRecord


@dataclass(frozen=True)
class TeacherComparison:
    """A student's number of layers and its ratios to the teacher; a ratio is nan where one of the two is not known.

    Attributes:
        layers: the student's number of layers.
        smaller: the teacher's parameters over the student's.
        faster: the teacher's latency over the student's.
        is_doubtful: True if one of the latencies contradicts that of another depth.
        metric: the compared metric, on the dev split where both have it.
        student, teacher: its values.
        higher_is_better: whether more of the metric is better.
    """

    layers: int
    smaller: float
    faster: float
    is_doubtful: bool
    metric: str
    student: float
    teacher: float
    higher_is_better: bool

    @property
    def kept(self) -> float:
        """The student's share of the teacher's metric; nan where a share says nothing: of a loss, or of nothing."""
        is_share = self.higher_is_better and self.teacher > 0 and self.student >= 0
        return self.student / self.teacher if is_share else math.nan

    def __str__(self) -> str:
        """Return text such as `3 layers: 1.3x smaller, 2.0x faster, 99% of the teacher's macro-F1`."""
        parts = [self.size_text, self.speed_text, self.metric_text]
        return f"{plural(self.layers, 'layer')}: {', '.join(part for part in parts if part)}"

    @property
    def size_text(self) -> str:
        """Text such as `1.3x smaller`; empty if a size is not known."""
        return _ratio(self.smaller, "smaller", "larger")

    @property
    def speed_text(self) -> str:
        """Text such as `2.0x faster`, with `~` where a latency is doubtful; empty if a latency is not known."""
        text = _ratio(self.faster, "faster", "slower")
        return f"~{text}" if text and self.is_doubtful else text

    @property
    def metric_text(self) -> str:
        """Text such as `99% of the teacher's MCC`, or both values if a share says nothing; empty if unknown."""
        title = metric_title(self.metric)
        if math.isfinite(self.kept):
            return f"{100 * self.kept:.0f}% of the teacher's {title}"
        if math.isfinite(self.student) and math.isfinite(self.teacher):
            return f"{title} {decimal(self.student)}, the teacher's {decimal(self.teacher)}"
        return ""


def compare_with_teacher(trial: TrialRecord, sweep: SweepRecord) -> TeacherComparison:
    """Compare a finished trial's student with the teacher, by the sweep's main metric."""
    main, layers = main_metric(sweep.objectives), len(trial.layer_map)
    both = [
        name for name in (dev_metric(main), main) if name in trial.metrics and name in sweep.teacher_metrics
    ]
    metric = both[0] if both else main
    return TeacherComparison(
        layers=layers,
        smaller=_over(sweep.teacher_metrics.get(SIZE), trial.metrics.get(SIZE)),
        faster=_over(sweep.teacher_metrics.get(LATENCY), trial.metrics.get(LATENCY)),
        is_doubtful=not sweep.doubtful_latencies.isdisjoint({layers, sweep.teacher.get("layers")}),
        metric=metric,
        student=trial.metrics.get(metric, math.nan),
        teacher=sweep.teacher_metrics.get(metric, math.nan),
        higher_is_better=direction(metric, sweep.objectives) == "max",
    )


def _over(teacher: float | None, student: float | None) -> float:
    return teacher / student if teacher and student else math.nan


def _ratio(value: float, more: str, less: str) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.1f}x {more}" if value >= 1 else f"{1 / value:.1f}x {less}"
