"""A real browser without a window."""

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
    """Run Chromium; skip the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # Chromium has no sandbox for root, who runs containers.
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox"] * (os.getuid() == 0))
        yield chromium
        chromium.close()


@contextmanager
def open_page(width: int = 1280, height: int = 800) -> Iterator[Any]:
    """Run Chromium with one page."""
    with launch_browser() as chromium:
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        yield page


def screenshot_dir(default: Path) -> Path:
    """Return the folder for screenshots: IKD_SCREENSHOTS, else `default`."""
    folder = Path(os.environ.get("IKD_SCREENSHOTS") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def close_mlflow_assistant(page: Any) -> None:
    """Close MLflow's assistant, which takes a quarter of the window."""
    panel = page.get_by_text("MLflow Assistant").locator("xpath=ancestor::*[.//button][1]")
    if panel.count():
        panel.locator("button").last.click()


def save_screenshot(page: Any, name: str, default: Path) -> None:
    """Save what the page shows as `name`.png in `screenshot_dir(default)`."""
    page.screenshot(path=screenshot_dir(default) / f"{name}.png")
