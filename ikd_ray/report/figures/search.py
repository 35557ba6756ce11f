"""What the search tells: depth, agreement, which parameters matter, and which combinations were tried."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import optuna
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from ikd_ray.analysis import comparison
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, depth, title
from ikd_ray.config import sort_regimes
from ikd_ray.errors import UnavailableError, first_line
from ikd_ray.formatting import clean
from ikd_ray.records import STUDY, STUDY_FILE
from ikd_ray.report.components import Picture, Section, Table
from ikd_ray.report.figures import curves
from ikd_ray.report.style import (
    BLUE,
    GRID,
    INK,
    LINES,
    axis_label,
    decorate,
    new_figure,
    number_axis,
    png,
    style_of,
    teacher_line,
)

ENOUGH = 10  # trials below which a forest of trees says nothing about parameters
WIDEST = 12  # dimensions beside one another


def section(subject: SweepAnalysis) -> Section:
    """The depth curve, agreement, and what Optuna draws of its study."""
    words: list[str] = []
    parts = [*_curves(subject), agreement(subject)]
    try:
        study = open_study(subject)
    except UnavailableError as error:
        return Section("search", "The search", [str(error)], parts)
    drawn = _complete(study)
    if len(drawn) < ENOUGH:
        words.append(
            f"The study has {len(drawn)} complete trials. How much each parameter matters, and which combinations did "
            f"well, is not drawn for less than {ENOUGH}."
        )
        return Section("search", "The search", words, parts)
    for draw in (importances, combinations):
        try:
            parts.append(draw(subject, study))
        except UnavailableError as error:
            words.append(str(error))
    return Section("search", "The search", words, parts)


def _curves(subject: SweepAnalysis) -> list[Picture | Table]:
    by_depth = curves.curve(subject, curves.DEPTH) if comparison.is_made(subject) else [depth_curve(subject)]
    return by_depth + curves.curve(subject, curves.DATA_SIZE)


def open_study(subject: SweepAnalysis) -> optuna.Study:
    """A copy, in memory, of what is complete of the sweep's study; its objectives have their names.

    Raises:
        UnavailableError: it is not there any more, or cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = (subject.folder / STUDY_FILE).resolve()
    if not path.is_file():
        raise UnavailableError(f"Optuna's study is not there any more ({path}).")
    try:
        kept = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")
        complete = kept.get_trials(states=(TrialState.COMPLETE,))
        study = optuna.create_study(directions=kept.directions)
    except Exception as error:  # SQLAlchemy's, SQLite's and Optuna's own
        raise UnavailableError(f"Optuna's study {path} cannot be read ({first_line(error)}).") from None
    study.add_trials(complete)
    if len(subject.sweep.objectives) == len(study.directions):
        with _quiet():
            study.set_metric_names([clean(name) for name in subject.sweep.objectives])
    return study


def depth_curve(subject: SweepAnalysis) -> Picture:
    figure = new_figure(8.8, 4.0)
    axes = figure.subplots()
    decorate(axes, "Student layers", axis_label(subject.metric)[0])
    told = []
    for regime in sort_regimes([trial.params["regime"] for trial in subject.finished]):
        colour, marker = style_of(regime)
        group = [trial for trial in subject.finished if trial.params["regime"] == regime]
        layers = sorted({depth(trial) for trial in group})
        best = [
            subject.best_of([t for t in group if depth(t) == count]).metrics[subject.metric]
            for count in layers
        ]
        values = [trial.metrics[subject.metric] for trial in group]
        axes.scatter(
            [depth(trial) for trial in group], values, s=14, c=colour, marker=marker, alpha=0.45, linewidths=0
        )
        axes.plot(
            layers,
            best,
            color=colour,
            marker=marker,
            linestyle=LINES.get(regime, "-"),
            linewidth=1.6,
            label=regime,
        )
        told.append(f"{regime}: " + ", ".join(f"{n} L {v:.3f}" for n, v in zip(layers, best, strict=True)))
    teacher_line(axes, subject.taught, f"teacher ({subject.sweep.teacher['layers']} layers)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    layers = [depth(trial) for trial in subject.finished]
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    caption = (
        "The best of each regime at each depth that it was tried with, and all trials as small markers. "
    )
    caption += f"{'; '.join(told)}."
    return Picture("depth", "What a layer is worth", caption, f"Lines. {caption}", png(figure))


def agreement(subject: SweepAnalysis) -> Picture:
    figure = new_figure(8.8, 4.0)
    axes = figure.subplots()
    across = "Share of dev examples answered as the teacher does"
    if subject.task.is_regression:
        across = "Pearson correlation with the teacher's dev scores"
    decorate(axes, across, axis_label(subject.metric)[0])
    known = [
        trial
        for trial in subject.finished
        if math.isfinite(trial.metrics.get("dev/teacher_agreement", math.nan))
    ]
    for regime in sort_regimes([trial.params["regime"] for trial in known]):
        colour, marker = style_of(regime)
        group = [trial for trial in known if trial.params["regime"] == regime]
        axes.scatter(
            [trial.metrics["dev/teacher_agreement"] for trial in group],
            [trial.metrics[subject.metric] for trial in group],
            s=[46 if trial in subject.front else 28 for trial in group],
            c=colour,
            marker=marker,
            edgecolors=[INK if trial in subject.front else "white" for trial in group],
            linewidths=0.9,
        )
        axes.scatter([], [], s=40, c=colour, marker=marker, label=regime)
    teacher_line(axes, subject.taught)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    told = ", ".join(
        f"{title(t)} {t.metrics['dev/teacher_agreement']:.3f}" for t in known if t in subject.front
    )
    caption = (
        "Agreement with the teacher against the metric; members of the front have dark rims. A student above the line "
        f"beats its teacher where it does not agree with it. Agreement on the front: {told or 'not known'}."
    )
    return Picture(
        "agreement", "Agreement with the teacher", caption, f"Scatter plot. {caption}", png(figure)
    )


def importances(subject: SweepAnalysis, study: optuna.Study) -> Picture:
    """fANOVA, which takes parameters that every trial has."""
    known = {trial.number: trial.metrics[subject.metric] for trial in subject.finished}
    values = {known[trial.number] for trial in _complete(study) if trial.number in known}
    if len(values) < 2:
        raise UnavailableError(
            f"All trials have the same {clean(subject.metric)}: no parameter made a difference."
        )
    given: dict[str, Any] = {
        "evaluator": FanovaImportanceEvaluator(seed=subject.sweep.seed),
        "target": lambda trial: known.get(trial.number, math.nan),  # which need not be an objective
    }
    with _quiet():
        found = optuna.importance.get_param_importances(study, **given)
    if not found:
        raise UnavailableError(
            "No parameter was searched in every trial: there is nothing to compare across all of them."
        )
    given["target_name"] = clean(subject.metric)
    with _quiet(), _drawn_by_optuna() as content:
        plot = optuna.visualization.plot_param_importances(study, **given)
        content(
            optuna.visualization.matplotlib.plot_param_importances(study, **given), 1.2 + 0.36 * len(found)
        )
    plot.update_traces(marker_color=BLUE)
    plot.update_layout(xaxis_title="Share of the variance", yaxis_title=None)
    _restyle(plot, 130 + 34 * len(found))
    shares = ", ".join(f"{clean(name)} {share:.2f}" for name, share in found.items())
    caption = (
        f"Optuna's fANOVA over {len(_complete(study))} trials: the share of the variance of {clean(subject.metric)} "
        f"that a forest of trees lays to each parameter: {shares}. It says how much a parameter matters in the space "
        "searched, not which value is good."
    )
    left = [name for name in _searched(study) if name not in found]
    if left:
        caption += (
            f" Left out: {', '.join(map(clean, left))}; only some regimes have them, and fANOVA compares what every "
            "trial has."
        )
    return Picture("importances", "Which parameters matter", caption, f"Bars. {caption}", content.png, plot)


def combinations(subject: SweepAnalysis, study: optuna.Study) -> Picture:
    """Optuna's parallel coordinates."""
    searched = _searched(study)
    chosen, left = searched[:WIDEST], searched[WIDEST:]
    with _quiet(), _drawn_by_optuna() as content:
        plot = optuna.visualization.plot_parallel_coordinate(study, chosen)
        content(
            optuna.visualization.matplotlib.plot_parallel_coordinate(study, chosen), 4.6, 1.15 * len(chosen)
        )
    _restyle(plot, 460)
    better = "better" if len(study.directions) == 1 else "nearer to the front (Pareto rank 0)"
    caption = (
        f"A line is one of {len(_complete(study))} trials, from the sweep's objectives through its parameters' values; "
        f"darker is {better}. None: the trial's regime does not have that parameter."
    )
    if left:
        caption += f" Left out for want of room: {', '.join(map(clean, left))}."
    alt = f"Parallel coordinates of the objectives and {', '.join(map(clean, chosen))}."
    title = "Which combinations were tried"
    return Picture("combinations", title, caption, alt, content.png, plot, wide=True)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _searched(study: optuna.Study) -> list[str]:
    """Every parameter of any trial, those of most trials first."""
    trials = _complete(study)
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    return sorted(names, key=lambda name: -sum(name in trial.params for trial in trials))


def _restyle(plot: Any, height: int) -> None:
    plot.update_layout(
        template="none",
        title=None,
        height=height,
        font={"color": INK, "family": "system-ui, sans-serif"},
        margin={"l": 10, "r": 10, "t": 24, "b": 10},
    )
    plot.update_xaxes(automargin=True, gridcolor=GRID)
    plot.update_yaxes(automargin=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's remarks on what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Drawing:
    """The PNG of what Optuna drew with matplotlib's global state, which nobody else uses."""

    png = b""

    def __call__(self, axes: Any, height: float, width: float = 8.8) -> None:
        figure = axes.figure
        figure.set_size_inches(max(8.8, width), height)
        for side in ("left", "center"):
            axes.set_title("", loc=side)
        if axes.get_legend():
            axes.get_legend().remove()
        for panel in figure.axes:
            panel.set_facecolor("white")
            panel.tick_params(labelsize=8.5)
            if panel.get_yscale() == "log":
                number_axis(panel.yaxis, *panel.get_ylim())
        self.png = png(figure)


@contextmanager
def _drawn_by_optuna() -> Iterator[_Drawing]:
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    with matplotlib.rc_context():  # Optuna sets a style for all that comes after it
        pyplot.switch_backend("agg")
        try:
            yield _Drawing()
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
