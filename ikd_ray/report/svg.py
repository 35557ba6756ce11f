"""Figures as SVG inside of the page, with text as text, and colours for a light and a dark page."""

from __future__ import annotations

import colorsys
import io
import re
import warnings
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HREF = f"{{{XLINK}}}href"
DARK_PAGE = (0.085, 0.10, 0.125)  # red, green and blue: `--page` of page.css on a dark page

_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_VARIABLE = re.compile(r"var\(--c([0-9a-f]{6})")
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_DIGITS = re.compile(r"(\.\d\d)\d+")  # further ones do not show
_LINK, _REFERENCE = re.compile(r"^#([\w.-]+)"), re.compile(r"url\(#([\w.-]+)\)")


def to_svg(figure: Figure, name: str, tips: Mapping[str, str] | None = None) -> str:
    """Return a figure as an `<svg>` element for a page of HTML.

    Its colours are CSS variables, such as `var(--c1f2430,#1f2430)`: without a definition they are those of the figure,
    and `dark_colours` defines them for a dark page. Its ids begin with `name`, so that those of two figures differ.

    Args:
        figure: the figure.
        name: of the figure, unique in the page.
        tips: the title of each link, which browsers show beside the pointer.
    """
    content = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(
            content, format="svg", bbox_inches="tight", pad_inches=0.05, facecolor="none", metadata=metadata
        )
    root = ElementTree.fromstring(_NO_XML.sub("", content.getvalue().decode()))
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    references = {
        reference
        for element in root.iter()
        for key, value in element.attrib.items()
        for reference in (_LINK if key == HREF else _REFERENCE).findall(value[:300])
    }
    for element in root.iter():
        _adapt(element, name, references, tips or {})
    root.attrib.pop("version", None)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows the namespace of an <svg>
    return re.sub(r">\s+<", "><", re.sub(r"<(/?)\w+:", r"<\1", text))


def _adapt(element: ElementTree.Element, name: str, references: set[str], tips: Mapping[str, str]) -> None:
    """Change an element of matplotlib's SVG in place: ids, links, fonts and colours."""
    styles = []  # variables of CSS are not allowed in attributes
    for key, value in list(element.attrib.items()):
        if key == "id":
            del element.attrib[key]
            if value in references:
                element.set("id", f"{name}-{value}")
        elif key == HREF:
            del element.attrib[key]
            is_own = value.startswith("#") and value[1:] in references and element.tag != f"{{{SVG}}}a"
            element.set("href", f"#{name}-{value[1:]}" if is_own else value)
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key in ("style", "fill", "stroke"):
            del element.attrib[key]
            styles.append(_style(value if key == "style" else f"{key}:{value}", name))
        elif key in ("d", "x", "y"):
            element.set(key, _DIGITS.sub(r"\1", value))
        elif key == "transform" and value.startswith("rotate(-0 "):
            del element.attrib[key]
    if styles:
        element.set("style", ";".join(styles))
    if element.tag == f"{{{SVG}}}a":
        element.attrib.pop("target", None)
        if tip := tips.get(element.get("href", "")):
            title = ElementTree.SubElement(element, f"{{{SVG}}}title")
            title.text = tip


def _style(style: str, name: str) -> str:
    """Return declarations of CSS with the page's font and colours."""
    kept = []
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        key, value = key.strip(), value.strip()
        if key == "font":  # matplotlib before 3.10: weight, size and families
            kept += [f"font-weight:{weight}" for weight in re.findall(r"\b(?:bold|\d00)\b", value)]
            kept += [f"font-size:{size}" for size in re.findall(r"[\d.]+px", value)]
        elif key and key != "font-family":
            value = value.replace("url(#", f"url(#{name}-")
            kept.append(f"{key}:{_COLOUR.sub(lambda found: f'var(--c{found[0][1:]},{found[0]})', value)}")
    return ";".join(kept)


def dark_colours(svgs: Iterable[str]) -> dict[str, str]:
    """Return the definition of each colour variable in figures for a dark page: variable -> colour."""
    colours = sorted({colour for svg in svgs for colour in _VARIABLE.findall(svg)})
    return {f"--c{colour}": dark_colour(colour) for colour in colours}


def dark_colour(colour: str) -> str:
    """Return the colour on a dark page, `#rrggbb`, in place of `rrggbb` on a white one.

    White becomes the page's colour and greys the opposite greys; other colours keep their hue and become light enough
    to be told from the page.
    """
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (0, 2, 4))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if max(red, green, blue) - min(red, green, blue) < 0.13:
        mixed = [low + (1 - lightness) * (0.95 - low) for low in DARK_PAGE]
    else:
        mixed = list(colorsys.hls_to_rgb(hue, min(max(lightness, 0.62), 0.8), 0.7 * saturation))
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)
