"""The report in a real browser: how the page fits, its colours and its script, which no parser of HTML can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from ikd_ray.analysis.sweep_analysis import open_analysis
from tests.helpers.browser import launch_browser, screenshot_dir
from tests.helpers.sample_comparison import METHODS, make_comparison
from tests.helpers.sample_sweep import make_sweep, report_on

pytestmark = pytest.mark.slow

FRONT = "#figure-pareto .view:visible svg:visible"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return report_on(make_sweep(tmp_path_factory.mktemp("browser") / "outputs", trials=12))["report.html"]


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as running:
        yield running


@pytest.fixture(params=["light", "dark"])
def mode(request):
    return request.param


@pytest.fixture(params=[1280, 400], ids=["desk", "phone"])
def page(browser, report, request, mode, tmp_path):
    """Open the report; assert afterwards that nothing failed and no host was asked for anything."""
    width = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=mode)
    opened.problems, opened.asked = [], []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    opened.goto(report.as_uri())
    yield opened
    folder = screenshot_dir(tmp_path)
    opened.screenshot(path=folder / f"report-{width}-{mode}.png", full_page=True)
    opened.close()
    assert opened.problems == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []


def test_every_figure_fits_the_page(page):
    assert page.locator("figure").count() > 10
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for figure in page.locator("figure[id]").all():
        shown = figure.locator("svg:visible").count()
        folded = figure.evaluate("figure => !!figure.closest('details:not([open])')")
        assert shown == (0 if folded else 1), figure.get_attribute("id")


def test_text_of_figures_is_legible(page):
    """On a phone, a figure that is drawn for a desk would have letters of 5 pixels."""
    sizes = page.evaluate(
        """[...document.querySelectorAll('main > section:not(#attention) svg text')]
        .filter(text => text.getBoundingClientRect().width)
        .map(text => {
          const scale = text.getScreenCTM();
          return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(scale.a, scale.b);
        })"""
    )
    assert len(sizes) > 50
    assert min(sizes) > 8


def test_colours_follow_the_mode(page, mode):
    def brightness(colour: str) -> int:
        return sum(int(part) for part in colour[4:-1].split(",")[:3]) // 3

    background = "getComputedStyle(document.body).backgroundColor"
    label = f"getComputedStyle(document.querySelector('{FRONT.split(' ')[0]} svg text')).fill"
    paper, ink = brightness(page.evaluate(background)), brightness(page.evaluate(label))
    assert (paper < 60 and ink > 200) if mode == "dark" else (paper > 250 and ink < 60)
    page.emulate_media(media="print")
    assert brightness(page.evaluate(background)) > 250
    assert brightness(page.evaluate(label)) < 60
    page.emulate_media(media="screen")


def test_the_axis_can_be_switched(page):
    figure = page.locator("#figure-pareto")
    for button, title in (("Latency", "CPU latency"), ("Size", "Size (MB)"), ("Parameters", "Parameters (m")):
        figure.get_by_text(button, exact=True).click()
        assert page.locator(FRONT).count() == 1
        assert title in page.locator(FRONT).text_content()


def test_the_pointer_shows_a_trial_and_a_click_leads_to_its_row(page, report):
    best = open_analysis(report.parents[1]).best
    point = page.locator(f"{FRONT} a[href='#trial-{best.number}']")
    point.hover()
    tip = page.locator(".tip")
    assert tip.text_content().startswith(f"{best.id} ({best.params['regime']}, ")
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= page.viewport_size["width"]
    point.click()
    assert page.locator("tr:target th").text_content() == best.id


def test_a_click_on_a_heading_sorts(page):
    column = page.locator("#trials thead th").filter(has_text="latency (ms)")
    place = column.evaluate("head => head.cellIndex") + 1
    values = f"#trials tbody tr > :nth-child({place})"
    for order in ("descending", "ascending"):
        column.locator("button").click()
        shown = [float(text) for text in page.locator(values).all_text_contents()]
        assert shown == sorted(shown, reverse=order == "descending")
        assert column.get_attribute("aria-sort") == order
    first = page.locator("#trials thead th").first
    first.locator("button").click()
    names = page.locator("#trials tbody th").all_text_contents()
    assert names == sorted(names)


def test_without_javascript_nothing_but_the_buttons_is_missing(browser, report):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(FRONT).count() == 1
    assert page.locator("#trials tbody tr").count() == 12
    assert page.locator("button").count() == 0
    context.close()


@pytest.mark.parametrize("width", [1280, 400], ids=["desk", "phone"])
def test_a_comparison_of_methods_fits_the_page(browser, tmp_path, width):
    varied = [{"student_layers": layers} for layers in (1, 2, 3)]
    report = report_on(make_comparison(tmp_path / "outputs", varied=varied, task="mrpc"))["report.html"]
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(report.as_uri())
    compared, paired = page.locator("#methods table").all()
    assert compared.locator("tbody tr").count() == 1 + len(METHODS)
    for metric in ("dev/f1", "dev/accuracy"):
        assert paired.get_by_text(metric, exact=True).is_visible()
    assert paired.locator("tbody tr").count() == 2 * (1 + len(METHODS))
    assert page.locator("#methods tbody th").first.text_content() == "teacher"
    assert page.locator("#figure-depth svg:visible").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for name in ("methods", "search"):
        page.locator(f"#{name}").screenshot(path=screenshot_dir(tmp_path) / f"compared-{name}-{width}.png")
    page.close()
    assert problems == []
