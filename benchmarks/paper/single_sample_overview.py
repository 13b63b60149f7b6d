"""One picture of the studies in `single_sample`: what each method spends to reach a target, by what
plain Sequence-Level PPO spends.

    python -m benchmarks.paper.single_sample_overview     --> docs/images/methods.png

It reads the committed report.json of each study.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.kept_runs import REPORTS
from sppo_ray.rundir.jsonlines import write_atomically

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "methods.png"
BASELINE = "sppo"
STUDIES = {
    "quickstart": "quickstart",
    "long": "register-machine",
    "few-prompts": "its 256 prompts again",
}
AXES = {"tokens": ("#2b6cb0", "o"), "seconds": ("#c05621", "D")}
TICKS = (0.5, 0.7, 1, 1.5, 2, 3)
Row = Mapping[str, Any]


def rows_by_axis(study: str) -> dict[str, list[Row]]:
    """Return the rows of a study's report by axis, those of AXES; empty without a report."""
    path = REPORTS / "single-sample" / study / "report.json"
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found = {axis: [row for row in rows if row["axis"] == axis and row["runs"]] for axis in AXES}
    return {axis: of for axis, of in found.items() if any(row["arm"] == BASELINE for row in of)}


def relative_cost(row: Row, target: float) -> tuple[float, float, float, str] | None:
    """Return (cost, low, high, bound) to a target, where the baseline's mean cost is 1. `bound`:
    exact; at least, where runs of this arm did not reach it; at most, where runs of the baseline
    did not. None when nothing can be said.
    """
    (way,) = (way for way in row["ways"] if way["target"] == target)
    if row["arm"] == BASELINE:
        cost = way["cost"]
        bound = "at least" if cost["censored"] else "exact"
        return 1.0, _number(cost["low"]) / cost["mean"], _number(cost["high"]) / cost["mean"], bound
    saving = way["saving"]
    if saving["ratio"] is None:
        return None
    bound = {"at least": "at most", "at most": "at least"}.get(saving["bound"], saving["bound"])
    return 1 / saving["ratio"], 1 / _number(saving["high"]), 1 / _number(saving["low"]), bound


def _number(value: float | None) -> float:
    """A number of a report, in which NaN is null."""
    return math.nan if value is None else value


def draw(studies: Sequence[str]) -> bytes:
    """Return the picture as PNG: a column a study, a row a target."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sppo_ray.display.plots import STYLE

    with rc_context(STYLE):
        size = (4.2 * len(studies), 7.2)
        figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, len(studies), squeeze=False)
        for column, study in enumerate(studies):
            by_axis = rows_by_axis(study)
            targets = [way["target"] for way in by_axis["tokens"][0]["ways"]]
            for panel, target in zip(panels[:, column], targets, strict=True):
                _draw_panel(panel, by_axis, target)
                panel.set_title(f"{STUDIES[study]}: to {target:g}", fontsize=9)
        panels[0][0].legend(loc="lower left", fontsize=8)
        figure.supxlabel(f"cost to the target, {BASELINE}'s = 1 (95 % intervals; arrows: at least, at most)")
        image = io.BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def _draw_panel(panel: Any, by_axis: Mapping[str, Sequence[Row]], target: float) -> None:
    arms = [row["arm"] for row in by_axis["tokens"]]
    for offset, (axis, rows) in zip((-0.14, 0.14), by_axis.items(), strict=False):
        colour, marker = AXES[axis]
        for row in rows:
            height, found = arms.index(row["arm"]) + offset, relative_cost(row, target)
            if found is None:
                panel.text(1.03, height, "not by all runs", color=colour, fontsize=7, va="center")
                continue
            cost, low, high, bound = found
            shape = {"at least": ">", "at most": "<"}.get(bound, marker)
            panel.plot([cost], [height], shape, color=colour, markersize=5)
            if not math.isnan(low):
                panel.plot([low, high], [height, height], color=colour, linewidth=1.2)
        panel.plot([], [], marker, color=colour, label=axis)
    panel.axvline(1.0, color="#888888", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    panel.minorticks_off()
    panel.set_xlim(0.4, 4)
    panel.set_yticks(range(len(arms)), arms)
    panel.invert_yaxis()


def main() -> None:
    write_atomically(PICTURE, draw([study for study in STUDIES if rows_by_axis(study)]))
    print(PICTURE)


if __name__ == "__main__":
    main()
