"""A headless Chromium for tests of pages: one that is installed on the system, driven by playwright."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def launched_browser() -> Iterator[Browser]:
    """Launch the browser, and close it when the block ends; the test is skipped where playwright or a browser is
    missing. Sound is played without asking for a click, and into nothing. Use from a fixture of scope "module":

        @pytest.fixture(scope="module")
        def browser():
            with launched_browser() as browser:
                yield browser
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e .[dev])")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[
            "--no-sandbox", "--mute-audio", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage",
        ])
        try:
            yield browser
        finally:
            browser.close()
