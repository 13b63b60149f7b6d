"""What the tests of the page share beside fixtures: the real server, and readers of a page."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

from sppo_ray.api.app import create_app
from sppo_ray.api.settings import ApiSettings
from tests.api.page_runs import RecordedRun

try:
    from playwright.sync_api import expect
except ImportError:  # the fixture `browser` skips these tests
    expect = None

__all__ = ["DESKTOP", "PHONE", "await_fit", "commands", "expect", "painted", "serving"]
DESKTOP, PHONE = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[str]:
    """The address of the real server, in a thread. Ray is away: nothing answers at the port of its
    job server.
    """
    import uvicorn

    app = create_app(ApiSettings(ray_address="http://127.0.0.1:1", refresh_s=0.2, **settings))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def painted(page: Any, title: str, colour: str) -> int:
    """Pixels in that colour (a custom property of the style sheet) on the canvas of the card with
    this title.
    """
    card = page.locator(".chart").filter(has=page.locator("h3", has_text=re.compile(f"^{re.escape(title)}$")))
    card.locator("canvas").first.wait_for(state="attached")  # it is drawn when its first points are there
    return page.evaluate(
        """([title, name]) => {
          const card = [...document.querySelectorAll(".chart")].find((c) => c.querySelector("h3").textContent === title);
          const canvas = card.querySelector("canvas");
          const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
          const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4)
            count += Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 24 && data[i + 3] > 200;
          return count;
        }""",  # noqa: E501
        [title, colour],
    )


def await_fit(page: Any) -> None:
    """Wait until nothing sticks out of the window to the right: charts are drawn again a moment
    after the window has changed.
    """
    page.wait_for_function("() => document.documentElement.scrollWidth <= innerWidth")


def commands(run: RecordedRun) -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((run.run_dir.path / "control/inbox").glob("*.json"))
    ]
