"""The losses of each student layer against its teacher layer, epoch by epoch."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ikd_ray.analysis.dataframes import epochs_frame
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.formatting import short_stage
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section, View, trial_title
from ikd_ray.report.style import (
    INK,
    LAYER_MARKERS,
    MUTED,
    WIDE,
    colour_bar,
    decorate,
    fit_axis,
    fit_limits,
    is_log_range,
    legend_below,
    new_figure,
    number_axis,
)

MAX_TRIALS = 12
FLOOR = 1e-5  # losses below it come from the rounding of targets to 16 bits
DASHED = (0, (4, 2))
MISSING_COLOUR = "#d9d9d9"
LOSSES = {"kl": "Attention KL (nats)", "cos": "1 - cos², [CLS]"}


def layers_section(analysis: SweepAnalysis) -> Section:
    """Return the section with a figure for each highlighted trial."""
    candidates = analysis.highlighted
    shown = [trial for trial in candidates[:MAX_TRIALS] if _has_layer_losses(trial)]
    text = (
        "The losses of each student layer against the teacher layer that it is matched with: attention KL, and [CLS] "
        "cosine. Solid lines are the training losses, which are there only while a stage has the layer's losses on, "
        "and dashed ones the dev set's; below them the dev losses again, a row a layer. Dotted upright lines part the "
        f"stages, named by the layers they match; C is classification. Values below {FLOOR:g} are drawn there."
    )
    if left := len(candidates) - len(shown):
        text += f" Of the front and the best of each regime {left} have no figure here."
    return Section("layers", "Layer by layer", [text], [layers_picture(analysis, trial) for trial in shown])


def _has_layer_losses(trial: TrialRecord) -> bool:
    return any("/layer_" in name for epoch in trial.history for name in epoch)


def layer_losses(epochs: pd.DataFrame, layers: int, split: str, loss: str) -> np.ndarray:
    """Return (layers, epochs): a loss, "kl" or "cos", of each layer after each epoch, nan where it was not measured.

    `epochs` has the trial's rows of an `epochs_frame`.
    """
    names = [f"{split}/layer_{layer}/{loss}" for layer in range(1, layers + 1)]
    return epochs.reindex(columns=names).to_numpy(dtype=float).T


def stage_spans(epochs: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Return the name, the first and the last epoch of each stage that a trial went through, counted from 1."""
    change = (epochs["stage_name"] != epochs["stage_name"].shift()).cumsum()
    spans = epochs.groupby(change).agg(
        name=("stage_name", "first"), first=("epoch", "min"), last=("epoch", "max")
    )
    return list(spans.itertuples(index=False, name=None))


def layers_picture(analysis: SweepAnalysis, trial: TrialRecord) -> Picture:
    """Draw the losses of a trial's layers as curves and as heat maps."""
    epochs, layers = epochs_frame([trial]), len(trial.layer_map)
    spans = stage_spans(epochs)

    def draw(width: float) -> Figure:
        heights = [3.0, 0.8 + 0.24 * layers]
        if width == WIDE:
            figure = new_figure(width, sum(heights) + 0.6)
            panels = figure.subplots(2, 2, sharex=True, height_ratios=heights).T
        else:
            figure = new_figure(width, 1.9 * sum(heights) + 0.3 * layers)
            panels = figure.subplots(4, 1, sharex=True, height_ratios=2 * heights).reshape(2, 2)
        for (curves, heat_map), (loss, label) in zip(panels, LOSSES.items(), strict=True):
            train, dev = (layer_losses(epochs, layers, split, loss) for split in ("train", "dev"))
            _draw_curves(curves, train, dev, label)
            _draw_stages(curves, spans, named=True)
            _draw_heat_map(figure, heat_map, dev, f"dev {'KL' if loss == 'kl' else '1 - cos²'}")
            _draw_stages(heat_map, spans)
        legend_below(figure, [panels[0, 0]], 8.5)
        return figure

    last = layer_losses(epochs, layers, "dev", "kl")[:, -1]
    numbers = ", ".join(f"layer {layer} {value:.3g}" for layer, value in enumerate(last, start=1))
    mapped = ", ".join(f"{layer} to {source}" for layer, source in enumerate(trial.layer_map, start=1))
    stages = ", ".join(f"{name} (epochs {first} to {end})" for name, first, end in spans)
    title = trial_title(trial)
    why = "on the front" if trial in analysis.front else f"the best of {trial.params['regime']}"
    return Picture(
        f"layers-{trial.number:04d}",
        f"{title}, {why}",
        f"Student layers and their teacher layers: {mapped}. Stages: {stages}. Dev attention KL at the end: {numbers}.",
        f"Losses of each layer of {title} over {len(epochs)} epochs. Dev attention KL at the end: {numbers}.",
        [View.of(draw)],
    )


def _draw_curves(axes: Axes, train: np.ndarray, dev: np.ndarray, label: str) -> None:
    decorate(axes, "", label)
    layers, count = train.shape
    epochs = np.arange(1, count + 1)
    train, dev = np.maximum(train, FLOOR), np.maximum(dev, FLOOR)
    for layer, colour in enumerate(matplotlib.colormaps["viridis"](np.linspace(0, 0.85, layers))):
        style: dict[str, Any] = {
            "color": tuple(colour),
            "marker": LAYER_MARKERS[layer % len(LAYER_MARKERS)],
            "markersize": 4,
            "linewidth": 1.4,
        }
        axes.plot(epochs, dev[layer], linestyle=DASHED, **style)
        axes.plot(epochs, train[layer], linestyle="-", **style)
        axes.plot([], [], label=f"layer {layer + 1}", **style)
    axes.plot([], [], color=MUTED, linestyle="-", label="training")
    axes.plot([], [], color=MUTED, linestyle=DASHED, label="dev")
    low, high = _range(np.concatenate([train, dev]))
    if is_log_range(low, high):
        axes.set_yscale("log")
    else:
        fit_axis(axes.yaxis, (low, high))
    number_axis(axes.yaxis, low, high)


def _draw_heat_map(figure: Figure, axes: Axes, losses: np.ndarray, label: str) -> None:
    layers, epochs = losses.shape
    losses = np.maximum(losses, FLOOR)  # nan stays nan
    low, high = _range(losses)
    axes.set_facecolor(MISSING_COLOUR)
    image = axes.imshow(
        losses,
        aspect="auto",
        interpolation="none",
        origin="lower",
        norm=LogNorm(low, high)
        if is_log_range(low, high)
        else Normalize(*(fit_limits((low, high)) or (low, high))),
        cmap=matplotlib.colormaps["Blues"].with_extremes(bad=MISSING_COLOUR),
        extent=(0.5, epochs + 0.5, 0.5, layers + 0.5),
    )
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=3)
    axes.set_xlabel("Epoch, over all stages", color=INK, fontsize=9.5)
    axes.set_ylabel("Layer", color=INK, fontsize=9.5)
    for axis in (axes.yaxis, axes.xaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    bar = colour_bar(figure, image, axes, label)
    number_axis(bar.ax.yaxis, low, high)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest value that is known."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (FLOOR, 1.0)


def _draw_stages(axes: Axes, spans: list[tuple[str, int, int]], named: bool = False) -> None:
    """Draw a dotted line between two stages, and their names above."""
    total = spans[-1][2] if spans else 1
    for name, first, last in spans:
        if first > 1:
            axes.axvline(first - 0.5, color=MUTED, linewidth=1.1, linestyle=":")
        if named:
            characters = max(1, int(46 * (last - first + 1) / total))  # that fit above the stage
            axes.annotate(
                short_stage(name, characters),
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
