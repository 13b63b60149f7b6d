"""A real browser for the tests of the page: Debian's Chromium through Playwright's Python package
(the extra `dev`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WHY_NOT = (
    "Playwright is not installed: pip install -e '.[dev]'"
    if importlib.util.find_spec("playwright") is None
    else "no chromium: apt-get install chromium, or set CHROMIUM to its path"
    if CHROMIUM is None
    else ""
)
TIMEOUT_MS = 20_000  # a busy machine draws slowly


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser. Needs `WHY_NOT` to be empty."""
    from playwright import sync_api

    sync_api.expect.set_options(timeout=TIMEOUT_MS)
    # Chromium has no sandbox for root, whom containers run as.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()
