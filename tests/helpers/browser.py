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
def launch_browser() -> Iterator[Any]:
    """Chromium; tests are skipped where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # A sandbox cannot be had by root, as whom containers run.
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox"] * (os.getuid() == 0))
        yield chromium
        chromium.close()


@contextmanager
def open_page(width: int = 1280, height: int = 800) -> Iterator[Any]:
    """One page of it."""
    with launch_browser() as chromium:
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        yield page


def screenshot_dir(otherwise: Path) -> Path:
    """Where pictures are kept: in the folder IKD_SCREENSHOTS, else in `otherwise`."""
    folder = Path(os.environ.get("IKD_SCREENSHOTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def close_mlflow_assistant(page: Any) -> None:
    """MLflow's, which takes a quarter of the window."""
    panel = page.get_by_text("MLflow Assistant").locator("xpath=ancestor::*[.//button][1]")
    if panel.count():
        panel.locator("button").last.click()


def save_screenshot(page: Any, name: str, otherwise: Path) -> None:
    """Save what the page shows as `name`.png; see `pictures`."""
    page.screenshot(path=screenshot_dir(otherwise) / f"{name}.png")
