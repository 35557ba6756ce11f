from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.records import TrialRecord
from ikd_ray.report.front_plot import pareto_png
from ikd_ray.report.style import RED
from tests.helpers.sample_records import OBJECTIVES, sweep_record, trial_record


def trial(number: int, regime: str, depth: int, mcc: float, status="finished", **more) -> TrialRecord:
    metrics = {"dev/mcc": mcc, "student/params": 11_000_000 + 1_800_000 * depth} | more
    about = {"id": f"id{number}0123456789", "params": {"regime": regime}, "layer_map": [1] * depth}
    return trial_record(number, metrics, status, **about)


TRIALS = [
    trial(0, "kd", 1, 0.1),
    trial(1, "sid", 3, 0.3),
    trial(2, "hard", 3, 0.2),
    trial(3, "pid", 2, float("nan")),
    trial(4, "id", 1, 0.9, status="failed"),
]


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are saved as PNGs."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    return figures


def texts(figure) -> list[str]:
    return [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]


def test_the_picture_has_the_front_the_teacher_the_regimes_and_units(drawn):
    pareto_png(sweep_record(), TRIALS, pareto_front(TRIALS, OBJECTIVES))
    (figure,) = drawn
    axes = figure.axes[0]
    assert axes.get_xlabel() == "Parameters (millions)"
    assert axes.get_ylabel() == "Matthews correlation, dev"
    shown = texts(figure)
    assert "1L id001234" in shown
    assert "3L id101234" in shown
    assert "teacher mini: 0.41" in shown
    assert "cola: sweep first" in shown
    assert GENERATED_WARNING not in shown
    assert [text.get_text() for text in figure.legends[0].texts] == ["hard", "kd", "sid", "Pareto front"]
    steps = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(steps.get_ydata()) == [0.1, 0.3, 0.3]
    assert list(steps.get_xdata())[:2] == pytest.approx([12.8, 16.4])


def test_the_generated_corpus_has_a_red_banner(drawn):
    png = pareto_png(sweep_record(generated=True), TRIALS, pareto_front(TRIALS, OBJECTIVES))
    assert GENERATED_WARNING in texts(drawn[0])
    top_row = imread(io.BytesIO(png))[5, :, :3]
    assert np.allclose(top_row, to_rgb(RED), atol=0.01)


@pytest.mark.parametrize(
    ("objectives", "labels"),
    [
        ({"student/latency_ms": "min", "dev/mcc": "max"}, ("CPU latency, one sequence (ms)", "Matthews")),
        ({"dev/mcc": "max"}, ("Parameters (millions)", "Matthews")),
        ({"dev/attention_kl": "min", "dev/mcc": "max"}, ("Matthews correlation, dev", "Attention KL (nats)")),
        ({"student/size_mb": "min"}, ("Parameters (millions)", "Size (MB)")),
        (
            {"dev/mcc": "max", "student/latency_ms": "min", "student/params": "min"},
            ("Parameters", "Matthews"),
        ),
    ],
)
def test_axes_follow_the_objectives(drawn, objectives, labels):
    more = {"student/latency_ms": 2.0, "dev/attention_kl": 0.5, "student/size_mb": 45.0}
    trials = [trial(n, "kd", n + 1, 0.1 * n, **more) for n in range(3)]
    pareto_png(sweep_record(objectives=objectives), trials, pareto_front(trials, objectives))
    axes = drawn[0].axes[0]
    assert axes.get_xlabel().startswith(labels[0])
    assert axes.get_ylabel().startswith(labels[1])


def test_labels_of_a_crowded_front_stay_apart(drawn):
    objectives = {"dev/mcc": "max", "student/latency_ms": "min"}
    trials = [trial(n, "kd", 2, 0.1 + 0.02 * n, **{"student/latency_ms": 3 + 0.1 * n}) for n in range(5)]
    pareto_png(sweep_record(objectives=objectives), trials, pareto_front(trials, objectives))
    boxes = [text.get_window_extent() for text in drawn[0].axes[0].texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])


@pytest.mark.parametrize("trials", [[], TRIALS[3:], TRIALS[:1]])
def test_few_trials_and_long_names_are_drawn(trials):
    name = "$\\frac_{" * 20
    strange = sweep_record(name, description=name, teacher={"name": name, "metrics": {}})
    png = pareto_png(strange, trials, pareto_front(trials, OBJECTIVES))
    assert imread(io.BytesIO(png)).shape[:2] == (896, 1408)


def test_matplotlibs_global_state_is_left_alone():
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
