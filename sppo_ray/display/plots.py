"""Draw the learning curve of a run, as an image and as text for the terminal."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sppo_ray.errors import UserError
from sppo_ray.formatting import format_fraction, format_seconds, printable, sparkline
from sppo_ray.rundir.jsonlines import write_atomically
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY = "eval/accuracy"
# training seconds over all incarnations; a run without it uses wall-clock time
ELAPSED = "seconds/total"

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, PALE_BLUE, ORANGE, TEAL = "#2563eb", "#7ea6f4", "#ea8a1e", "#0f9f8f"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
}

NO_STAGE = {"seconds/step", "seconds/other", ELAPSED}

Row = Mapping[str, Any]
Series = tuple[list[float], list[float]]  # x, y


def learning_curve(run_dir: Path, *, title: str | None = None) -> Path:
    """Draw curve.png into the run directory and return its path.

    It shows the held-out accuracy (or mean reward) with its 95 % interval and the smoothed training
    reward, against steps and against training time; below, response length, the critic's log-loss
    against the best constant's, and the time of each stage. Raises UserError when the run has no
    metrics yet.
    """
    image = draw_learning_curve(run_dir, title=title)
    path = RunDir(run_dir).curve
    write_atomically(path, image)
    return path


def draw_learning_curve(run_dir: Path, *, title: str | None = None, dpi: int = 150) -> bytes:
    """Return the PNG of `learning_curve`."""
    rows = _rows(run_dir)
    # matplotlib takes a second to load and most commands draw nothing. Without pyplot there is no
    # display and no global state.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 7.4), dpi=dpi, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12)
        figure.suptitle(title or _headline(run_dir, rows), x=0.014, ha="left", fontsize=13, fontweight="bold")
        # each with its own columns
        above, below = figure.subfigures(2, 1, height_ratios=[1.7, 1])
        against_steps, against_time = above.subplots(1, 2, sharey=True)
        _draw_accuracy(against_steps, rows, [float(row["step"]) for row in rows], "steps")
        _draw_accuracy(against_time, rows, _time_axis(rows)[0], f"training time ({_time_axis(rows)[1]})")
        for draw, axes in zip(
            (_draw_length, _draw_calibration, _draw_stages), below.subplots(1, 3), strict=True
        ):
            draw(axes, rows)
        image = io.BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def curve_text(run_dir: Path) -> str:
    """Return the learning curve as text: one line per evaluation with its interval, and the reward
    as a sparkline.
    """
    rows = _rows(run_dir)
    elapsed = _elapsed(rows)
    head = f"held-out {held_out_name(rows)}"
    width = max(17, len(head))  # of a figure with its interval
    lines = [f"{'step':>6}  {'time':>7}  {head:<{width}}  0{'-' * 18}0.5{'-' * 18}1"]
    for row, seconds in zip(rows, elapsed, strict=True):
        if row.get(ACCURACY) is None:
            continue
        accuracy = (
            f"{row[ACCURACY]:.2f} [{_figure(row, 'eval/accuracy_low')}, {_figure(row, 'eval/accuracy_high')}]"
        )
        lines.append(
            f"{row['step']:>6}  {format_seconds(seconds):>7}  {accuracy:<{width}}  "
            f"{'█' * round(row[ACCURACY] * 40)}"
        )
    if len(lines) == 1:
        lines.append("        no evaluation: set data.held_out and eval.every to have one")
    rewards = _series(rows, "reward/mean", range(len(rows)))[1]
    if rewards:
        lines.append(
            f"training reward {rewards[0]:.2f} {sparkline(rewards, width=40, low=0.0, high=1.0)} "
            f"{rewards[-1]:.2f}"
        )
    return "\n".join(lines)


def print_curve(run_dir: Path, stream: TextIO | None = None) -> None:
    """Print `curve_text`; a terminal without block characters shows question marks."""
    stream = stream or sys.stdout
    print(printable(curve_text(run_dir), stream), file=stream, flush=True)


def held_out_name(rows: Sequence[Row]) -> str:
    """Return "accuracy" when eval/accuracy is the share of solved responses, "mean reward" when
    partial rewards are in it.
    """
    pairs = [(row.get(ACCURACY), row.get("eval/pass@1")) for row in rows]
    is_share = all(math.isclose(mean, solved) for mean, solved in pairs if None not in (mean, solved))
    return "accuracy" if is_share else "mean reward"


def smooth(values: Sequence[float], *, weight: float) -> list[float]:
    """Exponential mean with `weight` on the past, bias-corrected (the first value is unchanged)."""
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1.0 - weight) * value
        mass = weight * mass + (1.0 - weight)
        smoothed.append(total / mass)
    return smoothed


# ------------------------------------------------------------------------------------------- inside


def _rows(run_dir: Path) -> list[Row]:
    rows = read_metrics(run_dir)
    if not rows:
        raise UserError(
            f"{run_dir}: no metrics.jsonl with a finished step: is this a run directory, and has the run "
            "begun?"
        )
    return rows


def _series(rows: Sequence[Row], name: str, x: Sequence[float]) -> Series:
    """Return the points at which the metric exists and is finite."""
    points = [
        (float(at), float(row[name])) for at, row in zip(x, rows, strict=True) if row.get(name) is not None
    ]
    return [at for at, _ in points], [value for _, value in points]


def _elapsed(rows: Sequence[Row]) -> list[float]:
    if all(row.get(ELAPSED) is not None for row in rows):
        return [float(row[ELAPSED]) for row in rows]
    return [float(row["time"]) - float(rows[0]["time"]) for row in rows]


def _time_axis(rows: Sequence[Row]) -> tuple[list[float], str]:
    elapsed = _elapsed(rows)
    unit, size = (
        ("hours", 3600.0)
        if elapsed[-1] > 7200
        else ("minutes", 60.0)
        if elapsed[-1] > 180
        else ("seconds", 1.0)
    )
    return [seconds / size for seconds in elapsed], unit


def _headline(run_dir: Path, rows: Sequence[Row]) -> str:
    accuracies = _series(rows, ACCURACY, range(len(rows)))[1]
    rise = (
        f"held-out {held_out_name(rows)} {accuracies[0]:.2f} → {accuracies[-1]:.2f} after "
        if len(accuracies) > 1
        else ""
    )
    return f"{run_dir.resolve().name}:  {rise}{rows[-1]['step']} steps, {format_seconds(_elapsed(rows)[-1])}"


def _draw_accuracy(axes: Axes, rows: Sequence[Row], x: Sequence[float], label: str) -> None:
    name = held_out_name(rows)
    axes.set(title=f"{name.capitalize()} against {label}", ylim=(0, 1.02), xlim=(0, max(x) or 1.0))
    at, accuracies = _series(rows, ACCURACY, x)
    if accuracies:
        look = {"color": BLUE, "linewidth": 2, "markersize": 4.5, "clip_on": False, "zorder": 3}
        axes.plot(at, accuracies, "o-", label=f"held-out {name}", **look)
        (band_at, low), (_, high) = (
            _series(rows, "eval/accuracy_low", x),
            _series(rows, "eval/accuracy_high", x),
        )
        axes.fill_between(band_at, low, high, color=BLUE, alpha=0.13, linewidth=0, label="95 % interval")
        place = {"xytext": (7, -3), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(f"{accuracies[-1]:.2f}", (at[-1], accuracies[-1]), **place, color=BLUE, weight="bold")
    _draw_smoothed(axes, _series(rows, "reward/mean", x), ORANGE, "training reward, smoothed")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")  # a curve that stays low would be covered in a fixed corner


def _draw_length(axes: Axes, rows: Sequence[Row]) -> None:
    at, lengths = _series(rows, "response/length_mean", [row["step"] for row in rows])
    axes.set(title="Response length (mean tokens)", xlabel="step")
    if not lengths:
        return _say_nothing(axes)
    axes.plot(at, lengths, color=TEAL, linewidth=1.5)
    axes.set(xlim=(0, max(at) or 1.0), ylim=(0, max(lengths) * 1.25 or 1.0))


def _draw_calibration(axes: Axes, rows: Sequence[Row]) -> None:
    steps = [row["step"] for row in rows]
    constant, critic = (_series(rows, name, steps) for name in ("value/log_loss_constant", "value/log_loss"))
    axes.set(title="Critic: log-loss (nats)", xlabel="step")
    if not critic[1]:
        return _say_nothing(axes)
    _draw_smoothed(axes, constant, MUTED, "best constant")
    _draw_smoothed(axes, critic, BLUE, "critic")
    axes.set(xlim=(0, max(steps) or 1.0), ylim=(0, max(constant[1] + critic[1]) * 1.05 or 1.0))
    axes.legend(loc="lower left", ncols=2)


def _draw_stages(axes: Axes, rows: Sequence[Row]) -> None:
    steps = [row["step"] for row in rows]
    names = {name for row in rows for name in row if name.startswith("seconds/")} - NO_STAGE
    means = {name.removeprefix("seconds/"): _mean(_series(rows, name, steps)[1]) for name in sorted(names)}
    axes.set(title="Time of a stage (mean seconds)")
    if not means:
        return _say_nothing(axes)
    ordered = dict(sorted(means.items(), key=lambda item: item[1]))
    bars = axes.barh(list(ordered), list(ordered.values()), color=PALE_BLUE, height=0.55)
    axes.bar_label(bars, [format_seconds(seconds) for seconds in ordered.values()], padding=4, color=MUTED)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.18)


def _draw_smoothed(axes: Axes, series: Series, colour: str, label: str) -> None:
    """Draw the values in a pale colour, the smoothed curve in full colour, a single value as a
    dot.
    """
    at, values = series
    if values:
        axes.plot(at, values, color=colour, alpha=0.22, linewidth=0.9)
        axes.plot(
            at,
            smooth(values, weight=0.8),
            "." if len(values) == 1 else "-",
            color=colour,
            linewidth=1.5,
            label=label,
        )


def _say_nothing(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _figure(row: Row, name: str) -> str:
    value = row.get(name)
    return format_fraction(float("nan") if value is None else value)
