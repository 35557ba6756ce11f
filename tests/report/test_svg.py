"""Figures as SVG for the page."""

from __future__ import annotations

import re

import pytest

from ikd_ray.report.style import GREEN, INK, fit_axis, new_figure, stacked_bars
from ikd_ray.report.svg import dark_colour, dark_colours, to_svg


def bars(name: str) -> str:
    figure = new_figure(4, 2)
    axes = figure.subplots()
    stacked_bars(axes, ["first", "second"], {"a": [1, 2], "b": [2, 1], "c": [1, 1]}, 0.7)
    axes.set_title("a title")
    return to_svg(figure, name)


def test_references_stay_within_a_figure():
    """Hatched bars lost their fill once."""
    one, other = bars("one"), bars("other")
    ids, references = (
        set(re.findall(form, one)) for form in (r' id="([^"]*)"', r'(?:url\(|href=")#([^")]*)')
    )
    assert references == ids
    assert len(references) > 3  # clipping, ticks and two hatches
    assert all(name.startswith("one-") for name in ids)
    assert not ids & set(re.findall(r' id="([^"]*)"', other))


def test_text_is_text_in_the_page_s_font():
    svg = bars("text")
    assert re.search(r"<text [^>]*>a title</text>", svg)
    assert "font-family" not in svg
    assert "xmlns" not in svg
    assert "<style" not in svg


def test_colours_are_variables_that_a_dark_page_defines():
    svg = bars("colours")
    assert not re.search(r"(?<!,)#[0-9a-f]{6}\b", svg)
    dark = dark_colours([svg])
    assert f"--c{GREEN[1:].lower()}" in dark
    assert set(dark) == {f"--c{colour}" for colour in re.findall(r"var\(--c([0-9a-f]{6})", svg)}


def brightness(colour: str) -> float:
    return sum(int(colour[start : start + 2], 16) for start in (1, 3, 5)) / 765


def test_a_dark_page_has_light_ink_on_dark_paper():
    assert dark_colour("ffffff") == "#161a20"  # `--page` of page.css
    assert brightness(dark_colour(INK[1:])) > 0.75
    for colour in ("0072b2", "440154", "a00000"):
        assert brightness(dark_colour(colour)) > 0.45


@pytest.mark.parametrize("values", [[0.81] * 6, [0.0], [1e6, 1e6]])
def test_equal_values_have_a_narrow_axis(values):
    axes = new_figure(4, 2).subplots()
    fit_axis(axes.yaxis, [*values, float("nan")])
    low, high = axes.get_ylim()
    assert low < values[0] < high
    assert high - low <= max(0.05, 0.05 * values[0])
