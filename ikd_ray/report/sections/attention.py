"""Attention maps of the teacher beside its student's, in one example."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from torch import Tensor

from ikd_ray.analysis.attention_maps import (
    Example,
    LayerAttention,
    compare_attention,
    example_from_dev,
    example_from_texts,
)
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.report.components import Fold, Picture, Section, View, trial_title
from ikd_ray.report.style import FRAME, INK, MUTED, WIDE, colour_bar, new_figure
from ikd_ray.tasks import Task

MAP_SIZES = {16: (3, 1.15, 16), 40: (2, 1.85, 26), 512: (2, 2.3, 32)}
"""Most tokens -> pairs of maps in a row, inches of a map, most tokens named on an axis."""

COLOURS = "Blues"
SQUARE_ROOT = PowerNorm(0.5, 0, 1)  # so that weak attention shows


def attention_section(analysis: SweepAnalysis, loader: ModelLoader, texts: Sequence[str]) -> Section:
    """Return the section that compares the attention of the front's best student with its teacher's.

    It is drawn for `texts`, one text or a pair, or if empty for a dev example.

    Raises:
        UnavailableError: weights or tokens are missing.
    """
    trial = analysis.best
    example = example_from_texts(analysis, loader, texts) if texts else example_from_dev(analysis, loader)
    layers, teacher, student = compare_attention(trial, loader, example)
    answers = f"The teacher says {_answer(analysis.task, teacher)}, the student says {_answer(analysis.task, student)}"
    gold = f"; the gold label is {example.gold}" if example.gold else ""
    text = (
        f"{trial_title(trial)}, the front's best, beside the teacher, on {example.description}: "
        f"“{' '.join(example.tokens)}”. {answers}{gold}. Each row of a map is a token that looks, each column one that "
        "is looked at; a stronger blue is more, on a square-root scale. The number under a pair is the "
        "Kullback-Leibler divergence of the student's attention from the teacher's, the mean over the tokens that "
        "look, as in training's loss."
    )
    maps = Fold("Attention maps, head by head", [_layer_maps(layer, example) for layer in layers])
    rows = frozenset() if example.row is None else frozenset([example.row])
    return Section("attention", "Attention, teacher beside student", [text], [_overview(layers), maps], rows)


def _answer(task: Task, logits: Tensor) -> str:
    if task.is_regression:
        return f"{float(logits[0]):.2f}"
    probabilities = logits.float().softmax(-1)
    return f"{task.labels[int(probabilities.argmax())]} ({float(probabilities.max()):.2f})"


def _overview(layers: Sequence[LayerAttention]) -> Picture:
    values = np.stack([layer.kl for layer in layers])
    figure = new_figure(WIDE, 1.3 + 0.34 * len(layers))
    axes = figure.subplots()
    highest = float(values.max())
    norm = PowerNorm(0.5, 0, max(highest, 1e-9))
    image = axes.imshow(values, cmap=COLOURS, aspect="auto", norm=norm, interpolation="none")
    heads = values.shape[1]
    axes.set_xticks(range(heads), [str(head) for head in range(1, heads + 1)])
    names = [f"layer {layer.layer} - teacher's {layer.teacher_layer}" for layer in layers]
    axes.set_yticks(range(len(layers)), names)
    axes.set_xlabel("Head", color=INK, fontsize=9.5)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=0)
    for (row, head), value in np.ndenumerate(values):
        colour = "white" if value > highest * 0.65**2 else INK
        axes.text(head, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    colour_bar(figure, image, axes, "KL (nats)")
    means = ", ".join(f"layer {layer.layer} {layer.kl.mean():.3f}" for layer in layers)
    return Picture(
        "attention-kl",
        "Divergence of every head",
        f"Attention KL, nats, of each student head from the teacher's in this one example. Means: {means}.",
        f"Heat map of attention KL, layers by heads. Means: {means}.",
        [View(figure)],
    )


def _layer_maps(layer: LayerAttention, example: Example) -> Picture:
    heads, length = layer.student.shape[:2]
    pairs, side, most_named = next(size for most, size in MAP_SIZES.items() if length <= most)
    columns = min(pairs, heads)
    rows = math.ceil(heads / columns)
    figure = new_figure(columns * 2 * side + 1.5, rows * (side + 0.45) + 0.7, "compressed")
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat[2 * heads :]:
        axes.set_axis_off()
    for head in range(heads):
        row, column = divmod(head, columns)
        is_last = head + columns >= heads
        for side_index, (model, maps) in enumerate((("teacher", layer.teacher), ("student", layer.student))):
            axes = grid[row, 2 * column + side_index]
            image = axes.imshow(maps[head], cmap=COLOURS, norm=SQUARE_ROOT, interpolation="none")
            is_first = column == 0 and side_index == 0
            _name_tokens(axes, example.tokens, most_named, left=is_first, below=is_last)
            axes.set_title(f"head {head + 1}, {model}", fontsize=7.5, color=INK, pad=3)
            if model == "teacher":
                axes.set_xlabel(f"KL {layer.kl[head]:.3f}", fontsize=8, color=INK, labelpad=2)
                axes.xaxis.label.set_x(1.06)  # between the two maps
    ticks = (0, 0.1, 0.25, 0.5, 1)
    colour_bar(figure, image, grid, "attention probability", shrink=0.5, pad=0.01, ticks=ticks)
    numbers = ", ".join(f"{head} {value:.3f}" for head, value in enumerate(layer.kl, start=1))
    return Picture(
        f"attention-layer-{layer.layer:02d}",
        f"Student layer {layer.layer} beside teacher layer {layer.teacher_layer}",
        f"KL of each head, nats: {numbers}; mean {layer.kl.mean():.3f}. {length} tokens"
        f"{'' if length <= most_named else ', of which not all are named'}.",
        f"Attention maps of {heads} heads, the teacher's beside the student's. KL by head: {numbers}.",
        [View(figure)],
    )


def _name_tokens(axes: Axes, tokens: Sequence[str], most: int, left: bool, below: bool) -> None:
    places = range(0, len(tokens), math.ceil(len(tokens) / most))
    names = [tokens[place][:14] for place in places]
    size = 6.5 if len(tokens) <= 12 else 5.0
    # Every map has a frame of one path and no ticks, which would be most of the page's size.
    axes.tick_params(left=False, bottom=False, labelcolor=INK, labelsize=size, pad=1.5)
    axes.set_xticks(places, names if below else [], rotation=90)
    axes.set_yticks(places, names if left else [])
    axes.spines[:].set_visible(False)
    axes.patch.set(edgecolor=FRAME, linewidth=1.5)
