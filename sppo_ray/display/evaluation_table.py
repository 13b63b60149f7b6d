"""Format an evaluation as a table: one row per figure, one column per source, and one column for
all sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sppo_ray.evaluation.scores import EvalReport, Scores
from sppo_ray.intervals import Interval

COLUMNS = 4  # side by side; more sources follow in further tables


def evaluation_table(report: EvalReport) -> str:
    """Aligned ASCII text; brackets hold the 95 % bootstrap interval over prompts."""
    scores = list(report.by_source)
    if len(scores) > 1:
        scores.append(report.overall)
    sizes = sorted({size for one in scores for size in one.pass_at})
    blocks = [scores[start : start + COLUMNS] for start in range(0, len(scores), COLUMNS)]
    return "\n\n".join(_block(block, sizes) for block in blocks)


def _block(scores: Sequence[Scores], sizes: Sequence[int]) -> str:
    rows = [
        ["", *(one.source for one in scores)],
        ["prompts", *(str(one.num_prompts) for one in scores)],
        ["k (samples a prompt)", *(str(one.k) for one in scores)],
        ["avg@k", *(_figure(one.accuracy, (one.accuracy_low, one.accuracy_high)) for one in scores)],
        *([f"pass@{size}", *(_pass(one, size) for one in scores)] for size in sizes),
        ["maj@k", *(_figure(one.majority, one.majority_interval) for one in scores)],
        ["length, mean", *(f"{one.response_length_mean:.1f}" for one in scores)],
        ["length, max", *(str(one.response_length_max) for one in scores)],
        ["truncated", *(f"{one.truncation_rate:.1%}" for one in scores)],
        ["reward errors", *(str(one.reward_errors) for one in scores)],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def _pass(scores: Scores, size: int) -> str:
    return _figure(scores.pass_at[size], scores.pass_intervals[size]) if size in scores.pass_at else "-"


def _figure(value: float, interval: Interval) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]" if math.isfinite(value) else "-"
