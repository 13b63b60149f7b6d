"""Compare algorithms: one recipe, the same budget and starting weights, and a report.

compare("quickstart", ["sppo", "grpo"], seeds=[1, 2, 3], budget_s=150, out=Path("runs/compare"))

arms (what differs) --> plan (checked as a whole) --> runner (a process a run)
    --> runs, curves, statistics --> report
"""

from __future__ import annotations

from sppo_ray.compare.comparison import compare, proceed, report_from
from sppo_ray.compare.report import Report

__all__ = ["Report", "compare", "proceed", "report_from"]
