"""Chooses the progress display of a run."""

from __future__ import annotations

import os
import sys
from typing import Literal, TextIO

from sppo_ray.display.progress import PlainProgress, Progress, SilentProgress
from sppo_ray.formatting import is_unicode


def make_progress(
    mode: Literal["auto", "live", "plain", "off"], title: str, stream: TextIO | None = None
) -> Progress:
    """Return the display for config.logging.progress; auto = live on a terminal, plain
    elsewhere.
    """
    stream = stream or sys.stdout
    if mode == "auto":
        mode = (
            "live" if stream.isatty() and is_unicode(stream) and os.environ.get("TERM") != "dumb" else "plain"
        )
    if mode == "off":
        return SilentProgress()
    if mode == "plain":
        return PlainProgress(title, stream)
    # Rich is loaded only for the live display
    from sppo_ray.display.progress_live import LiveProgress

    return LiveProgress(title, stream)
