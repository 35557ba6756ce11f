"""A sweep in MLflow's own pages, from a real server in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ikd_ray import records
from ikd_ray.config import Trial
from ikd_ray.records import TrialRecord
from ikd_ray.report.report import make_report
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.tracking.mlflow_internals import VIEW
from ikd_ray.tracking.models import publish_front
from ikd_ray.tracking.tracker import Tracker, log_report
from tests.helpers.browser import close_mlflow_assistant, open_page, save_screenshot
from tests.helpers.mlflow_sweeps import sweep_record
from tests.helpers.sample_students import make_student, write_teacher_tokenizer
from tests.helpers.servers import mlflow_server

pytestmark = pytest.mark.slow

SWEEP = replace(
    sweep_record("f1257"),
    name="first",
    trials=4,
    command="python sweeps/run.py --task cola",
    objectives={"dev/mcc": "max", "student/params": "min"},
)


def trial(number: int, regime: str, layers: int, mcc: float, kl: float) -> TrialRecord:
    """Return a trial of three epochs, in which every layer's attention KL falls from `kl` to a quarter of it."""
    history = [
        {"dev/mcc": mcc * epoch / 3, "stage": 1.0, "trained_epochs": float(epoch), "reused_epochs": 0.0}
        | {f"dev/layer_{layer}/kl": kl * layer / epoch**1.26 for layer in range(1, layers + 1)}
        for epoch in (1, 2, 3)
    ]
    final = {
        "student/params": 1e6 * layers,
        "student/latency_ms": 5.5 * layers,
        "dev/attention_kl": kl,
        "dev/teacher_agreement": 0.9,
    }
    params = Trial.model_validate({"regime": regime, "student_layers": layers}).params()
    times = [1_790_000_000.0 + number * 100 + epoch for epoch in range(3)]
    metrics = history[-1] | final
    return TrialRecord(
        f"t{number:03d}", number, params, [2, 4, 6][:layers], "finished", metrics, history, times
    )


TRIALS = [
    trial(0, "kd", 3, 0.31, 1.8),
    trial(1, "id", 3, 0.28, 0.2),
    trial(2, "pid", 2, 0.25, 0.3),
    trial(3, "sid", 2, 0.11, 0.4),
]
FAILED = replace(trial(4, "kd", 1, 0.5, 1.8), status="failed", reason="loss became nan")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Yield the page of an experiment with a sweep of four trials, three on the front, and the sweep's run."""
    root = tmp_path_factory.mktemp("published")
    write_teacher_tokenizer(root / "cache" / "teachers" / "key")
    (root / "first").mkdir()
    records.write_sweep(root / "first", SWEEP)
    for done in TRIALS:
        records.write_trial(root / "first", done, make_student(len(done.layer_map)).save_pretrained)
    with mlflow_server(root / "server") as server:
        tracker = Tracker(server.uri, "cola")
        tracker.start_sweep(SWEEP)
        tracker.finish_sweep(root / "first", SWEEP, [*TRIALS, FAILED])
        publish_front(tracker, root / "first", SWEEP, TRIALS)
        assert log_report(SWEEP, make_report(SharedStorage(str(root)), root / "first"), server.uri) == ""
        yield f"{server.uri}/#/experiments/{tracker.experiment_id}", tracker.parent_run_id


def view_url(experiment: str, mode: str = "TABLE") -> str:
    return f"{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}&compareRunsMode={mode}"


def test_the_table_of_students_has_its_columns_and_order(published, tmp_path):
    experiment, _ = published
    with open_page(2200, 560) as page:  # MLflow draws only the columns that are in sight
        page.goto(view_url(experiment))
        page.get_by_role("link", name="kd-3L-t000").wait_for()
        close_mlflow_assistant(page)
        page.get_by_text("ikd.front").first.wait_for()
        save_screenshot(page, "mlflow-students", tmp_path)
        text = page.inner_text("body")
    for column in ("dev/mcc", "student/params", "dev/attention_kl", "regime", "student_layers", "lambda"):
        assert column in text
    assert FAILED.name not in text, "finished trials only"
    names = re.findall(r"(?:kd|id|pid|sid)-\dL-t00\d", text)
    assert list(dict.fromkeys(names)) == ["kd-3L-t000", "id-3L-t001", "pid-2L-t002", "sid-2L-t003"], (
        "the best first"
    )


def test_trials_are_nested_below_their_sweep(published, tmp_path):
    experiment, _ = published
    with open_page() as page:
        page.goto(f"{experiment}/runs")
        page.get_by_role("link", name="first").wait_for()
        assert page.get_by_role("link", name="kd-3L-t000").count() == 0
        page.locator(".ag-row").filter(has_text="first").get_by_role("button").first.click()
        page.get_by_role("link", name="kd-3L-t000").first.wait_for()
        save_screenshot(page, "mlflow-nested", tmp_path)
        text = page.inner_text("body")
    for trial in TRIALS:
        assert trial.name in text


def test_two_trials_are_compared(published, tmp_path):
    experiment, _ = published
    with open_page(2200, 900) as page:
        page.goto(view_url(experiment))
        page.get_by_role("link", name="kd-3L-t000").wait_for()
        for name in ("kd-3L-t000", "id-3L-t001"):
            page.locator(".ag-row").filter(has_text=name).locator("input[type=checkbox]").first.check()
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("dev/layer_1/kl").first.wait_for()
        save_screenshot(page, "mlflow-compared", tmp_path)
        text = page.inner_text("body")
    for shown in ("kd-3L-t000", "id-3L-t001", "dev/layer_2/kl", "dev/layer_3/kl"):
        assert shown in text


def test_layer_losses_are_curves(published, tmp_path):
    experiment, _ = published
    with open_page(1200, 1500) as page:
        page.goto(view_url(experiment, "CHART"))
        # Charts out of sight are not drawn.
        page.get_by_placeholder("Search metric charts").fill("layer_[123]/kl")
        close_mlflow_assistant(page)
        page.get_by_text("dev/layer_1/kl").first.wait_for()
        page.locator(".main-svg").first.wait_for()
        page.wait_for_timeout(2000)  # it draws bit by bit
        save_screenshot(page, "mlflow-layers", tmp_path)
        text = page.inner_text("body")
    for layer in (1, 2, 3):
        assert f"kd-3L-t000 (dev/layer_{layer}/kl)" in text
        assert f"id-3L-t001 (dev/layer_{layer}/kl)" in text


def test_the_sweep_says_how_to_read_it(published, tmp_path):
    experiment, parent = published
    with open_page(1280, 1000) as page:
        page.goto(f"{experiment}/runs/{parent}")
        page.get_by_role("heading", name="How to read this").wait_for()
        close_mlflow_assistant(page)
        page.get_by_text("Show more").click()
        save_screenshot(page, "mlflow-sweep", tmp_path)
        assert page.get_by_text("pid-2L-t002: dev/mcc 0.25").count() == 1
        with page.expect_popup() as opened:
            page.get_by_role("link", name="The table of students").click()
        opened.value.get_by_role("link", name="kd-3L-t000").wait_for()


def test_students_on_the_front_are_models(published, tmp_path):
    experiment, _ = published
    with open_page(1500, 700) as page:
        page.goto(f"{experiment}/models")
        page.get_by_text("kd-3L-t000").first.wait_for()
        save_screenshot(page, "mlflow-models", tmp_path)
        assert page.get_by_text("pid-2L-t002").count() > 0
        assert page.get_by_text("sid-2L-t003").count() == 0, "it is not on the front"


def test_the_report_is_an_artifact_that_opens(published, tmp_path):
    experiment, parent = published
    with open_page(1500, 900) as page:
        page.goto(f"{experiment}/runs/{parent}/artifacts/report/report.html")
        frame = page.frame_locator("iframe").first
        frame.get_by_role("heading", name="Regimes at equal depth").wait_for()
        save_screenshot(page, "mlflow-report", tmp_path)
        assert frame.locator("figure").count() > 4
