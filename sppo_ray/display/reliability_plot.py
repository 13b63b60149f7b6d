"""The reliability plot: predicted against observed rewards, with a histogram of predictions
below.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sppo_ray.display.plots import BLUE, MUTED, ORANGE, STYLE, TEAL
from sppo_ray.evaluation.calibration import CalibrationReport, ReliabilityBin
from sppo_ray.evaluation.last import last_evaluation
from sppo_ray.formatting import format_fraction
from sppo_ray.rundir.jsonlines import write_atomically
from sppo_ray.rundir.layout import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, TEAL)

Reports = Mapping[str, CalibrationReport]  # by the name of the set: HELD_OUT, SEEN, TRAINED_ON, ...


def reliability_plot(path: Path, reports: Reports, *, title: str) -> Path:
    """Draw one curve per set of prompts into the PNG `path`.

    Each bin's mean reward with its 95 % interval is drawn over its mean value; the diagonal is
    perfect calibration; below is the number of prompts in each bin. Empty sets are left out. Raises
    ValueError when all are empty, and for more sets than colours.
    """
    drawn = {name: report for name, report in reports.items() if report.count}
    if not drawn:
        raise ValueError("a reliability plot needs at least one set of prompts with values")
    # matplotlib takes a second to load and most commands draw nothing. Without pyplot there is no
    # display and no global state.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 8.2), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        figure.suptitle(title, x=0.02, ha="left", fontsize=11.5, fontweight="bold")
        curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.6, 1])
        _draw_curves(curve, drawn)
        _draw_counts(counts, drawn)
        image = io.BytesIO()
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())
    return path


def reliability_of_run(run_dir: Path) -> Path | None:
    """Draw reliability.png of the last evaluation into the run directory; None when no critic was
    evaluated.
    """
    last = last_evaluation(run_dir)
    if last is None:
        return None
    title = f"{run_dir.resolve().name}: the critic at step {last.step}"
    return reliability_plot(RunDir(run_dir).reliability, last.reports, title=title)


# ------------------------------------------------------------------------------------------- inside


def _draw_curves(axes: Axes, reports: Reports) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
    for (name, report), colour in zip(reports.items(), COLOURS[: len(reports)], strict=True):
        full = [row for row in report.bins if row.count]
        x, y = [row.value_mean for row in full], [row.reward_mean for row in full]
        axes.errorbar(
            x, y, yerr=_reaches(full), fmt="o-", color=colour, linewidth=1.8, markersize=4.5, capsize=2.5,
            elinewidth=0.9,
            label=f"{name}: {_caption(report)}", clip_on=False,
        )  # fmt: skip
    axes.set(title="Solve rate against predicted value", ylabel="solve rate", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", fontsize=8)


def _draw_counts(axes: Axes, reports: Reports) -> None:
    for place, ((_, report), colour) in enumerate(zip(reports.items(), COLOURS[: len(reports)], strict=True)):
        width = (report.bins[0].high - report.bins[0].low) * 0.86 / len(reports)
        left = [row.low + 0.07 * (row.high - row.low) + place * width for row in report.bins]
        shares = [100.0 * row.count / report.count for row in report.bins]
        bars = axes.bar(left, shares, width=width, align="edge", color=colour, alpha=0.75)
        axes.bar_label(
            bars,
            [str(row.count) if row.count else "" for row in report.bins],
            padding=1,
            fontsize=6,
            color=MUTED,
        )
    axes.set(
        title="Predictions in each bin",
        xlabel="value: predicted probability of solving the prompt",
        xlim=(0, 1),
    )
    axes.set(ylabel="% of the set")
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")


def _reaches(bins: list[ReliabilityBin]) -> list[list[float]]:
    """Return [2][bins]: the interval's extent below and above each mean."""
    spans = [(row.reward_mean, *row.reward_interval()) for row in bins]
    return [
        [max(mean - low, 0.0) for mean, low, _ in spans],
        [max(high - mean, 0.0) for mean, _, high in spans],
    ]


def _caption(report: CalibrationReport) -> str:
    figures = report.figures
    return (
        f"n {report.count}, ECE {format_fraction(figures['ece'])}, AUROC {format_fraction(figures['auroc'])}"
    )
