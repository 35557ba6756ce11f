"""The report's comparison of methods over seeds: its tables, its figure, and its text."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ikd_ray.analysis.error_overlap import dev_errors, error_overlap
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, open_analysis
from ikd_ray.report.components import Bold, Table
from ikd_ray.report.page import render
from ikd_ray.report.sections.curves import DEPTH, curve_parts
from ikd_ray.report.sections.front import front_section
from ikd_ray.report.sections.methods import group_styles, methods_section
from ikd_ray.report.sections.regimes import regimes_section
from ikd_ray.report.sections.search_results import search_section
from ikd_ray.report.style import regime_style
from tests.helpers.sample_comparison import (
    METHODS,
    make_comparison,
    mean_and_interval,
    metric_by_seed,
    paired_difference,
)
from tests.helpers.sample_records import edit_trial_records
from tests.helpers.sample_sweep import make_sweep, open_sweep, report_on

HOSTILE = '<a href="http://evil.example">|\x1b[31m**SID**</a>\n$\\frac{x}'


def compare(sweep: Path) -> SimpleNamespace:
    """Return the analysis, the section, its table, and the table's rows by method and column."""
    analysis, loader = open_sweep(sweep)
    section = methods_section(analysis, loader)
    assert section is not None
    table = section.parts[0]
    ((_, rows),) = table.groups
    by_method = {row[0]: dict(zip(table.header, row, strict=True)) for row in rows}
    return SimpleNamespace(
        analysis=analysis,
        loader=loader,
        section=section,
        table=table,
        rows=by_method,
        text=section.paragraphs,
    )


def some(*names: str) -> dict[str, dict]:
    return {name: METHODS[name] for name in names}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Nine methods with five seeds, each retrained with four new ones; read only."""
    return make_comparison(tmp_path_factory.mktemp("methods") / "outputs", retrained=4, weights=True)


@pytest.fixture(scope="module")
def compared(sweep):
    return compare(sweep)


# The table


def test_the_table_has_scipys_intervals_of_retrained_trials(compared):
    analysis, rows = compared.analysis, compared.rows
    assert list(rows) == ["teacher", *METHODS]
    assert rows["teacher"]["dev/mcc"] == "0.410"
    assert set(metric_by_seed(analysis, "KD", "dev/mcc", retrained=True)) == {100, 101, 102, 103}
    for method in METHODS:
        for column, metric in (("dev/mcc", "dev/mcc"), ("attention KL (nats)", "dev/attention_kl")):
            values = metric_by_seed(analysis, method, metric, retrained=True)
            assert rows[method][column] == mean_and_interval(list(values.values()))
        assert [rows[method][column] for column in ("seeds", "epochs", "trials tuned")] == ["4", "1", "5"]
        difference = paired_difference(analysis, method, "KD", lambda t: t.retrained)
        assert rows[method]["difference to KD"] == ("-" if method == "KD" else difference)


def test_the_differences_table_has_every_pair_of_methods(compared):
    table = compared.section.parts[2]
    assert table.name == "differences"
    ((heading, rows),) = table.groups
    assert heading == "dev/mcc"
    assert table.header == ["less", *METHODS]
    assert [row[0] for row in rows] == list(METHODS)
    for one, *cells in rows:
        for other, cell in zip(METHODS, cells, strict=True):
            expected = paired_difference(compared.analysis, one, other, lambda t: t.retrained)
            assert cell == ("-" if one == other else expected)
            mean, _, half = expected.partition(" ± ")
            assert isinstance(cell, Bold) == (one != other and abs(float(mean)) > float(half))
    assert any(isinstance(cell, Bold) for row in rows for cell in row)
    assert f"of {9 * 8 // 2} one in twenty" in table.caption


def test_a_single_method_has_no_table_of_differences(tmp_path):
    assert len(compare(make_comparison(tmp_path / "outputs", some("KD"), seeds=2)).section.parts) == 2


def test_errors_shared_with_the_teacher_are_the_mean_over_seeds(compared):
    loader = compared.loader
    teacher = dev_errors(loader, loader.teacher)
    trials = [t for t in compared.analysis.finished if t.method == "PID" and t.retrained]
    overlaps = [error_overlap(dev_errors(loader, loader.student(trial)), teacher) for trial in trials]
    mean = np.mean([100 * overlap.shared_fraction for overlap in overlaps])
    assert compared.rows["PID"]["teacher's errors made too (%)"].startswith(f"{mean:.0f} ± ")
    assert not any("not known" in text for text in compared.text)


def test_missing_weights_are_a_dash_and_a_sentence(tmp_path):
    found = compare(make_comparison(tmp_path / "outputs", some("KD", "SID"), seeds=2))
    assert {row["teacher's errors made too (%)"] for row in found.rows.values()} == {"-"}
    assert any("not known of all students: The tokenized dev set" in text for text in found.text)


def test_without_retrained_trials_the_best_configurations_seeds_count(tmp_path):
    varied = [{"student_layers": n} for n in (1, 3, 2)]
    found = compare(make_comparison(tmp_path / "outputs", some("KD", "SID"), seeds=3, varied=varied))
    for name in ("KD", "SID"):
        trials = [t for t in found.analysis.finished if t.method == name and len(t.layer_map) == 3]
        expected = ["3", mean_and_interval([t.metrics["dev/mcc"] for t in trials]), "3", "9"]
        columns = ("layers", "dev/mcc", "seeds", "trials tuned")
        assert [found.rows[name][column] for column in columns] == expected
    assert "trained again" not in found.text[0]
    assert "chosen on the dev set that is shown, which flatters" in found.table.caption


def test_configurations_are_chosen_on_held_out_data_and_the_text_says_so(tmp_path):
    objectives = {"holdout/mcc": "max", "student/params": "min"}
    varied = [{"student_layers": n} for n in (1, 3)]
    changes = {"objectives": objectives, "selection": "holdout"}
    sweep = make_comparison(tmp_path / "outputs", {"KD": {}}, 2, varied, **changes)

    def add_holdout(record):
        record["metrics"]["holdout/mcc"] = 1.0 / record["params"]["student_layers"]

    edit_trial_records(sweep, add_holdout)
    found = compare(sweep)
    assert found.rows["KD"]["layers"] == "1"  # worse on the dev set
    assert "by mean holdout/mcc" in found.text[0]
    assert "chosen on a held-out part of the training set; the dev set was only scored" in found.table.caption


def test_both_metrics_of_a_task_with_two_are_shown(tmp_path):
    found = compare(make_comparison(tmp_path / "outputs", some("KD", "SID"), seeds=3, task="mrpc"))
    assert list(found.table.header[2:4]) == ["dev/f1", "dev/accuracy"]
    assert sum("bold for" in text for text in found.text) == 2
    assert struct.unpack(">I", found.section.parts[1].png[16:20])[0] > 1300


def test_a_student_of_an_assistant_is_no_baseline(tmp_path):
    found = compare(make_comparison(tmp_path / "outputs", some("KD by an assistant", "PID"), seeds=2))
    assert not any("difference" in name for name in found.table.header)
    assert "there is no baseline" in found.text[0]


@pytest.mark.parametrize("clear", [True, False])
def test_a_method_is_bold_if_all_intervals_exclude_zero(tmp_path, clear):
    sweep = make_comparison(tmp_path / "outputs", some("KD", "ID", "SID"), seeds=4)

    def rate(record):
        """Let seeds differ by more than methods; SID is better than ID for each seed, or only on average."""
        seed = record["params"]["seed"]
        better = {"KD": 0.0, "ID": 0.01, "SID": 0.02 + 0.001 * seed}[record["method"]]
        if not clear and record["method"] == "SID":
            better += 0.1 * (-1) ** seed
        record["metrics"]["dev/mcc"] = 0.1 * seed + better

    edit_trial_records(sweep, rate)
    found = compare(sweep)
    bold = [
        (name, column) for name, row in found.rows.items() for column in row if isinstance(row[column], Bold)
    ]
    assert bold == ([("SID", "dev/mcc")] if clear else [])
    expected = "In bold for dev/mcc: SID," if clear else "No method is in bold for dev/mcc"
    assert any(text.startswith(expected) for text in found.text)


def test_bold_follows_the_direction_of_its_own_metric(tmp_path):
    objectives = {"dev/attention_kl": "min", "dev/mcc": "max"}
    sweep = make_comparison(tmp_path / "outputs", some("KD", "SID"), retrained=4, objectives=objectives)
    worse = {"KD": 0.0, "SID": 0.3}

    def change(record):
        record["metrics"]["dev/mcc"] = 0.5 - worse[record["method"]] + 0.001 * (record["number"] % 5)

    edit_trial_records(sweep, change)
    found = compare(sweep)
    metrics = (found.analysis.selection_metric, "dev/mcc", "dev/attention_kl")
    assert [found.analysis.direction(metric) for metric in metrics] == ["min", "max", "min"]
    assert [name for name, row in found.rows.items() if isinstance(row["dev/mcc"], Bold)] == ["KD"]


def test_lost_seeds_are_named(tmp_path):
    sweep = make_comparison(tmp_path / "outputs", some("KD", "SID"), retrained=4)

    def change(record):
        record["seeds"] = 4 if record["again"] else 5
        if record["method"] == "SID" and record["params"]["seed"] in (101, 103):
            record.update(status="failed", metrics={}, reason="loss became nan")

    edit_trial_records(sweep, change)
    found = compare(sweep)
    assert [row["seeds"] for row in found.rows.values()][1:] == ["4", "2"]
    assert [text for text in found.text if "failed" in text] == [
        "SID: 2 of 4 seeds failed, or have not ended; its means are of the others alone, which may be the lucky ones."
    ]


def test_without_methods_regimes_are_compared(tmp_path):
    sweep = make_comparison(tmp_path / "outputs", some("KD", "SID"), seeds=3)
    edit_trial_records(sweep, lambda record: record.update(method=""))
    found = compare(sweep)
    assert list(found.rows) == ["teacher", "kd", "sid"]
    assert found.text[0].startswith("A row is a regime")
    assert group_styles(found.analysis)["sid"] == regime_style("sid")


def test_a_search_without_methods_or_seeds_has_no_comparison(tmp_path):
    analysis, loader = open_sweep(make_sweep(tmp_path / "outputs", trials=6, weights=False))
    assert methods_section(analysis, loader) is None
    depth, agreement = search_section(analysis).parts
    assert (depth.name, agreement.name) == ("depth", "agreement")
    assert depth.caption.startswith("The best of each regime at each depth")
    assert "nearest" not in front_section(analysis).parts[0].caption


def test_methods_of_one_regime_differ_in_colour_marker_and_line(compared):
    styles = group_styles(compared.analysis)
    for field in ("colour", "marker", "line"):
        assert len({str(getattr(style, field)) for style in styles.values()}) == len(METHODS)
    assert styles["KD"] == regime_style("kd")


# Other sections


def test_regimes_have_intervals_where_their_trials_are_seeds(tmp_path):
    few = some("KD", "SID", "SID, soft labels always")
    analysis = open_analysis(make_comparison(tmp_path / "outputs", few, seeds=4, retrained=3))
    section = regimes_section(analysis)
    rows = {row[0]: row for row in dict(section.parts[0].groups)["2 layers"]}
    retrained = list(metric_by_seed(analysis, "KD", "dev/mcc", retrained=True).values())
    assert (rows["kd"][1], rows["kd"][-1]) == (mean_and_interval(retrained), "3 seeds")
    both = [t.metrics["dev/mcc"] for t in analysis.finished if t.params["regime"] == "sid"]
    assert rows["sid"][1] == f"{np.mean(both):.3f} ± {np.std(both, ddof=1):.3f}"
    assert rows["sid"][-1] == "14 trials"
    assert "95% interval" in section.paragraphs[0]


def test_the_front_s_steps_go_through_the_means(compared):
    analysis: SweepAnalysis = compared.analysis
    picture = front_section(analysis).parts[0]
    (axes,) = picture.views[0].wide.axes
    steps = next(line for line in axes.lines if line.get_label() == "Pareto front")
    best = metric_by_seed(analysis, "KD by an assistant", "dev/mcc", retrained=True)
    assert steps.get_ydata()[0] == pytest.approx(np.mean(list(best.values())))
    assert [trial.retrained for trial in analysis.front] == [True]
    assert "the trial nearest to it is the member" in picture.caption


# Files


def test_tables_are_written_as_markdown(tmp_path):
    varied = [{"student_layers": n, "train_fraction": part} for n in (1, 2) for part in (0.1, 1.0)]
    few = some("KD", "SID")
    files = report_on(make_comparison(tmp_path / "outputs", few, seeds=2, varied=varied, generated=True))
    names = ("methods", "depth", "data-size")
    assert {"differences.md", *(f"{name}.{kind}" for name in names for kind in ("md", "png"))} < files.keys()
    warning, table, caption = files["methods.md"].read_text().strip().split("\n\n")
    assert warning == "**GENERATED corpus, not CoLA**"
    header, rule, *rows = table.splitlines()
    assert header.startswith("| method | layers | dev/mcc | difference to KD |")
    assert rule == "|:--|" + "--:|" * (header.count(" | "))
    assert [row.split(" | ")[0] for row in rows] == ["| teacher", "| KD", "| SID"]
    assert caption.startswith("± is half the width of the 95% interval")
    assert "**attention KL (nats)**" in files["depth.md"].read_text()


def test_markdown_escapes_cells_and_marks_bold_ones():
    groups = [("", [["x_y", Bold("0.5 ± 0.1")]]), ("group", [["<b>", "$1"]])]
    assert Table("a *caption*", ["a|b", "c"], groups).markdown().splitlines() == [
        r"| a\|b | c |",
        "|:--|--:|",
        r"| x\_y | **0.5 ± 0.1** |",
        "| **group** |  |",
        r"| \<b\> | \$1 |",
        "",
        r"a \*caption\*",
    ]


def test_a_method_s_name_is_text_wherever_it_shows(tmp_path):
    varied = [{"student_layers": n} for n in (1, 2)]
    methods = {HOSTILE: METHODS["SID"], "KD": METHODS["KD"]}
    found = compare(make_comparison(tmp_path / "outputs", methods, seeds=2, varied=varied))
    found.section.parts.extend(curve_parts(found.analysis, DEPTH))
    page = render(found.analysis, [found.section])
    assert '<a href="http' not in page
    assert "\x1b" not in page
    assert "&lt;a href=" in page
    text = found.table.markdown()
    assert "\x1b" not in text
    assert "<" not in text.replace(r"\<", "")
    assert len(text.split("\n\n")[0].splitlines()) == 2 + 3
