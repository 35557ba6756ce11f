"""Views of rich in a Jupyter notebook: as HTML, which is drawn again in its place while something goes on.

rich's own live views need ipywidgets there, and its console makes an output of each line.
"""

from __future__ import annotations

import io
import threading
from typing import Any

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

WIDTH, HEIGHT = 100, 30
REFRESH_S = 1.0
# Readable on a white and on a black page: black, red, green, yellow, blue, magenta, cyan, white.
COLORS = TerminalTheme(
    (255, 255, 255),
    (0, 0, 0),
    [
        (128, 128, 128),
        (217, 68, 68),
        (46, 160, 67),
        (191, 135, 0),
        (56, 126, 219),
        (180, 90, 180),
        (23, 150, 165),
        (128, 128, 128),
    ],
)
FORMAT = """\
<pre style="white-space:pre;overflow-x:auto;line-height:normal;\
font-family:Menlo,'DejaVu Sans Mono',consolas,'Courier New',monospace">{code}</pre>
"""


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return Console().is_jupyter


def mime_bundle(view: RenderableType) -> dict[str, str]:
    """Return a view as a notebook shows it: its HTML, and its text for whoever reads the file."""
    console = Console(
        file=io.StringIO(),
        record=True,
        width=WIDTH,
        height=HEIGHT,
        force_jupyter=False,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    console.print(view)
    html = console.export_html(theme=COLORS, code_format=FORMAT, inline_styles=True, clear=False)
    return {"text/html": html, "text/plain": console.export_text().rstrip("\n")}


class NotebookView:
    """Context that shows a view in the cell's output, and draws it again in its place every second.

    With `transient` the place is empty after the block.
    """

    def __init__(self, view: RenderableType, transient: bool = False) -> None:
        self._view, self._transient = view, transient
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="notebook-view", daemon=True)
        self._handle: Any = None

    def __enter__(self) -> None:
        from IPython.display import display  # a notebook has it

        self._handle = display(mime_bundle(self._view), raw=True, display_id=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._update({"text/plain": ""} if self._transient else mime_bundle(self._view))

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_S):
            self._update(mime_bundle(self._view))

    def _update(self, bundle: dict[str, str]) -> None:
        self._handle.update(bundle, raw=True)
