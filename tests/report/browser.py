"""A real browser, without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser(width: int = 1280, height: int = 800) -> Iterator[Any]:
    """A page of Chromium; its test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # A sandbox cannot be had by root, as whom containers run.
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox"] * (os.getuid() == 0))
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        yield page
        chromium.close()


def close_assistant(page: Any) -> None:
    """MLflow's, which takes a quarter of the window."""
    panel = page.get_by_text("MLflow Assistant").locator("xpath=ancestor::*[.//button][1]")
    if panel.count():
        panel.locator("button").last.click()


def keep_picture(page: Any, name: str, otherwise: Path) -> Path:
    """Save what the page shows as `name`.png: in the folder IKD_SCREENSHOTS, else in `otherwise`."""
    folder = Path(os.environ.get("IKD_SCREENSHOTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
    return folder / f"{name}.png"
