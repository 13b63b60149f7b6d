"""Numbers as people read them in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

_BLOCKS = "▁▂▃▄▅▆▇█"


def format_seconds(seconds: float, *, whole: bool = False) -> str:
    """0.03s, 1.2s, 45s, 3m20s, 2h05m, 1d03h: at most two units; `whole` leaves out fractions (a
    running clock).
    """
    if not math.isfinite(seconds):
        return "-"
    if seconds < 9.95 and not whole and seconds != 0:
        return f"{seconds:.1f}s" if seconds >= 0.0995 else f"{seconds:.2f}s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"


def format_fraction(value: float) -> str:
    """Two decimals; "-" for NaN."""
    return f"{value:.2f}" if math.isfinite(value) else "-"


def format_count(number: float, what: str) -> str:
    """1 core, 2 cores, 0.5 cores."""
    return f"{number:g} {what}" + ("" if number == 1 else "s")


def is_unicode(stream: TextIO) -> bool:
    """Whether the stream can write every character; a stream in memory has no encoding and can."""
    return stream.encoding is None or stream.encoding.lower().startswith("utf")


def printable(text: str, stream: TextIO) -> str:
    """Replace the characters that the stream cannot encode by question marks."""
    return (
        text if is_unicode(stream) else text.encode(stream.encoding, errors="replace").decode(stream.encoding)
    )


def sparkline(
    values: Sequence[float], *, width: int, low: float | None = None, high: float | None = None
) -> str:
    """Draw values as at most `width` block characters (averaged in groups); NaN is a space.

    `low` and `high` fix the scale; the default is the range of the values.
    """
    cells = _resample(values, width)
    finite = [value for value in cells if math.isfinite(value)]
    if not finite:
        return " " * len(cells)
    bottom = min(finite) if low is None else low
    span = (max(finite) if high is None else high) - bottom
    return "".join(_block((value - bottom) / span if span > 0 else 0.5) for value in cells)


def _block(share: float) -> str:
    if not math.isfinite(share):
        return " "
    return _BLOCKS[min(max(int(share * len(_BLOCKS)), 0), len(_BLOCKS) - 1)]


def _resample(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [_finite_mean(values[start:end]) for start, end in zip(edges, edges[1:], strict=False)]


def _finite_mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else float("nan")
