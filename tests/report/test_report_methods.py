"""The report's comparison of methods over seeds: its table, its curves, and what it says of how sure they are."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ikd_ray.analysis import comparison
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, open_analysis
from ikd_ray.report import style
from ikd_ray.report.components import Bold, Table
from ikd_ray.report.figures import curves, errors, front, methods, regimes, search
from ikd_ray.report.markdown import table_text
from ikd_ray.report.page import render
from ikd_ray.report.report import make_report
from ikd_ray.storage.remote import SharedStorage
from tests.helpers.sample_comparison import (
    METHODS,
    edit_trial_records,
    make_comparison,
    mean_and_interval,
    metric_by_seed,
    paired_difference,
)
from tests.helpers.sample_sweep import make_sweep

HOSTILE = '<a href="http://evil.example">|\x1b[31m**SID**</a>\n$\\frac{x}'


def open_weights(sweep: Path, subject: SweepAnalysis) -> ModelLoader:
    return ModelLoader(SharedStorage(str(sweep.parent)), sweep, subject.sweep)


def compared(sweep: Path):
    subject = open_analysis(sweep)
    section = methods.section(subject, open_weights(sweep, subject))
    assert section is not None
    table, picture, *_ = section.parts
    return subject, section, table, picture


def rows_of(table: Table) -> dict[str, dict[str, str]]:
    ((_, rows),) = table.groups
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in rows}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Nine methods with five seeds, each run again with four new ones; nobody changes it."""
    output = tmp_path_factory.mktemp("compared") / "outputs"
    return make_comparison(output, again=4, weights=True)


# The table


def test_the_table_has_the_t_tests_intervals_of_what_was_run_again(sweep):
    subject, _, table, _ = compared(sweep)
    rows = rows_of(table)
    assert list(rows) == ["teacher", *METHODS]
    assert rows["teacher"]["dev/mcc"] == "0.410"
    base = metric_by_seed(subject, "KD", "dev/mcc", again=True)
    assert set(base) == {100, 101, 102, 103}
    for method in METHODS:
        values = metric_by_seed(subject, method, "dev/mcc", again=True)
        assert rows[method]["dev/mcc"] == mean_and_interval(list(values.values()))
        assert rows[method]["seeds"] == "4"
        assert rows[method]["epochs"] == "1"
        assert rows[method]["trials tuned"] == "5"
        kl = metric_by_seed(subject, method, "dev/attention_kl", again=True)
        assert rows[method]["attention KL (nats)"] == mean_and_interval(list(kl.values()))
        if method != "KD":
            assert rows[method]["difference to KD"] == paired_difference(
                subject, method, "KD", lambda t: t.retrained
            )
    assert rows["KD"]["difference to KD"] == "-"


def test_every_method_less_every_other_one(sweep):
    subject, section, *_ = compared(sweep)
    table = section.parts[2]
    assert table.name == "differences"
    ((heading, rows),) = table.groups
    assert heading == "dev/mcc"
    assert table.header == ["less", *METHODS]
    assert [row[0] for row in rows] == list(METHODS)
    for one, *cells in rows:
        for other, cell in zip(METHODS, cells, strict=True):
            expected = "-" if one == other else paired_difference(subject, one, other, lambda t: t.retrained)
            assert cell == expected
            mean, _, half = expected.partition(" ± ")
            assert isinstance(cell, Bold) == (one != other and abs(float(mean)) > float(half))
    assert any(isinstance(cell, Bold) for row in rows for cell in row)
    assert f"of {9 * 8 // 2} one in twenty" in table.caption


def test_one_method_alone_is_less_nothing(tmp_path):
    few = {"KD": METHODS["KD"]}
    _, section, *_ = compared(make_comparison(tmp_path / "outputs", few, seeds=2))
    assert len(section.parts) == 2


def test_errors_shared_with_the_teacher_are_the_mean_over_seeds(sweep):
    subject, section, table, _ = compared(sweep)
    weights = open_weights(sweep, subject)
    labels = weights.dev.labels
    teacher = weights.logits(weights.teacher).argmax(1) != labels
    trials = [t for t in subject.finished if t.method == "PID" and t.retrained]
    shares = [
        100 * errors.overlap(weights.logits(weights.student(t)).argmax(1) != labels, teacher).inherited
        for t in trials
    ]
    cell = rows_of(table)["PID"]["teacher's errors made too (%)"]
    assert cell.startswith(f"{np.mean(shares):.0f} ± ")
    assert not any("not known" in words for words in section.words)


def test_weights_that_are_gone_are_a_dash_and_a_sentence(tmp_path):
    _, section, table, _ = compared(make_comparison(tmp_path / "outputs", seeds=2))
    assert {row["teacher's errors made too (%)"] for row in rows_of(table).values()} == {"-"}
    assert any("not known of all students: The tokenized dev set" in words for words in section.words)


def test_without_trials_run_again_the_best_configuration_s_seeds_count(tmp_path):
    few = {name: METHODS[name] for name in ("KD", "SID")}
    varied = [{"student_layers": n} for n in (1, 3, 2)]
    sweep = make_comparison(tmp_path / "outputs", few, seeds=3, varied=varied)
    subject, section, table, _ = compared(sweep)
    for name, row in rows_of(table).items():
        if name != "teacher":
            best = [
                t.metrics["dev/mcc"] for t in subject.finished if t.method == name and len(t.layer_map) == 3
            ]
            assert (row["layers"], row["dev/mcc"]) == ("3", mean_and_interval(best))
            assert (row["seeds"], row["trials tuned"]) == ("3", "9")
    assert "Where it was trained again" not in section.words[0]
    assert "chosen on the dev set that is shown, which flatters" in table.caption


def test_configurations_are_chosen_by_what_was_held_out_and_the_text_says_so(tmp_path):
    objectives = {"holdout/mcc": "max", "student/params": "min"}
    varied = [{"student_layers": n} for n in (1, 3)]
    sweep = make_comparison(tmp_path / "outputs", {"KD": {}}, 2, varied, objectives=objectives)

    def hold_out(record):
        record["metrics"]["holdout/mcc"] = 1.0 / record["params"]["student_layers"]

    edit_trial_records(sweep, hold_out)
    file = sweep / "sweep.json"
    record = json.loads(file.read_text())
    record["data"]["selection"] = "holdout"
    file.write_text(json.dumps(record))
    _, section, table, _ = compared(sweep)
    assert rows_of(table)["KD"]["layers"] == "1"  # worse on the dev set
    assert "by mean holdout/mcc" in section.words[0]
    assert "chosen on a held-out part of the training set; the dev set was only scored" in table.caption


def test_of_a_task_with_two_metrics_both_are_shown(tmp_path):
    _, section, table, picture = compared(make_comparison(tmp_path / "outputs", seeds=3, task="mrpc"))
    assert list(table.header[2:4]) == ["dev/f1", "dev/accuracy"]
    assert sum("bold for" in words for words in section.words) == 2
    assert struct.unpack(">I", picture.png[16:20])[0] > 1300


def test_the_baseline_is_taught_by_the_teacher_itself(tmp_path):
    assisted = {"KD by an assistant": METHODS["KD by an assistant"], "PID": METHODS["PID"]}
    _, section, table, _ = compared(make_comparison(tmp_path / "outputs", assisted, seeds=2))
    assert not any("difference" in name for name in table.header)
    assert "there is no baseline" in section.words[0]


@pytest.mark.parametrize("clear", [True, False])
def test_bold_is_what_the_intervals_say_is_best(tmp_path, clear):
    few = {name: METHODS[name] for name in ("KD", "ID", "SID")}
    sweep = make_comparison(tmp_path / "outputs", few, seeds=4)

    def rate(record):
        """Seeds differ by more than methods do; SID is better than ID by as much for each seed, or only in the mean."""
        seed = record["params"]["seed"]
        better = {"KD": 0.0, "ID": 0.01, "SID": 0.02 + 0.001 * seed}[record["method"]]
        if not clear and record["method"] == "SID":
            better += 0.1 * (-1) ** seed
        record["metrics"]["dev/mcc"] = 0.1 * seed + better

    edit_trial_records(sweep, rate)
    _, section, table, _ = compared(sweep)
    bold = [name for name, row in rows_of(table).items() if isinstance(row["dev/mcc"], Bold)]
    assert bold == (["SID"] if clear else [])
    said = "In bold for dev/mcc: SID," if clear else "No method is in bold for dev/mcc"
    assert any(words.startswith(said) for words in section.words)
    others = [cell for row in rows_of(table).values() for name, cell in row.items() if name != "dev/mcc"]
    assert not any(isinstance(cell, Bold) for cell in others)


def test_bold_is_by_the_metric_s_own_direction_whatever_students_are_chosen_by(tmp_path):
    few = {name: METHODS[name] for name in ("KD", "SID")}
    ways = {"dev/attention_kl": "min", "dev/mcc": "max"}
    sweep = make_comparison(tmp_path / "outputs", few, again=4, objectives=ways)
    worse = {"KD": 0.0, "SID": 0.3}

    def change(record):
        record["metrics"]["dev/mcc"] = 0.5 - worse[record["method"]] + 0.001 * (record["number"] % 5)

    edit_trial_records(sweep, change)
    subject, _, table, _ = compared(sweep)
    assert (subject.sign, subject.sign_of("dev/mcc"), subject.sign_of("dev/attention_kl")) == (-1, 1, -1)
    bold = [name for name, row in rows_of(table).items() if isinstance(row["dev/mcc"], Bold)]
    assert bold == ["KD"]


def test_seeds_that_were_lost_are_told(tmp_path):
    few = {name: METHODS[name] for name in ("KD", "SID")}
    sweep = make_comparison(tmp_path / "outputs", few, again=4)

    def change(record):
        record["seeds"] = 4 if record["again"] else 5
        if record["method"] == "SID" and record["params"]["seed"] in (101, 103):
            record.update(status="failed", metrics={}, reason="loss became nan")

    edit_trial_records(sweep, change)
    _, section, table, _ = compared(sweep)
    assert [row["seeds"] for row in rows_of(table).values()][1:] == ["4", "2"]
    told_of = [words for words in section.words if "failed" in words]
    assert told_of == [
        "SID: 2 of 4 seeds failed, or have not ended; its means are of the others alone, which may be the lucky ones."
    ]


def test_a_winner_needs_rivals_seeds_and_all_of_the_differences():
    near = {0: 0.50, 1: 0.60, 2: 0.70}
    best = {seed: value + 0.01 for seed, value in near.items()}
    best[2] += 0.001
    assert comparison.winner({"best": best, "near": near, "far": dict.fromkeys(range(3), 0.1)}) == "best"
    assert comparison.winner({"best": best, "near": near}, sign=-1) == "near"
    assert comparison.winner({"best": best}) is None
    assert comparison.winner({"best": best, "near": {7: 0.1, 8: 0.1}}) is None  # no seed in common
    assert comparison.winner({"best": {0: 0.9}, "near": near}) is None
    assert comparison.winner({"best": best, "near": near, "unknown": {0: float("nan")}}) == "best"


def test_seeds_without_methods_compare_regimes(tmp_path):
    few = {name: METHODS[name] for name in ("KD", "SID")}
    sweep = make_comparison(tmp_path / "outputs", few, seeds=3)
    edit_trial_records(sweep, lambda record: record.update(method=""))
    subject, section, table, _ = compared(sweep)
    assert list(rows_of(table)) == ["teacher", "kd", "sid"]
    assert section.words[0].startswith("A row is a regime")
    assert style.looks_of(subject)["sid"][:2] == style.style_of("sid")


def test_a_plain_search_has_no_comparison_and_its_report_none_of_its_files(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=6, weights=False)
    subject = open_analysis(sweep)
    assert methods.section(subject, open_weights(sweep, subject)) is None
    section = search.section(subject)
    assert [part.name for part in section.parts] == ["depth", "agreement"]
    assert section.parts[0].caption.startswith("The best of each regime at each depth")
    assert "nearest" not in front.section(subject, {}).parts[0].caption
    files = make_report(SharedStorage(str(sweep.parent)), sweep)
    assert {file.suffix for file in files} == {".html", ".png"}


def test_methods_of_one_regime_are_told_apart(sweep):
    found = style.looks_of(open_analysis(sweep))
    assert len({look.marker for look in found.values()}) == len(METHODS)
    assert len({look.colour for look in found.values()}) == len(METHODS)
    assert len({str(look.line) for look in found.values()}) == len(METHODS)
    assert found["KD"][:2] == style.style_of("kd")


# Other sections


def test_regimes_have_the_interval_where_trials_are_seeds(tmp_path):
    few = {name: METHODS[name] for name in ("KD", "SID", "SID, soft labels always")}
    subject = open_analysis(make_comparison(tmp_path / "outputs", few, seeds=4, again=3))
    section = regimes.section(subject)
    rows = {row[0]: row for row in dict(section.parts[0].groups)["2 layers"]}
    again = list(metric_by_seed(subject, "KD", "dev/mcc", again=True).values())
    assert (rows["kd"][1], rows["kd"][-1]) == (mean_and_interval(again), "3 seeds")
    both = [t.metrics["dev/mcc"] for t in subject.finished if t.params["regime"] == "sid"]
    assert rows["sid"][1] == f"{np.mean(both):.3f} ± {np.std(both, ddof=1):.3f}"
    assert rows["sid"][-1] == "14 trials"
    assert "95% interval" in section.words[0]


def test_the_front_s_steps_go_through_the_means(sweep):
    subject = open_analysis(sweep)
    traces = front.plot(subject, {}).data
    steps = next(trace for trace in traces if trace.name == "front of these two" and trace.visible)
    best = metric_by_seed(subject, "KD by an assistant", "dev/mcc", again=True)
    assert list(steps.y) == [pytest.approx(np.mean(list(best.values())))]
    assert [trial.retrained for trial in subject.front] == [True]
    assert "the trial nearest to it is the member" in front.section(subject, {}).parts[0].caption


# Files


def test_tables_are_files_that_a_readme_can_include(tmp_path):
    varied = [{"student_layers": n, "train_fraction": part} for n in (1, 2) for part in (0.1, 1.0)]
    sweep = make_comparison(tmp_path / "outputs", seeds=2, varied=varied, generated=True)
    files = {file.name: file for file in make_report(SharedStorage(str(sweep.parent)), sweep)}
    assert {"methods.md", "differences.md", "depth.md", "data-size.md"} < files.keys()
    assert {"methods.png", "depth.png", "data-size.png"} < files.keys()
    warning, table, caption = files["methods.md"].read_text().strip().split("\n\n")
    assert warning == "**GENERATED corpus, not CoLA**"
    header, rule, *rows = table.splitlines()
    assert header.startswith("| method | layers | dev/mcc | difference to KD |")
    assert rule == "|:--|" + "--:|" * (header.count(" | "))
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in ("teacher", *METHODS)]
    assert caption.startswith("± is half the width of the 95% interval")
    assert "**attention KL (nats)**" in files["depth.md"].read_text()


def test_bold_and_strange_cells_in_markdown():
    table = Table(
        "a *caption*", ["a|b", "c"], [("", [["x_y", Bold("0.5 ± 0.1")]]), ("group", [["<b>", "$1"]])]
    )
    assert table_text(table).splitlines() == [
        r"| a\|b | c |",
        "|:--|--:|",
        r"| x\_y | **0.5 ± 0.1** |",
        "| **group** |  |",
        r"| \<b\> | \$1 |",
        "",
        r"a \*caption\*",
    ]


def test_a_method_s_name_is_text_wherever_it_shows(tmp_path):
    few = {HOSTILE: METHODS["SID"], "KD": METHODS["KD"]}
    varied = [{"student_layers": n} for n in (1, 2)]
    sweep = make_comparison(tmp_path / "outputs", few, seeds=2, varied=varied)
    subject = open_analysis(sweep)
    section = methods.section(subject, open_weights(sweep, subject))
    page = render(
        subject, [section, replace(section, key="curve", parts=curves.curve(subject, curves.DEPTH))]
    )
    assert '<a href="http' not in page
    assert "\x1b" not in page
    assert "&lt;a href=" in page
    files = make_report(SharedStorage(str(sweep.parent)), sweep)
    (text,) = [file.read_text() for file in files if file.name == "methods.md"]
    assert "\x1b" not in text
    assert "<" not in text.replace(r"\<", "")
    assert len(text.split("\n\n")[0].splitlines()) == 2 + 3
