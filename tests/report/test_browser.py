"""The report in a real browser: what plotly draws and how the page fits, which no parser of HTML can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.browser import launch_browser, screenshot_dir
from tests.helpers.sample_comparison import METHODS, make_comparison
from tests.helpers.sample_sweep import make_sweep, report_on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return report_on(make_sweep(tmp_path_factory.mktemp("browser") / "outputs", trials=12))["report.html"]


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as running:
        yield running


@pytest.fixture(params=[1280, 400], ids=["desk", "phone"])
def page(browser, report, request, tmp_path):
    """Open the report; assert afterwards that nothing failed and no host was asked for anything."""
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    opened.problems, opened.asked = [], []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    opened.goto(report.as_uri())
    opened.wait_for_selector("#plot-pareto .main-svg .points path")
    yield opened
    folder = screenshot_dir(tmp_path)
    for section in opened.locator("section").all():
        section.screenshot(path=folder / f"{section.get_attribute('id')}-{request.param}.png")
    opened.close()
    assert opened.problems == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_every_figure_is_shown(page):
    assert page.locator("figure").count() > 10
    broken = "[...document.images].filter(i => i.offsetParent && !(i.complete && i.naturalWidth)).length"
    assert page.evaluate(broken) == 0
    assert page.locator("svg.main-svg").count() >= 3  # front, importances, combinations
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_axis_can_be_switched(page):
    plot = page.locator("#plot-pareto")
    shown = "() => document.querySelectorAll('#plot-pareto .scatterlayer .points path').length"
    before = page.evaluate(shown)
    assert plot.locator(".xtitle").text_content() == "Parameters (millions)"
    for button, title in (("latency", "CPU latency, one sequence (ms)"), ("size", "Size (MB)")):
        plot.locator(".updatemenu-button", has_text=button).click()
        page.wait_for_function(f"document.querySelector('#plot-pareto .xtitle').textContent === '{title}'")
        # The teacher's latency is not known, so it has no star.
        assert page.evaluate(shown) == before - (button == "latency")


def test_the_pointer_shows_a_trial_s_regime_and_metric(page):
    point = page.locator("#plot-pareto .scatterlayer .trace").nth(1).locator(".points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#plot-pareto .hoverlayer .hovertext")
    text = page.locator("#plot-pareto .hoverlayer").text_content()
    assert "regime" in text
    assert "dev/mcc" in text


def test_on_paper_the_plots_are_pictures(page):
    page.emulate_media(media="print")
    assert not page.locator("#plot-pareto").is_visible()
    assert page.locator("#figure-pareto img.paper").is_visible()
    page.emulate_media(media="screen")
    assert page.locator("#plot-pareto").is_visible()


@pytest.mark.parametrize("width", [1280, 400], ids=["desk", "phone"])
def test_a_comparison_of_methods_fits_the_page(browser, tmp_path, width):
    varied = [{"student_layers": layers} for layers in (1, 2, 3)]
    report = report_on(make_comparison(tmp_path / "outputs", varied=varied, task="mrpc"))["report.html"]
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(report.as_uri())
    page.wait_for_selector("#plot-pareto .main-svg .points path")
    compared, paired = page.locator("#methods table").all()
    assert compared.locator("tbody tr").count() == 1 + len(METHODS)
    for metric in ("dev/f1", "dev/accuracy"):
        assert paired.get_by_text(metric, exact=True).is_visible()
    assert paired.locator("tbody tr").count() == 2 * (1 + len(METHODS))
    assert page.locator("#methods td").first.text_content() == "teacher"
    assert page.locator("#figure-depth img").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for name in ("methods", "search"):
        page.locator(f"#{name}").screenshot(path=screenshot_dir(tmp_path) / f"compared-{name}-{width}.png")
    page.close()
    assert problems == []
