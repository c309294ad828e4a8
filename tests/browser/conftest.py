"""Pages in a headless Chromium that can reach nothing but the page itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
]


@dataclass
class Opened:
    """A page, and what went wrong on it.

    Attributes
    ----------
    requests : list of str
        Addresses asked for beside the page itself; each was refused.
    faults : list of str
        Errors of scripts and of the console.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.fail("no chromium is there: make test-browser installs it")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Give what opens a file in a window of its own, as ``open_page(path, width=360)``.

    Nothing but the file can be reached; of a page of several files, those below ``within`` too.
    """
    contexts = []

    def opened(
        file: Path,
        width: int = 1280,
        height: int = 720,
        within: Path | None = None,
        **options: Any,
    ) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        found = Opened(context.new_page())
        address = file.resolve().as_uri()

        def watch(route: Route) -> None:
            asked = route.request.url
            is_own = re.split("[?#]", asked)[0] == address or (
                within is not None and asked.startswith(f"{within.resolve().as_uri()}/")
            )
            if is_own or asked.startswith(("data:", "blob:")):
                route.continue_()
            else:
                found.requests.append(asked)
                route.abort()

        context.route("**/*", watch)
        found.page.on("pageerror", lambda error: found.faults.append(str(error)))
        found.page.on(
            "console",
            lambda message: found.faults.append(message.text) if message.type == "error" else None,
        )
        found.page.goto(address)
        return found

    yield opened
    for context in contexts:
        context.close()
