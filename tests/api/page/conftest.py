"""The web page in a real browser, over the real server and run directories of the real Recorder.

Needs Debian's chromium and Playwright's Python package (the extra `dev`); without them these tests
are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.browser import TIMEOUT_MS, WHY_NOT, chromium
from tests.api.page.tools import DESKTOP, serving
from tests.api.page_runs import ATTACK, RecordedRun


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that have ended: `finished`, `stopped` early, and `failed`."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed, steps in (("finished", 1, 30), ("stopped", 2, 12), ("failed", 3, 3)):
        run = RecordedRun(root / name, seed=seed)
        run.advance(steps, special=True)
        error = {
            "actor": "rollout-1",
            "message": f"out of memory {ATTACK}",
            "stack": "Traceback ...\nMemoryError",
        }
        run.end(name, **({"last_error": error} if name == "failed" else {}))  # type: ignore[arg-type]
    return root



@pytest.fixture(scope="module")
def running(runs: Path) -> Iterator[RecordedRun]:
    """A run that this process is writing."""
    run = RecordedRun(runs / "running", seed=4)
    run.advance(8)
    yield run
    run.run_dir.close()
    shutil.rmtree(runs / "running")


@pytest.fixture(scope="module")
def address(runs: Path, running: RecordedRun) -> Iterator[str]:
    with serving(runs=runs) as url:
        yield url


@pytest.fixture(scope="module")  # while it lives, asyncio.run cannot be called in this thread
def browser() -> Iterator[Any]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens pages and holds each to its promises: no error, no violated policy, no request to
    anybody else.
    """
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_one(
        route: str = "", *, at: str = address, viewport: Any = DESKTOP, expected: str = " ", **options: Any
    ) -> Any:
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
        page.on(
            "console",
            lambda m: m.type in ("error", "warning") and expected not in m.text and wrong.append(m.text),
        )
        page.on(
            "request",
            lambda request: request.url.startswith((at, "data:")) or wrong.append(f"asks {request.url}"),
        )
        page.goto(f"{at}/{route}")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not wrong
