"""The student to take, the front, the table of all trials, and learning curves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoModelForSequenceClassification

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.recommendation import recommend
from ikd_ray.analysis.sweep_analysis import open_analysis
from ikd_ray.analysis.teacher_comparison import compare_with_teacher
from ikd_ray.errors import UnavailableError
from ikd_ray.report import style
from ikd_ray.report.components import num_layers
from ikd_ray.report.front_plot import COSTS
from ikd_ray.report.sections.front import front_section, verdict_section
from ikd_ray.report.sections.learning_curves import learning_curves_section
from ikd_ray.report.sections.trials import trials_section
from tests.helpers.report_parts import pictures, table
from tests.helpers.sample_records import edit_trial_records
from tests.helpers.sample_sweep import make_sweep


@pytest.fixture(scope="module")
def front(analysis):
    return front_section(analysis.with_teacher_sizes({"student/params": 90_000.0}))


def test_a_best_student_of_kd_is_not_said_to_beat_regimes_that_were_not_tried(analysis):
    best = analysis.best
    kd = replace(best, params=best.params | {"regime": "kd"})
    only = replace(analysis, trials=[kd], finished=[kd])
    assert "(kd) itself: no other regime was tried." in front_section(only).parts[0].caption


# What to take


def test_the_verdict_has_the_recommendation_and_its_command(analysis):
    (verdict,) = verdict_section(analysis, "else where").parts
    found = recommend(analysis.sweep, analysis.trials)
    assert verdict.title.startswith(f"{found.trial.id}: {found.trial.params['regime']}, ")
    assert found.reason in verdict.reason
    assert verdict.command == (
        f"ikd export --task cola --name first --pick {found.trial.id} --output 'else where'"
    )
    others = [trial for trial in analysis.front if trial.id != found.trial.id]
    assert verdict.others == [
        f"{trial.id}, {compare_with_teacher(trial, analysis.sweep)}" for trial in others
    ]
    assert "--output" not in verdict_section(analysis).parts[0].command


def test_tiles_compare_with_the_teacher_as_far_as_it_is_known(analysis):
    tiles = verdict_section(analysis).parts[0].tiles
    trial = analysis.recommendation.trial
    params, size = (trial.metrics[name] for name in ("student/params", "student/size_mb"))
    # The teacher's are not known.
    assert [tile.value for tile in tiles[:2]] == [f"{params / 1e6:.2g}", "15.0"]
    assert (tiles[1].label, tiles[1].detail) == ("ms a text, on one CPU thread", "")
    kept = trial.metrics["dev/mcc"]
    assert (tiles[2].value, tiles[2].label) == (f"{100 * kept / 0.41:.0f}%", "of the teacher's MCC")
    assert tiles[2].detail == f"MCC {kept:.3f} instead of 0.410"
    sizes = {"student/params": 2 * params, "student/size_mb": 2 * size, "student/latency_ms": 45.0}
    known = analysis.with_teacher_sizes(sizes)
    tiles = verdict_section(known).parts[0].tiles
    assert [(tile.value, tile.label) for tile in tiles[:2]] == [("2.0x", "smaller"), ("3.0x", "faster")]
    assert tiles[1].detail == "15.0 instead of 45.0 ms a text, on one CPU thread"
    assert analysis.sweep.teacher.get("sizes") is None
    assert known.with_teacher_sizes({}).sweep == known.sweep


def test_without_a_metric_on_dev_nothing_is_recommended(analysis):
    sweep = replace(analysis.sweep, objectives={"student/params": "min", "student/latency_ms": "min"})
    section = verdict_section(replace(analysis, sweep=sweep))
    assert section.parts == ()
    assert section.paragraphs[0].startswith(
        "No student is recommended: no objective of the sweep (student/params"
    )


# The front


def test_the_front_is_drawn_against_each_cost(analysis, front):
    picture = pictures(front)["pareto"]
    assert [view.label for view in picture.views] == list(COSTS.values())
    for view, cost in zip(picture.views, COSTS, strict=True):
        label, unit = style.UNITS[cost]
        for figure in (view.wide, view.narrow):
            (axes,) = figure.axes
            assert axes.get_xlabel() == label
            links = {
                link: point
                for markers in axes.collections
                for link, point in zip(markers.get_urls(), markers.get_offsets(), strict=False)
                if link
            }
            expected = {
                f"#trial-{t.number}": (t.metrics[cost] / unit, t.metrics["dev/mcc"])
                for t in analysis.finished
            }
            assert {link: tuple(point) for link, point in links.items()} == expected
            assert expected.keys() == picture.tips.keys()
            steps = next(line for line in axes.lines if line.get_label() == "Pareto front")
            best = pareto_front(analysis.finished, {cost: "min", "dev/mcc": "max"})
            assert list(steps.get_ydata())[:-1] == sorted(trial.metrics["dev/mcc"] for trial in best)
            assert f"teacher: {0.41:.4g}" in [text.get_text() for text in axes.texts]
            legend = [text.get_text() for text in figure.legends[0].texts]
            assert legend[-1] == "recommended"
            assert ("teacher" in legend) == (cost == "student/params")  # whose value alone is known


def test_the_text_beside_the_pointer_has_the_parameters_that_the_regime_uses(analysis, front):
    tips = pictures(front)["pareto"].tips
    member = analysis.front[0]
    text = tips[f"#trial-{member.number}"]
    assert text.startswith(f"{member.id} ({member.params['regime']}, 1 layer), on the front\n")
    assert f"temperature {member.params['temperature']:.4g}" in text
    assert "seed" not in text
    for trial in analysis.finished:
        uses_weight = trial.params["regime"] != "kd"
        assert ("internal_weight" in tips[f"#trial-{trial.number}"]) == uses_weight


def test_the_front_s_table_has_its_numbers(analysis, front):
    (_, others), (heading, members) = table(front).groups
    assert heading == "on the front"
    found = analysis.recommendation.trial.id
    names = [f"{trial.id}{' (recommended)' * (trial.id == found)}" for trial in analysis.front]
    assert [row[0] for row in members] == names
    assert [row[0].href for row in members] == [f"#trial-{trial.number}" for trial in analysis.front]
    assert [row[6] for row in members] == [f"{trial.metrics['dev/mcc']:.3f}" for trial in analysis.front]
    kept = [f"{100 * trial.metrics['dev/mcc'] / 0.41:.0f} %" for trial in analysis.front]
    assert [row[3] for row in members] == kept
    assert [row[0] for row in others] == ["teacher", f"{analysis.baseline.id} (baseline)"]
    assert others[0][7] == "0.09"
    best = analysis.best.metrics["dev/mcc"]
    assert f"{best:.3f}; the teacher has 0.410" in pictures(front)["pareto"].caption


def test_equal_values_get_a_narrow_axis(tmp_path):
    """Six students of one accuracy gave an axis up to 1.8."""
    sweep = make_sweep(tmp_path / "outputs", weights=False)
    edit_trial_records(sweep, lambda record: record["metrics"].update({"dev/mcc": 0.41}))
    view = pictures(front_section(open_analysis(sweep)))["pareto"].views[0]
    low, high = view.wide.axes[0].get_ylim()
    assert 0.38 < low < 0.41 < high < 0.44


def test_the_teacher_s_size_is_its_file_s(loader):
    model = AutoModelForSequenceClassification.from_pretrained(loader.teacher.weights)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert loader.teacher_size() == {"student/params": count, "student/size_mb": 4 * count / 1e6}


# All trials


def test_the_table_of_all_trials_has_a_row_each_and_the_reasons_of_failures(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", weights=False)

    def fail(record):
        if record["number"] == 3:
            record.update(status="failed", metrics={}, reason="loss became\x1b[31m nan")

    edit_trial_records(sweep, fail)
    analysis = open_analysis(sweep)
    section = trials_section(analysis)
    (all_trials,) = section.parts
    assert all_trials.sortable
    ((_, rows),) = all_trials.groups
    cells = [dict(zip(all_trials.header, row, strict=True)) for row in rows]
    assert [f"trial-{int(row['trial'][1:])}" for row in cells] == list(all_trials.row_ids)
    values = [float(row["dev/mcc"]) for row in cells[:-1]]
    assert values == sorted(values, reverse=True)
    assert len(values) == 5
    assert (cells[-1]["trial"], cells[-1]["state"], cells[-1]["dev/mcc"]) == ("t003", "failed", "-")
    states = {row["trial"]: row["state"] for row in cells}
    assert {id for id, state in states.items() if state} == {"t003", *(trial.id for trial in analysis.front)}
    assert states[analysis.recommendation.trial.id] == "recommended"
    by_regime = {row["regime"]: row for row in cells}
    assert by_regime["kd"]["internal_weight"] == ""
    assert float(by_regime["id"]["internal_weight"]) > 0
    assert list(section.paragraphs) == ["t003 (sid, 1 layer) failed: loss became nan"]


# Learning curves


def test_learning_curves_are_the_dev_metrics_of_each_epoch(analysis):
    picture = pictures(learning_curves_section(analysis))["learning-curves"]
    for figure in (picture.views[0].wide, picture.views[0].narrow):
        metric, nll = figure.axes
        lines = {line.get_label(): line for line in metric.lines}
        for trial in analysis.highlighted:
            line = lines[f"{trial.id} ({trial.params['regime']}, {num_layers(len(trial.layer_map))})"]
            assert list(line.get_ydata()) == [epoch["dev/mcc"] for epoch in trial.history]
            assert list(line.get_xdata()) == list(range(1, len(trial.history) + 1))
        assert len(metric.lines) == len(analysis.finished) + 1  # and the teacher
        assert nll.get_ylabel() == "NLL, dev"
    last = len(analysis.front[0].history)
    assert f"{last} of {last} with dev/mcc" in picture.alt


def test_epochs_without_dev_metrics_are_named(analysis):
    bare = [replace(trial, history=[{"stage": 1.0}]) for trial in analysis.finished]
    with pytest.raises(UnavailableError, match="no dev metrics"):
        learning_curves_section(replace(analysis, finished=bare))


def test_metrics_on_the_test_set_have_a_column_where_they_exist(analysis, front):
    assert "test/mcc" not in table(front).header
    trials = [replace(trial, metrics=trial.metrics | {"test/mcc": 0.125}) for trial in analysis.trials]
    finished = [trial for trial in trials if trial.id in {done.id for done in analysis.finished}]
    tested = table(front_section(replace(analysis, trials=trials, finished=finished)))
    column = tested.header.index("test/mcc")
    assert [row[column] for row in dict(tested.groups)["on the front"]] == ["0.125"] * len(analysis.front)
    assert "test/mcc was measured once, when the sweep had ended" in tested.caption
