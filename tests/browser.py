"""A page as a browser sees it: what it drew, what it said, and what it asked of the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",  # root may not have one, and a container often cannot
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1280, 900), (390, 844)


@dataclass
class Seen:
    """An open page, and what happened on it."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """What was said that is no mere warning: of those, Vega-Lite has some about facets."""
        return [line for line in self.said if not line.startswith("warning:")]

    def drawn(self) -> str:
        """Wait until the page has tried to draw every chart; whether it could."""
        self.page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
        return self.page.evaluate("document.documentElement.dataset.drawn")


def chromium() -> str:
    """Return where the browser is, or skip the test."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser: install one of {', '.join(NAMES)}")


@contextmanager
def opened(path: Path, size: tuple[int, int] = DESKTOP, **context: Any) -> Iterator[Seen]:
    """Open a file in a fresh browser without a network."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        width, height = size
        page = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **context
        ).new_page()
        seen = Seen(page)
        page.on("console", lambda line: seen.said.append(f"{line.type}: {line.text}"))
        page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
        page.on("request", lambda request: seen.asked.append(request.url))

        def close(dialog: Any) -> None:
            seen.dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", close)
        try:
            page.goto(path.as_uri())
            yield seen
        finally:
            browser.close()
