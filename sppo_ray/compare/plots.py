"""Plot a comparison: accuracy against time and tokens, memory by role, time by stage."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sppo_ray.compare.curves import Point, until
from sppo_ray.compare.report import ArmReport, Report, largest_first
from sppo_ray.display.plots import GRID, INK, MUTED, STYLE
from sppo_ray.rundir.jsonlines import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart (its yellow is too pale on white);
# then shapes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#8b5a2b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GRID_POINTS = 200
BOXES = ("//", "..", "xx", "--", "\\\\", "oo", "++", "**")


def draw(report: Report, out: Path) -> list[str]:
    """Write the PNGs that have data into `out` and return their names. Old PNGs without data are
    removed.
    """
    drawings: dict[str, tuple[bool, Callable[[Axes], None]]] = {
        "accuracy-time.png": (
            _has_runs(report),
            lambda axes: _accuracy(axes, report, lambda p: p.seconds, *_time_unit(report)),
        ),
        "accuracy-tokens.png": (
            _has_runs(report),
            lambda axes: _accuracy(axes, report, lambda p: p.tokens, *_token_unit(report)),
        ),
        "memory.png": (
            any(arm.peak_memory for arm in report.arms),
            lambda axes: _stacked(
                axes, report, lambda arm: arm.peak_memory, 2.0**20, "Peak memory by role", "MiB"
            ),
        ),
        "stages.png": (
            any(arm.stages for arm in report.arms),
            lambda axes: _stacked(
                axes, report, lambda arm: arm.stages, 1.0, "Training time by stage", "seconds a run"
            ),
        ),
    }
    for name, (wanted, drawing) in drawings.items():
        if wanted:
            _save(drawing, out / name)
        else:
            (out / name).unlink(missing_ok=True)
    return [name for name, (wanted, _) in drawings.items() if wanted]


def _save(drawing: Callable[[Axes], None], path: Path) -> None:
    # matplotlib takes a second to load. Figure without pyplot: no display, no global state.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"hatch.linewidth": 0.5}):
        figure: Figure = Figure(figsize=(9, 5), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        drawing(figure.subplots())
        image = io.BytesIO()
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


# ----------------------------------------------------------------------------------------- accuracy


def _accuracy(axes: Axes, report: Report, spent: Callable[[Point], float], unit: float, label: str) -> None:
    shown = [(index, arm) for index, arm in enumerate(report.arms) if arm.runs]
    # the legend reads from best to worst
    for index, arm in sorted(shown, key=lambda item: -item[1].accuracy.mean):
        x, low, mean, high = band(arm, spent, report.plan.budget_s)
        look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        text = f"{arm.name}  {arm.accuracy.mean:.2f}" + (f"  ({len(arm.runs)} runs)" if arm.missing else "")
        style = "--" if index >= len(COLOURS) else "-"
        axes.plot(
            x / unit, mean, style, **look, linewidth=1.8, markersize=5, markevery=GRID_POINTS // 8, label=text
        )
        axes.fill_between(x / unit, low, high, color=look["color"], alpha=0.12, linewidth=0)
    for target in report.targets:
        axes.axhline(target, color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(f"{target:g}", (1, target), xycoords=("axes fraction", "data"), xytext=(-2, 2),
        textcoords="offset points",
                      ha="right", color=MUTED, fontsize=8)  # fmt: skip
    axes.set(
        title=f"Held-out accuracy, mean of the seeds and their range ({Path(report.plan.recipe).stem})",
        xlabel=label,
    )
    axes.set_xlim(left=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="arm, at the budget", alignment="left")


def band(
    arm: ArmReport, spent: Callable[[Point], float], budget_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, lowest, mean, highest accuracy) over an arm's runs within the budget, on a common grid up
    to the shortest run.
    """
    curves = [until(run.curve, budget_s) for run in arm.runs]
    x = np.linspace(0.0, min(spent(curve[-1]) for curve in curves), GRID_POINTS)
    lines = np.stack(
        [np.interp(x, [spent(p) for p in curve], [p.accuracy for p in curve]) for curve in curves]
    )
    return x, lines.min(axis=0), lines.mean(axis=0), lines.max(axis=0)


def _time_unit(report: Report) -> tuple[float, str]:
    budget = report.plan.budget_s
    unit, name = (
        (3600.0, "hours") if budget > 7200 else (60.0, "minutes") if budget > 300 else (1.0, "seconds")
    )
    return unit, f"{name} of training (evaluations not counted)"


def _token_unit(report: Report) -> tuple[float, str]:
    most = max(run.tokens for arm in report.arms for run in arm.runs)
    unit, name = (
        (1e6, "millions of tokens")
        if most >= 2e6
        else (1e3, "thousands of tokens")
        if most >= 2e3
        else (1.0, "tokens")
    )
    return unit, f"{name} generated for training"


# --------------------------------------------------------------------------------------------- bars


def _stacked(
    axes: Axes,
    report: Report,
    figures: Callable[[ArmReport], Mapping[str, float]],
    unit: float,
    title: str,
    label: str,
) -> None:
    arms = [arm for arm in report.arms if figures(arm)]
    names = largest_first(figures(arm) for arm in arms)
    ends = np.zeros(len(arms))
    for index, name in enumerate(names):
        sizes = np.array([figures(arm).get(name, 0.0) / unit for arm in arms])
        hatch = BOXES[index % len(BOXES)] if index >= len(COLOURS) else None
        look = {"color": COLOURS[index % len(COLOURS)], "edgecolor": "white", "hatch": hatch}
        axes.barh([arm.name for arm in arms], sizes, left=ends, height=0.6, linewidth=0.6, label=name, **look)
        ends += sizes
    for row, end in enumerate(ends):
        axes.annotate(
            f"{end:,.0f}", (end, row), xytext=(5, 0), textcoords="offset points", va="center", color=INK
        )
    axes.set(title=title, xlabel=label)
    axes.invert_yaxis()  # the first arm on top
    axes.grid(visible=False, axis="y")
    axes.grid(color=GRID, axis="x")
    axes.margins(x=0.1)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _has_runs(report: Report) -> bool:
    return any(arm.runs for arm in report.arms)
