"""How near each layer comes to its teacher's while a student trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ikd_ray.analysis.sweep_analysis import SweepAnalysis, depth, title
from ikd_ray.config import make_trial
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.formatting import short_stage
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section
from ikd_ray.report.style import INK, MARKERS, MUTED, decorate, new_figure, number_axis, png, spans

MOST = 12  # trials that have a figure
FLOOR = 1e-5  # below it a loss is the targets' 16-bit rounding
DEV = (0, (4, 2))
LOSSES = {"kl": "Attention KL (nats)", "cos": "1 - cos², [CLS]"}


def section(subject: SweepAnalysis) -> Section:
    chosen = subject.closely
    shown = [trial for trial in chosen[:MOST] if measured(trial.history)]
    words = (
        "The losses of each student layer against the teacher layer that it is matched with: attention KL to the left, "
        "[CLS] cosine to the right. Above, solid lines are the training losses, which are there only while a stage has "
        "the layer's losses on, and dashed ones the dev set's; below, the dev losses again, a row a layer. Dotted "
        f"upright lines part the stages, named by the layers they match; C is classification. Values below {FLOOR:g} "
        "are drawn there."
    )
    left = len(chosen) - len(shown)
    more = f" Of the front and the best of each regime {left} have no figure here." if left else ""
    return Section("layers", "Layer by layer", [words + more], [_picture(subject, trial) for trial in shown])


def series(trial: TrialRecord, split: str, loss: str) -> np.ndarray:
    """(layers, epochs): a loss of each layer after each epoch, nan where it was not measured."""
    names = [f"{split}/layer_{layer}/{loss}" for layer in range(1, depth(trial) + 1)]
    return np.array([[epoch.get(name, math.nan) for epoch in trial.history] for name in names], dtype=float)


def stages(trial: TrialRecord) -> list[tuple[str, int, int]]:
    """(name, first epoch, last epoch) of each stage that it went through; epochs count from 1."""
    plan = REGIMES[trial.params["regime"]](make_trial(trial.params))
    found: list[tuple[str, int, int]] = []
    for epoch, metrics in enumerate(trial.history, start=1):
        place = int(metrics.get("stage", 1))
        name = plan[place - 1].name if 1 <= place <= len(plan) else str(place)
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], epoch)
        else:
            found.append((name, epoch, epoch))
    return found


def _picture(subject: SweepAnalysis, trial: TrialRecord) -> Picture:
    figure = new_figure(8.8, 3.5 + 0.24 * depth(trial) + 0.9)
    panels = figure.subplots(2, 2, sharex=True, height_ratios=[3.0, 0.8 + 0.24 * depth(trial)])
    for column, (loss, label) in enumerate(LOSSES.items()):
        _curves(panels[0, column], trial, loss, label)
        _heat(figure, panels[1, column], trial, loss)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8.5)
    last = series(trial, "dev", "kl")[:, -1]
    numbers = ", ".join(f"layer {place} {value:.3g}" for place, value in enumerate(last, start=1))
    mapped = ", ".join(f"{place} to {source}" for place, source in enumerate(trial.layer_map, start=1))
    passed = ", ".join(f"{name} (epochs {first} to {end})" for name, first, end in stages(trial))
    what = "on the front" if trial in subject.front else f"the best of {trial.params['regime']}"
    return Picture(
        f"layers-{trial.number:04d}",
        f"{title(trial)}, {what}",
        f"Student layers and their teacher layers: {mapped}. Stages: {passed}. Dev attention KL at the end: {numbers}.",
        f"Losses of each layer of {title(trial)} over {len(trial.history)} epochs. Dev attention KL at the end: "
        f"{numbers}.",
        png(figure),
    )


def _colours(count: int) -> Sequence[tuple[float, ...]]:
    return [tuple(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0, 0.85, count))]


def _curves(axes: Axes, trial: TrialRecord, loss: str, label: str) -> None:
    decorate(axes, "", label)
    epochs = np.arange(1, len(trial.history) + 1)
    trained, dev = (np.maximum(series(trial, split, loss), FLOOR) for split in ("train", "dev"))
    for layer, colour in enumerate(_colours(depth(trial))):
        look: dict[str, Any] = {
            "color": colour,
            "marker": MARKERS[layer % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.4,
        }
        axes.plot(epochs, dev[layer], linestyle=DEV, **look)
        axes.plot(epochs, trained[layer], linestyle="-", **look)
        axes.plot([], [], label=f"layer {layer + 1}", **look)
    axes.plot([], [], color=MUTED, linestyle="-", label="training")
    axes.plot([], [], color=MUTED, linestyle=DEV, label="dev")
    low, high = _range(np.concatenate([trained, dev]))
    axes.set_yscale("log" if spans(low, high) else "linear")
    number_axis(axes.yaxis, low, high)
    _part_stages(axes, stages(trial), named=True)


def _range(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (FLOOR, 1.0)


def _part_stages(
    axes: Axes, passed: Sequence[tuple[str, int, int]], named: bool = False, colour: str = MUTED
) -> None:
    total = passed[-1][2] if passed else 1
    for name, first, last in passed:
        if first > 1:
            axes.axvline(first - 0.5, color=colour, linewidth=1.1, linestyle=":")
        if named:
            room = max(1, int(46 * (last - first + 1) / total))  # characters that fit above the stage
            axes.annotate(
                short_stage(name, room),
                ((first + last) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                color=MUTED,
            )
    axes.set_xlim(0.5, total + 0.5)


def _heat(figure: Figure, axes: Axes, trial: TrialRecord, loss: str) -> None:
    values = series(trial, "dev", loss)
    count, epochs = values.shape
    known = np.maximum(values, FLOOR)  # nan stays nan
    low, high = _range(known)
    norm = LogNorm(low, high) if spans(low, high) else Normalize(low, high)
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad="#d9d9d9")
    axes.set_facecolor("#d9d9d9")
    image = axes.imshow(
        known,
        aspect="auto",
        origin="lower",
        norm=norm,
        cmap=colours,
        extent=(0.5, epochs + 0.5, 0.5, count + 0.5),
    )
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=3)
    axes.set_xlabel("Epoch, over all stages", color=INK, fontsize=9.5)
    axes.set_ylabel("Layer", color=INK, fontsize=9.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    _part_stages(axes, stages(trial), colour="white")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    number_axis(bar.ax.yaxis, low, high)
    bar.ax.tick_params(labelsize=7.5)
    bar.set_label(f"dev {'KL' if loss == 'kl' else '1 - cos²'}", fontsize=8.5)


def measured(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether any epoch has a layer's losses."""
    return any("/layer_" in name for epoch in history for name in epoch)
