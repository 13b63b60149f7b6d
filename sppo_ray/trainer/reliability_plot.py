"""The reliability plot: what the critic predicted against what happened, with how often it predicted it below."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sppo_ray.trainer.calibration import HELD_OUT, NOT_VALUED, TRAINED_ON, CalibrationReport, ReliabilityBin
from sppo_ray.trainer.jsonlines import write_atomically
from sppo_ray.trainer.plots import BLUE, MUTED, ORANGE, STYLE, TEAL
from sppo_ray.trainer.text import format_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, TEAL)

Reports = Mapping[str, CalibrationReport]  # by the name of the set: HELD_OUT, SEEN, TRAINED_ON, ...


def reliability_plot(path: Path, reports: Reports, *, title: str) -> Path:
    """Draw one curve a set of prompts into the PNG `path`: each bin's mean reward, with its 95 % interval, over its mean
    value; the diagonal is perfect calibration; below, the number of prompts of each bin.

    A set without prompts is left out. Raises ValueError when none has any, and for more sets than colours.
    """
    drawn = {name: report for name, report in reports.items() if report.count}
    if not drawn:
        raise ValueError("a reliability plot needs at least one set of prompts with values")
    # matplotlib takes a second to load and most commands draw nothing. Figure without pyplot: no display, no global state.
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


@dataclass(frozen=True, slots=True)
class LastEvaluation:
    """The critic's calibration at a run's last evaluation."""

    step: int
    k: int  # responses a held-out prompt; a training sample is one response
    held_out: CalibrationReport
    trained_on: CalibrationReport  # of the samples trained on since the evaluation before; NOT_VALUED when there are none

    @property
    def reports(self) -> dict[str, CalibrationReport]:
        return {HELD_OUT: self.held_out, TRAINED_ON: self.trained_on}


def last_evaluation(run_dir: Path) -> LastEvaluation | None:
    """The run's last evaluation that had values of a critic; None when there is none."""
    for path in sorted((run_dir / "evaluations").glob("step-*.json"), reverse=True):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("critic_bins"):
            count = sum(row["count"] for row in content["critic_bins"])
            held_out = {"count": count, "figures": content["critic"], "bins": content["critic_bins"]}
            seen = content.get("train_critic", NOT_VALUED.to_dict())
            return LastEvaluation(
                content["step"], content["k"], CalibrationReport.from_dict(held_out), CalibrationReport.from_dict(seen)
            )
    return None


def reliability_of_run(run_dir: Path) -> Path | None:
    """Draw reliability.png of the last evaluation into the run directory; None when no critic was evaluated."""
    last = last_evaluation(run_dir)
    if last is None:
        return None
    title = f"{run_dir.resolve().name}: the critic at step {last.step}"
    return reliability_plot(run_dir / "reliability.png", last.reports, title=title)


# ------------------------------------------------------------------------------------------------------ inside


def _draw_curves(axes: Axes, reports: Reports) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
    for (name, report), colour in zip(reports.items(), COLOURS[: len(reports)], strict=True):
        full = [row for row in report.bins if row.count]
        x, y = [row.value_mean for row in full], [row.reward_mean for row in full]
        axes.errorbar(
            x, y, yerr=_reaches(full), fmt="o-", color=colour, linewidth=1.8, markersize=4.5, capsize=2.5, elinewidth=0.9,
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
        axes.bar_label(bars, [str(row.count) if row.count else "" for row in report.bins], padding=1, fontsize=6, color=MUTED)
    axes.set(title="Predictions in each bin", xlabel="value: predicted probability of solving the prompt", xlim=(0, 1))
    axes.set(ylabel="% of the set")
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")


def _reaches(bins: list[ReliabilityBin]) -> list[list[float]]:
    """[2][bins]: how far the interval reaches below and above each mean."""
    spans = [(row.reward_mean, *row.reward_interval()) for row in bins]
    return [[max(mean - low, 0.0) for mean, low, _ in spans], [max(high - mean, 0.0) for mean, _, high in spans]]


def _caption(report: CalibrationReport) -> str:
    figures = report.figures
    return f"n {report.count}, ECE {format_fraction(figures['ece'])}, AUROC {format_fraction(figures['auroc'])}"
