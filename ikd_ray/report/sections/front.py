"""The student to take, and the Pareto front: accuracy against parameters, size and latency."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping

from ikd_ray.analysis.dataframes import has_several_seeds
from ikd_ray.analysis.objectives import LATENCY, SIZE, metric_on_test
from ikd_ray.analysis.recommendation import Recommendation
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, used_params
from ikd_ray.analysis.teacher_comparison import TeacherComparison, compare_with_teacher
from ikd_ray.formatting import MISSING, clean, metric_title, number, plural
from ikd_ray.program import DEFAULT_OUTPUT, installed_command
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import (
    Link,
    Part,
    Picture,
    Section,
    Table,
    Tile,
    Verdict,
    format_number,
    format_size,
    num_layers,
    trial_link,
    trial_title,
)
from ikd_ray.report.front_plot import COSTS, MAX_LINKED, front_views, pareto_png
from ikd_ray.report.style import axis_label

MAX_PARAMS = 8  # of a trial, beside the pointer
MEGABYTES = "student/size_mb"


def verdict_section(analysis: SweepAnalysis, output: str = DEFAULT_OUTPUT) -> Section:
    """Return the section that names the student to take, if nothing else decides, and how it compares.

    `output` is the output folder or URI, for the command that exports the student.
    """
    title, found, sweep = "What to take", analysis.recommendation, analysis.sweep
    lines = {trial.id: f"{clean(trial.id)}, {compare_with_teacher(trial, sweep)}" for trial in analysis.front}
    if found is None:
        objectives = ", ".join(map(clean, sweep.objectives))
        reason = f"No student is recommended: no objective of the sweep ({objectives}) is measured on dev or holdout."
        return Section("verdict", title, [reason, *lines.values()])
    trial = found.trial
    task, name, pick = map(shlex.quote, (sweep.task, sweep.name, trial.id))
    verdict = Verdict(
        f"{clean(trial.id)}: {trial.params['regime']}, {num_layers(len(trial.layer_map))}",
        _tiles(analysis, trial, compare_with_teacher(trial, sweep)),
        _reason(analysis, found),
        clean(installed_command("export", f"--task {task} --name {name} --pick {pick}", output)),
        [line for member, line in lines.items() if member != trial.id],
    )
    return Section("verdict", title, [], [verdict])


def _tiles(analysis: SweepAnalysis, trial: TrialRecord, compared: TeacherComparison) -> list[Tile]:
    """Return size, speed and metric beside the teacher's, each as far as it is known."""
    teacher, student = analysis.sweep.teacher_metrics, trial.metrics

    def pair(metric: str, unit: str, scale: float = 1.0) -> str:
        values = [values.get(metric, math.nan) / scale for values in (student, teacher)]
        known = [format_size(value) for value in values if math.isfinite(value)]
        return f"{' instead of '.join(known)} {unit}" if known else ""

    size = "; ".join(filter(None, [pair(SIZE, "M parameters", 1e6), pair(MEGABYTES, "MB")]))
    speed = pair(LATENCY, "ms a text, on one CPU thread")
    if compared.is_doubtful:
        speed += ". ~: latencies contradict each other, since the machine was busy"
    title = metric_title(compared.metric)
    metric, kept = f"{title} {format_number(compared.student)}", compared.metric_text
    if math.isfinite(compared.teacher):
        metric += f" instead of {format_number(compared.teacher)}"
    if not math.isfinite(compared.kept):
        kept = f"{format_number(compared.student)} {title}"
    tiles = []
    for text, detail in ((compared.size_text, size), (compared.speed_text, speed), (kept, metric)):
        value, _, label = (text or detail).partition(" ")
        if value:
            tiles.append(Tile(value, label, detail if text else ""))
    return tiles


def _reason(analysis: SweepAnalysis, found: Recommendation) -> str:
    text = f"Why: {found.reason}."
    if not found.standard_error:
        text += " The standard error is not known here, so the best one is taken."
    if not analysis.selection_metric.startswith("holdout/") and len(analysis.finished) > 1:
        text += (
            f" It was chosen among {len(analysis.finished)} students on the dev set that it is measured on, which "
            "flatters it a little."
        )
    return text


def front_section(analysis: SweepAnalysis) -> Section:
    """Return the section with the front's figure and its table, the teacher beside it."""
    label = axis_label(analysis.metric)[0]
    objectives = ", ".join(
        f"{clean(name)} {direction}" for name, direction in analysis.sweep.objectives.items()
    )
    linked = "A point" if len(analysis.finished) <= MAX_LINKED else "A point of the front"
    are = "is" if len(analysis.front) == 1 else "are"
    caption = (
        f"{plural(len(analysis.finished), 'finished trial')}; {len(analysis.front)} {are} on the front of the sweep's "
        f"objectives ({objectives}), with dark rims. {_comparison(analysis)} The steps are the best value to be had at "
        f"each cost. {linked} leads to its row in the table of all trials."
    )
    if has_several_seeds(analysis.finished_frame):
        caption += (
            " Of a configuration with several seeds the mean counts, and the trial nearest to it is the member; where "
            "it was run again, with new seeds, these alone count."
        )
    members = ", ".join(_point(analysis, trial) for trial in analysis.front)
    found = analysis.recommendation
    picture = Picture(
        "pareto",
        "Accuracy against cost",
        caption,
        f"Scatter plot of {label} against cost. Members of the front: {members}.",
        front_views(
            analysis.finished,
            analysis.front,
            (analysis.metric, analysis.direction(analysis.metric)),
            analysis.sweep.teacher_metrics,
            found.trial if found else None,
        ),
        pareto_png(analysis.sweep, analysis.trials, analysis.front),
        {trial_link(trial): _tip(analysis, trial) for trial in analysis.finished},
    )
    parts: list[Part] = [picture, _table(analysis)]
    return Section("front", "The Pareto front", [], parts)


def _comparison(analysis: SweepAnalysis) -> str:
    """Compare the best student with the teacher and the baseline, in a sentence."""
    best, baseline, metric = analysis.best, analysis.baseline, analysis.metric
    text = f"The front's best, {trial_title(best)}, has {clean(metric)} {best.metrics[metric]:.3f}"
    if math.isfinite(analysis.teacher_score):
        text += f"; the teacher has {analysis.teacher_score:.3f}"
    if baseline is None:
        return f"{text}; no trial of standard distillation (kd) has finished, so there is no baseline."
    if baseline is best:
        alone = all(trial.params["regime"] == "kd" for trial in analysis.finished)
        others = "no other regime was tried" if alone else "no other regime did better"
        return f"{text}. It is of standard distillation (kd) itself: {others}."
    return f"{text}; the best of standard distillation, {trial_title(baseline)}, has {baseline.metrics[metric]:.3f}."


def _point(analysis: SweepAnalysis, trial: TrialRecord) -> str:
    params = format_size(trial.metrics.get(SIZE, math.nan) / 1e6)
    return f"{trial_title(trial)} {trial.metrics[analysis.metric]:.3f} with {params} M parameters"


def _table(analysis: SweepAnalysis) -> Table:
    sweep, baseline, found = analysis.sweep, analysis.baseline, analysis.recommendation
    on_test = metric_on_test(analysis.metric)
    is_tested = any(on_test in trial.metrics for trial in analysis.front)
    columns = {
        clean(analysis.metric): (analysis.metric, 1.0, ".3f"),
        **({clean(on_test): (on_test, 1.0, ".3f")} if is_tested else {}),
        "params (M)": (SIZE, 1e6, ""),
        "size (MB)": (MEGABYTES, 1.0, ""),
        "latency (ms)": (LATENCY, 1.0, ""),
        "attention KL (nats)": ("dev/attention_kl", 1.0, ".3f"),
        "agrees with teacher": ("dev/teacher_agreement", 1.0, ".3f"),
    }

    def cells(metrics: Mapping[str, float], layers: int) -> list[str]:
        known = {
            name: format_number(value, spec) if spec else format_size(value)
            for name, unit, spec in columns.values()
            for value in [metrics.get(name, math.nan) / unit]
        }
        if layers in sweep.doubtful_latencies and known[LATENCY] != MISSING:
            known[LATENCY] = f"~{known[LATENCY]}"
        return list(known.values())

    def row(trial: TrialRecord, note: str = "") -> list[str]:
        compared, layers = compare_with_teacher(trial, sweep), len(trial.layer_map)
        ratios = [
            f"{100 * compared.kept:.0f} %" if math.isfinite(compared.kept) else MISSING,
            *(
                f"{ratio:.1f}x" if math.isfinite(ratio) else MISSING
                for ratio in (compared.smaller, compared.faster)
            ),
        ]
        name = Link(f"{clean(trial.id)}{note}", trial_link(trial))
        return [name, trial.params["regime"], str(layers), *ratios, *cells(trial.metrics, layers)]

    layers = sweep.teacher["layers"]
    of_teacher = ["" if cell == MISSING else cell for cell in cells(sweep.teacher_metrics, layers)]
    rows = [["teacher", "", str(layers), "", "", "", *of_teacher]]
    if baseline and baseline not in analysis.front:
        rows.append(row(baseline, " (baseline)"))
    on_front = [
        row(trial, " (recommended)" if found and trial.id == found.trial.id else "")
        for trial in analysis.front
    ]
    caption = (
        "The front's members beside their teacher, by size: which share of its metric is left, how many times smaller "
        "and faster. Latency: CPU, one thread, one sequence of at most 128 tokens."
    )
    if is_tested:
        caption += f" {clean(on_test)} was measured once, when the sweep had ended; nothing was chosen by it."
    if sweep.doubtful_latencies:
        caption += " ~: latencies that contradict those of other depths, since the machine was busy."
    header = ["student", "regime", "layers", "of the teacher's", "smaller", "faster", *columns]
    return Table(caption, header, [("", rows), ("on the front", on_front)])


def _tip(analysis: SweepAnalysis, trial: TrialRecord) -> str:
    """Return the text beside the pointer for a finished trial, in lines."""
    used = used_params(trial)
    names = [name for name in analysis.varied_params if name in used][:MAX_PARAMS]
    params = [f"{clean(name, 60)} {_short(used[name])}" for name in names]
    costs = {name: trial.metrics[name] for name in COSTS if math.isfinite(trial.metrics.get(name, math.nan))}
    lines = [
        f"{trial_title(trial)}{', on the front' if trial in analysis.front else ''}",
        f"{clean(analysis.metric)} {trial.metrics[analysis.metric]:.4f}",
        *(f"{axis_label(name)[0]}: {number(value / axis_label(name)[1])}" for name, value in costs.items()),
        *(", ".join(params[start : start + 2]) for start in range(0, len(params), 2)),
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    return number(value) if isinstance(value, float) else clean(value, 60)
