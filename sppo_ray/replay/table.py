"""Format a replay's report as text: a headline with the verdict, and one line per quantity."""

from __future__ import annotations

from sppo_ray.replay.report import BEFORE, LOGPROBS, Quantity, Report

HEADER = ["quantity", "recorded", "re-derived", "largest difference", "allowed", "verdict", "where"]
DIGEST_SHOWN = 12  # hex digits


def replay_table(report: Report) -> str:
    """Return aligned ASCII text; recorded, re-derived and allowed belong to the place in the last
    column.
    """
    rows = [HEADER, *(_row(quantity) for quantity in report.quantities)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def headline(report: Report) -> str:
    """Return one sentence; for a step that differs, it names the first difference."""
    subject = f"step {report.step} of {report.run}"
    wrong = next((quantity for quantity in report.quantities if quantity.verdict == "differs"), None)
    if wrong is not None:
        text = f"{subject} DIFFERS, first in {wrong.name} ({wrong.where}): "
        text += f"recorded {_shown(wrong.recorded)}, re-derived {_shown(wrong.rederived)}"
        version = report.first_wrong_version
        if wrong.name == BEFORE and version is not None:
            text += f". It went wrong earlier: replay --step {version}"
        return text
    if report.is_exact:
        return f"{subject} matches, bit for bit"
    inexact = [q.name for q in report.quantities if q.verdict == "close" and q.name != LOGPROBS]
    unknown = [q.name for q in report.quantities if q.verdict == "unknown"]
    parts = (
        [f"not to the last bit: {', '.join(inexact)} (another machine, another number of threads, or a GPU)"]
        if inexact
        else []
    )
    parts += [f"not recorded: {', '.join(unknown)}"] if unknown else []
    return f"{subject} matches within the tolerances; {'; '.join(parts)}"


def _row(quantity: Quantity) -> list[str]:
    verdict = quantity.verdict
    if quantity.differing and quantity.count > 1:
        verdict += f" ({quantity.differing} of {quantity.count})"
    numbers = (quantity.recorded, quantity.rederived, quantity.largest_difference, quantity.allowed)
    where = "" if quantity.verdict == "equal" and quantity.count > 1 else quantity.where
    return [quantity.name, *(_shown(number) for number in numbers), verdict, where]


def _shown(figure: float | str | None) -> str:
    if figure is None:
        return "-"
    return figure[:DIGEST_SHOWN] if isinstance(figure, str) else f"{figure:.6g}"
