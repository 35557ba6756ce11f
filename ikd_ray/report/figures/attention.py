"""Where the teacher and its student look, head by head, in one example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from torch import Tensor

from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, title
from ikd_ray.data.batches import Batch, collate
from ikd_ray.distill.encoder import EncoderOutput
from ikd_ray.distill.losses import attention_kl
from ikd_ray.errors import UsageError
from ikd_ray.formatting import clean
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section
from ikd_ray.report.style import INK, MUTED, new_figure, png
from ikd_ray.tasks import Task

# Tokens, at most -> pairs of maps beside one another, inches of a map, tokens named on an axis.
SIZES = {16: (3, 1.15, 16), 40: (2, 1.85, 26), 512: (2, 2.3, 32)}
COLOURS, NORM = "Blues", PowerNorm(0.5, 0, 1)  # a square root, so that weak attention shows


@dataclass(frozen=True)
class Example:
    """What both models read."""

    tokens: list[str]
    batch: Batch
    about: str  # where it comes from
    gold: str = ""


@dataclass(frozen=True)
class Pair:
    """A student layer and its teacher layer: attention (heads, L, L), and the divergence of each head in nats."""

    layer: int
    source: int
    student: np.ndarray
    teacher: np.ndarray
    kl: np.ndarray


def check_texts(task: Task, texts: Sequence[str]) -> None:
    """
    Raises:
        UsageError: they are not what an example of the task has.
    """
    need = len(task.text_columns)
    if texts and len(texts) != need:
        how = "a pair: give --sentence twice" if need == 2 else "one sentence: give --sentence once"
        raise UsageError(f"--sentence: an example of {task.name} is {how} (got {len(texts)})")
    if any(not text.strip() for text in texts):
        raise UsageError("--sentence: there is nothing in it; give a text, or leave it out for a dev example")


def section(subject: SweepAnalysis, weights: ModelLoader, texts: Sequence[str]) -> Section:
    """
    Args:
        texts: of the example; none: one of the dev set.

    Raises:
        UnavailableError: weights or tokens are not there any more.
    """
    trial = subject.best
    example = from_texts(subject, weights, texts) if texts else from_dev(subject, weights)
    pairs, answers = look(trial, weights, example)
    about = (
        f"{title(trial)}, the front's best, beside the teacher, on {example.about}: “{' '.join(example.tokens)}”. "
        f"{_answers(subject.task, answers, example)} Each row of a map is a token that looks, each column one that is "
        "looked at; darker is more, on a square-root scale. The number under a pair is the Kullback-Leibler divergence "
        "of the student's attention from the teacher's, the mean over the tokens that look, as in training's loss."
    )
    pictures = [_overview(pairs), *(_layer(pair, example) for pair in pairs)]
    return Section("attention", "Attention, teacher beside student", [about], pictures)


def from_texts(subject: SweepAnalysis, weights: ModelLoader, texts: Sequence[str]) -> Example:
    """An example of the user's own, cut as in training."""
    tokenizer = weights.tokenizer()
    coded = tokenizer(
        *texts, truncation=True, max_length=subject.sweep.data["max_length"], return_token_type_ids=True
    )
    ids, segments = (torch.tensor([coded[name]]) for name in ("input_ids", "token_type_ids"))
    batch = Batch(np.zeros(1, int), ids, segments, torch.ones_like(ids, dtype=torch.bool), torch.zeros(1))
    return Example(_tokens(tokenizer, coded["input_ids"]), batch.to(weights.device), "a given text")


def from_dev(subject: SweepAnalysis, weights: ModelLoader) -> Example:
    """The dev example of median length; of several the first."""
    split, task = weights.dev, subject.task
    middle = np.sort(split.lengths)[len(split) // 2]
    row = int(np.flatnonzero(split.lengths == middle)[0])
    batch = collate(split, np.array([row]), weights.data.pad_id)
    label = split.labels[row]
    gold = f"{label:.3g}" if task.is_regression else task.labels[int(label)]
    about = f"example {row + 1} of the dev set, which is of median length"
    return Example(
        _tokens(weights.tokenizer(), batch.input_ids[0].tolist()), batch.to(weights.device), about, gold
    )


def _tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Names of tokens as people write them: byte-level tokenizers have signs of their own for spaces."""
    names = tokenizer.convert_ids_to_tokens(ids)
    return [clean(tokenizer.convert_tokens_to_string([name])) or clean(name) or "?" for name in names]


@torch.inference_mode()
def look(trial: TrialRecord, weights: ModelLoader, example: Example) -> tuple[list[Pair], dict[str, Tensor]]:
    """Both models' attention in the matched layers, and the logits (labels,) of each."""
    layers = range(1, len(trial.layer_map) + 1)
    student: EncoderOutput = weights.load(weights.student(trial))(example.batch, attention_layers=layers)
    teacher: EncoderOutput = weights.load(weights.teacher)(
        example.batch, attention_layers=set(trial.layer_map)
    )
    pairs = []
    for layer, source in zip(layers, trial.layer_map, strict=True):
        mine, theirs = student.attention[layer], teacher.attention[source]
        heads = range(mine.shape[1])
        found = [
            float(attention_kl(mine[:, [h]], theirs[:, [h]], example.batch.attention_mask)) for h in heads
        ]
        kl = np.maximum(found, 0)  # below it is rounding
        ours, teachers = (maps[0].float().cpu().numpy() for maps in (mine, theirs))
        pairs.append(Pair(layer, source, ours, teachers, kl))
    assert teacher.logits is not None
    assert student.logits is not None
    return pairs, {"The teacher": teacher.logits[0].cpu(), "the student": student.logits[0].cpu()}


def _answers(task: Task, answers: dict[str, Tensor], example: Example) -> str:
    def said(logits: Tensor) -> str:
        if task.is_regression:
            return f"{float(logits[0]):.2f}"
        chances = logits.float().softmax(-1)
        return f"{task.labels[int(chances.argmax())]} ({float(chances.max()):.2f})"

    words = ", ".join(f"{who} says {said(logits)}" for who, logits in answers.items())
    return f"{words}{f'; the gold label is {example.gold}' if example.gold else ''}."


def _overview(pairs: Sequence[Pair]) -> Picture:
    values = np.stack([pair.kl for pair in pairs])
    figure = new_figure(8.8, 1.3 + 0.34 * len(pairs))
    axes = figure.subplots()
    image = axes.imshow(
        values, cmap=COLOURS, aspect="auto", norm=PowerNorm(0.5, 0, max(float(values.max()), 1e-9))
    )
    heads = values.shape[1]
    axes.set_xticks(range(heads), [str(head) for head in range(1, heads + 1)])
    axes.set_yticks(range(len(pairs)), [f"layer {pair.layer} - teacher's {pair.source}" for pair in pairs])
    axes.set_xlabel("Head", color=INK, fontsize=9.5)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=0)
    dark = values.max() * 0.65**2
    for (row, head), value in np.ndenumerate(values):
        colour = "white" if value > dark else INK
        axes.text(head, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("KL (nats)", fontsize=8.5)
    bar.ax.tick_params(labelsize=7.5)
    means = ", ".join(f"layer {pair.layer} {pair.kl.mean():.3f}" for pair in pairs)
    return Picture(
        "attention-kl",
        "Divergence of every head",
        f"Attention KL, nats, of each student head from the teacher's in this one example. Means: {means}.",
        f"Heat map of attention KL, layers by heads. Means: {means}.",
        png(figure),
    )


def _layer(pair: Pair, example: Example) -> Picture:
    heads, length = pair.student.shape[:2]
    pairs, side, named = next(size for most, size in SIZES.items() if length <= most)
    columns = min(pairs, heads)
    rows = math.ceil(heads / columns)
    figure = new_figure(columns * 2 * side + 1.5, rows * (side + 0.45) + 0.7, "compressed")
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat[2 * heads :]:
        axes.set_axis_off()
    for head in range(heads):
        row, column = divmod(head, columns)
        last = head + columns >= heads
        for place, (who, maps) in enumerate((("teacher", pair.teacher), ("student", pair.student))):
            axes = grid[row, 2 * column + place]
            image = axes.imshow(maps[head], cmap=COLOURS, norm=NORM)
            _name_tokens(axes, example.tokens, named, left=column == 0 and place == 0, below=last)
            axes.set_title(f"head {head + 1}, {who}", fontsize=7.5, color=INK, pad=3)
            if place == 0:
                axes.set_xlabel(f"KL {pair.kl[head]:.3f}", fontsize=8, color=INK, labelpad=2)
                axes.xaxis.label.set_x(1.06)  # between the two
    bar = figure.colorbar(image, ax=grid, shrink=0.5, pad=0.01, ticks=(0, 0.1, 0.25, 0.5, 1))
    bar.set_label("attention probability", fontsize=8.5)
    bar.ax.tick_params(labelsize=7.5)
    numbers = ", ".join(f"{head} {value:.3f}" for head, value in enumerate(pair.kl, start=1))
    return Picture(
        f"attention-layer-{pair.layer:02d}",
        f"Student layer {pair.layer} beside teacher layer {pair.source}",
        f"KL of each head, nats: {numbers}; mean {pair.kl.mean():.3f}. {length} tokens"
        f"{'' if length <= named else ', of which not all are named'}.",
        f"Attention maps of {heads} heads, the teacher's beside the student's. KL by head: {numbers}.",
        png(figure),
    )


def _name_tokens(axes: Axes, tokens: Sequence[str], most: int, left: bool, below: bool) -> None:
    places = range(0, len(tokens), math.ceil(len(tokens) / most))
    names = [tokens[place][:14] for place in places]
    size = 6.5 if len(tokens) <= 12 else 5.0
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=size, length=1.5, pad=1.5)
    axes.set_xticks(places, names if below else [], rotation=90, parse_math=False)
    axes.set_yticks(places, names if left else [], parse_math=False)
    axes.spines[:].set_color("#b6bcc8")
