"""Open pages in a headless Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser; skip the test if Chromium is not installed."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["disable-background-networking", "disable-component-update", "disable-sync", "no-first-run"]
    arguments = [f"--{name}" for name in ("no-sandbox", "disable-gpu", "disable-quic", *quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


def open_report(browser: Browser, root: Path, **settings: Any) -> tuple[Page, list[str]]:
    """Open the report of a checkout as `open_page` does."""
    return open_page(browser, root / "report" / "index.html", **settings)


def open_page(browser: Browser, file: Path, **settings: Any) -> tuple[Page, list[str]]:
    """Open a page in a new window; returns the page, and its errors, dialogs and requests to other addresses."""
    problems: list[str] = []
    address = file.as_uri()

    def dismiss(dialog: Dialog) -> None:
        problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    window = browser.new_page(**settings)
    window.on("dialog", dismiss)
    window.on("console", lambda message: problems.append(message.text))
    window.on("pageerror", lambda error: problems.append(str(error)))
    window.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:")) else problems.append(request.url),
    )
    window.goto(address)
    return window, problems
