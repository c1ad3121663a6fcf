"""A headless Chromium, and a report in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; a test that needs it is skipped where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["disable-background-networking", "disable-component-update", "disable-sync", "no-first-run"]
    arguments = [f"--{name}" for name in ("no-sandbox", "disable-gpu", "disable-quic", *quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


def opened(browser: Browser, root: Path, **settings: Any) -> tuple[Page, list[str]]:
    """The report in a new window, and what the browser complains of, shows as a dialog, or asks for beyond the file."""
    complaints: list[str] = []
    address = (root / "report" / "index.html").as_uri()

    def dismiss(dialog: Dialog) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    window = browser.new_page(**settings)
    window.on("dialog", dismiss)
    window.on("console", lambda message: complaints.append(message.text))
    window.on("pageerror", lambda error: complaints.append(str(error)))
    window.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:")) else complaints.append(request.url),
    )
    window.goto(address)
    return window, complaints
