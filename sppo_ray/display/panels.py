"""Small curves of a run's health: one panel for a question, drawn only where it was measured."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sppo_ray.display.plots import BLUE, MUTED, ORANGE, STYLE, TEAL, smooth

COLUMNS = 3
PANELS: dict[str, tuple[str, ...]] = {
    "Entropy of the policy (nats)": ("policy/entropy",),
    "KL to the policy before the step (k3)": ("policy/approx_kl_k3",),
    "Clipped tokens, share": ("policy/clip_fraction_low", "policy/clip_fraction_high"),
    "Gradient norm": ("policy/grad_norm", "critic/grad_norm"),
    "Learning rate": ("policy/lr", "critic/lr"),
    "Advantage: standard deviation": ("advantage/std",),
    "Truncated responses, share": ("response/truncation_rate",),
    "Engine against learner (nats)": ("mismatch/logprob_difference_mean",),
    "Staleness (versions)": ("staleness/mean",),
    "Critic: AUROC on the step's samples": ("value/auroc",),
    "Reward errors": ("reward/errors",),
    "Seconds a step": ("seconds/step",),
}
_COLOURS = (BLUE, ORANGE, TEAL)


def draw_panels(rows: Sequence[Mapping[str, Any]], *, dpi: int = 110) -> bytes | None:
    """Return the PNG of all panels with at least two values; None without any."""
    series = {title: _series(rows, names) for title, names in PANELS.items()}
    shown = {title: found for title, found in series.items() if found}
    if not shown:
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = math.ceil(len(shown) / COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 2.3 * height), dpi=dpi, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(height, COLUMNS, squeeze=False).flat
        for axis, (title, found) in zip(axes, shown.items(), strict=False):
            axis.set(title=title)
            for colour, (name, (at, values)) in zip(_COLOURS, found.items(), strict=False):
                axis.plot(at, values, color=colour, alpha=0.22, linewidth=0.9)
                axis.plot(at, smooth(values, weight=0.8), color=colour, linewidth=1.5, label=name)
            if len(found) > 1:
                axis.legend(fontsize=8)
        for axis in list(figure.axes)[len(shown) :]:
            axis.set_axis_off()
        figure.supxlabel("step", color=MUTED, fontsize=9.5)
        image = io.BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def _series(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if len(points) > 1:
            found[name] = ([float(at) for at, _ in points], [float(value) for _, value in points])
    return found
