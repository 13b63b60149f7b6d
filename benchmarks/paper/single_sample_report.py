"""The page of a study of kept runs: the arms at equal seconds, equal tokens and equal prompts.

On the axes seconds and tokens all runs are cut at what the shortest one spent, so every arm is
judged at the same cost. Seconds are those of the tokens (`single_sample`); without timing runs the
page has none. Prompts are counted to each run's own end: a group method draws so few of
them that at its number nobody else has learned anything. Seeds are resampled for intervals, as in
`sppo-ray compare`.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.kept_runs import REPORTS, SECONDS_PER_TOKEN, Kept, Study
from benchmarks.report import write_result
from sppo_ray.compare.curves import Point, area, crossing, until
from sppo_ray.compare.statistics import NO_RATIO, Estimate, Ratio, estimate, ratio
from sppo_ray.rundir.jsonlines import finite_json, write_atomically

AXES: Mapping[str, tuple[str, Callable[[Kept, Point], float]]] = {
    "seconds": ("seconds of training", lambda kept, point: point.seconds),
    "tokens": ("generated tokens", lambda kept, point: point.tokens),
    "prompts": ("prompts trained on", lambda kept, point: point.samples / kept.samples_per_prompt),
}
IDEAS = ("sppo-privileged", "sppo-tracker", "sppo-centered", "sppo-one-sided")
SAVING = 0.1  # share of plain sppo's tokens that an idea has to save; fixed before the runs
GRID_POINTS = 200
NO_TIMES = "Not measured yet (`--times`)."


@dataclass(frozen=True, slots=True)
class Way:
    """An arm's cost to a target on one axis; runs that did not reach it count with the whole
    budget.
    """

    target: float
    reached: int
    cost: Estimate
    saving: Ratio  # the baseline's cost by the arm's


@dataclass(frozen=True, slots=True)
class Row:
    """An arm on one axis."""

    arm: str
    rate: float
    runs: int
    failed: tuple[str, ...]
    accuracy: Estimate  # at the budget
    mean: Estimate  # over the budget
    ways: tuple[Way, ...]


def on_axis(kept: Kept, axis: str) -> list[Point]:
    """Return the curve of a run with its position on an axis in the place of the seconds."""
    position = AXES[axis][1]
    return [replace(point, seconds=position(kept, point)) for point in kept.curve]


def budget_of(runs: Sequence[Kept], axis: str) -> float | None:
    """Return what the shortest run spent on an axis; None = every run counts to its own end."""
    if axis == "prompts":
        return None
    return min((on_axis(kept, axis)[-1].seconds for kept in runs if kept.failed is None), default=math.nan)


def rows_of(study: Study, runs: Mapping[str, Sequence[Kept]], axis: str) -> list[Row]:
    """Return a row for each arm that has runs. It is compared with the baseline's runs of its own
    seeds, because seeds differ in their prompts.
    """
    budget = budget_of([kept for of_arm in runs.values() for kept in of_arm], axis)
    curves = {
        arm: {kept.run.seed: on_axis(kept, axis) for kept in of_arm if kept.failed is None}
        for arm, of_arm in runs.items()
    }
    rows = []
    for arm, of_arm in runs.items():
        if not of_arm:
            continue
        mine = list(curves[arm].values())
        theirs = [curve for seed, curve in curves.get(study.baseline, {}).items() if seed in curves[arm]]
        ways = tuple(
            _way(mine, theirs, target, budget, is_baseline=arm == study.baseline) for target in study.targets
        )
        rows.append(
            Row(
                arm,
                of_arm[0].run.rate,
                len(mine),
                tuple(kept.failed for kept in of_arm if kept.failed is not None),
                estimate([until(curve, _end(curve, budget))[-1].accuracy for curve in mine]),
                estimate([area(curve, _end(curve, budget)) for curve in mine]),
                ways,
            )
        )
    return rows


def _way(
    mine: Sequence[Sequence[Point]],
    theirs: Sequence[Sequence[Point]],
    target: float,
    budget: float | None,
    *,
    is_baseline: bool,
) -> Way:
    ours, others = (
        [crossing(curve, target, _end(curve, budget)) for curve in curves] for curves in (mine, theirs)
    )
    missed, they_missed = (sum(not c.reached for c in crossings) for crossings in (ours, others))
    costs = [c.seconds for c in ours]
    saving = NO_RATIO
    if not is_baseline:
        saving = ratio(
            [c.seconds for c in others], costs, baseline_censored=they_missed, arm_censored=missed
        )
    return Way(target, len(ours) - missed, estimate(costs, censored=missed), saving)


def _end(curve: Sequence[Point], budget: float | None) -> float:
    return curve[-1].seconds if budget is None else budget


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Judge the ideas by their tokens to the last target. `rows`: on the axis tokens."""
    found = []
    for row in rows:
        if row.arm not in IDEAS or not row.ways:
            continue
        way = row.ways[-1]
        of = way.saving
        if math.isnan(of.ratio):
            found.append(f"{row.arm}: not to be judged at {way.target:g}, {way.reached} of {row.runs} runs.")
            continue
        shares = [f"{100 * (1 - 1 / value):.0f}" for value in (of.ratio, of.low, of.high) if value > 0]
        interval = f" [{shares[1]}, {shares[2]}]" if len(shares) == 3 else ""
        is_met = of.ratio >= 1 / (1 - SAVING) and of.low > 1 and of.bound in ("exact", "at least")
        found.append(
            f"{row.arm}: {shares[0]} %{interval} fewer tokens to {way.target:g} than sppo; "
            f"{'met' if is_met else 'missed'} (at least {100 * SAVING:.0f} %, interval above 0)."
        )
    return found


def write(
    name: str,
    study: Study,
    runs: Mapping[str, Sequence[Kept]],
    sweep: Mapping[str, Mapping[float, float]],
    swept_costs: Mapping[str, Mapping[float, Sequence[float]]],
    times: Mapping[str, Sequence[Kept]],
) -> Path:
    """Write report.md, report.json and a plot an axis to results/paper/NAME. `sweep`: mean accuracy
    by arm and learning rate; `swept_costs`: tokens to each target; `times`: timing runs by arm.
    Returns the page.
    """
    has_times = all(arm in times for arm in study.arms)
    axes = [axis for axis in study.axes if axis != "seconds" or has_times]
    tables = {axis: rows_of(study, runs, axis) for axis in axes}
    told = verdicts(tables.get("tokens", []))
    rows = [
        {"axis": axis, **finite_json(asdict(row))} for axis, of_axis in tables.items() for row in of_axis
    ]
    everything = [kept for of_arm in runs.values() for kept in of_arm]
    extra = {
        "about": study.about,
        "recipe": study.recipe,
        "overrides": list(study.overrides),
        "commits": sorted({kept.commit for kept in everything}),
        "sweep": {arm: {f"{rate:g}": area for rate, area in of.items()} for arm, of in sweep.items()},
        "seconds_per_token": {
            arm: [one.figures[SECONDS_PER_TOKEN] for one in of] for arm, of in times.items()
        },
        "verdicts": told,
    }
    write_result(f"paper/{name}/report", rows, [], extra)
    blocks = [f"# {name}: {study.about}", _setting(study, everything)]
    for axis, of_axis in tables.items():
        budget = budget_of(everything, axis)
        blocks += [f"## At equal {axis}", _table(study, of_axis, axis, budget)]
        if any(row.runs for row in of_axis):
            plot = f"accuracy-{axis}.png"
            _draw(runs, axis, budget, REPORTS / name / plot)
            blocks.append(f"![Held-out accuracy against {AXES[axis][0]}]({plot})")
    if "seconds" in study.axes:
        blocks += ["## Seconds of a token", _times(study, times) if has_times else NO_TIMES]
    blocks += ["## Ideas", "\n".join(f"- {line}" for line in told)] if told else []
    blocks += ["## Signals", _signals(runs)]
    if sweep:
        blocks += ["## Learning rates", _sweep(sweep), _swept_costs(study, swept_costs)]
    page = REPORTS / name / "report.md"
    page.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return page


# ------------------------------------------------------------------------------------------- tables


def _setting(study: Study, runs: Sequence[Kept]) -> str:
    commits = ", ".join(sorted({kept.commit for kept in runs})) or "-"
    return (
        f"Recipe `{study.recipe}`, {' '.join(f'`{override}`' for override in study.overrides)}; "
        f"runs on {study.num_cores} core{'s' * (study.num_cores > 1)}; "
        f"baseline {study.baseline}; commits {commits}. Intervals are "
        "95 % bootstraps over seeds; with three seeds they are too narrow. Ratios are of the seeds that both "
        "arms have. A target is reached at the first "
        "of two evaluations in a row at or above it; a run that never reached it counts with the whole "
        "budget (>)."
    )


def _table(study: Study, rows: Sequence[Row], axis: str, budget: float | None) -> str:
    unit = AXES[axis][0]
    where = "at the end" if budget is None else f"after {_amount(budget)} {unit}"
    head = ["arm", "runs", "learning rate", f"accuracy {where}", "mean until then"]
    for target in study.targets:
        head += [f"reached {target:g}", f"{unit} to {target:g}", f"{study.baseline}'s / its own"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        runs = f"{row.runs}" + (f" ({len(row.failed)} failed)" if row.failed else "")
        line = [f"**{row.arm}**", runs, f"{row.rate:g}", _fraction(row.accuracy), _fraction(row.mean)]
        for way in row.ways:
            line += [f"{way.reached} of {row.runs}", _cost(way.cost), _ratio(way.saving)]
        lines.append(line)
    return _markdown(lines)


def _signals(runs: Mapping[str, Sequence[Kept]]) -> str:
    """Mean over runs of each signal; the worst run's for those that begin with "least"."""
    finished = {arm: [kept for kept in of_arm if kept.failed is None] for arm, of_arm in runs.items()}
    all_names = dict.fromkeys(n for of_arm in finished.values() for kept in of_arm for n in kept.figures)
    names = [name for name in all_names if name != SECONDS_PER_TOKEN]
    lines = [["arm", *names, "held-out accuracy at the end"]]
    lines.append(["---"] * len(lines[0]))
    for arm, of_arm in finished.items():
        if not of_arm:
            continue
        cells = []
        for name in names:
            values = [kept.figures[name] for kept in of_arm if name in kept.figures]
            shown = min(values, default=math.nan) if name.startswith("least") else _mean(values)
            cells.append("-" if math.isnan(shown) else f"{shown:.3f}")
        lines.append([f"**{arm}**", *cells, f"{_mean([kept.curve[-1].accuracy for kept in of_arm]):.3f}"])
    return _markdown(lines)


def _times(study: Study, times: Mapping[str, Sequence[Kept]]) -> str:
    """Seconds of a thousand tokens by arm, and the shares of the stages in them."""
    costs = {arm: [1000 * one.figures[SECONDS_PER_TOKEN] for one in of] for arm, of in times.items()}
    stages = sorted({stage for of in times.values() for one in of for stage in one.stages})
    head = ["arm", "seconds of a thousand tokens", f"by {study.baseline}'s", *stages]
    lines = [head, ["---"] * len(head)]
    for arm, of in times.items():
        median = statistics.median(costs[arm])
        whole = math.fsum(math.fsum(one.stages.values()) for one in of)
        shares = [math.fsum(one.stages.get(stage, 0.0) for one in of) / whole for stage in stages]
        lines.append(
            [
                f"**{arm}**",
                f"{median:.3f} [{min(costs[arm]):.3f}, {max(costs[arm]):.3f}]",
                f"{median / statistics.median(costs[study.baseline]):.2f}",
                *(f"{share:.2f}" for share in shares),
            ]
        )
    commits = ", ".join(sorted({one.commit for of in times.values() for one in of}))
    where = "their core" if study.num_cores == 1 else "their cores"
    told = (
        f"Median, least and most of {max(map(len, times.values()))} short runs of each arm, made in turn "
        f"with nothing else on {where} (commits {commits}), and the shares of its stages. The seconds "
        "of this page are the tokens of a run times the median of its arm."
    )
    return f"{told}\n\n{_markdown(lines)}"


def _sweep(sweep: Mapping[str, Mapping[float, float]]) -> str:
    rates = sorted({rate for of in sweep.values() for rate in of})
    lines = [["arm", *(f"{rate:g}" for rate in rates)], ["---"] * (len(rates) + 1)]
    for arm, of in sweep.items():
        best = max(of, key=lambda rate, of=of: of[rate], default=None)
        cells = [f"{of[rate]:.3f}{' *' * (rate == best)}" if rate in of else "-" for rate in rates]
        lines.append([f"**{arm}**", *cells])
    told = (
        "Mean held-out accuracy over equal tokens of one run each, on a seed that is not in the tables; "
        "* is taken."
    )
    return f"{told}\n\n{_markdown(lines)}"


def _swept_costs(study: Study, costs: Mapping[str, Mapping[float, Sequence[float]]]) -> str:
    rates = sorted({rate for of in costs.values() for rate in of})
    lines = [["arm", *(f"{rate:g}" for rate in rates)], ["---"] * (len(rates) + 1)]
    for arm, of in costs.items():
        texts = {rate: " / ".join(_thousands(cost) for cost in ways) for rate, ways in of.items()}
        lines.append([f"**{arm}**", *(texts.get(rate, "-") for rate in rates)])
    targets = " / ".join(f"{target:g}" for target in study.targets)
    told = f"Thousand generated tokens of the same runs to {targets}; - is not reached."
    return f"{told}\n\n{_markdown(lines)}"


def _thousands(tokens: float) -> str:
    return f"{tokens / 1000:.0f}" if math.isfinite(tokens) else "-"


def _markdown(lines: Sequence[Sequence[Any]]) -> str:
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _fraction(of: Estimate) -> str:
    if math.isnan(of.mean):
        return "-"
    return f"{of.mean:.3f}" + ("" if math.isnan(of.low) else f" [{of.low:.3f}, {of.high:.3f}]")


def _cost(of: Estimate) -> str:
    if math.isnan(of.mean):
        return "-"
    interval = "" if math.isnan(of.low) else f" [{_amount(of.low)}, {_amount(of.high)}]"
    return f"{'> ' if of.censored else ''}{_amount(of.mean)}{interval}"


def _ratio(of: Ratio) -> str:
    if math.isnan(of.ratio):
        return "-"
    sign = {"exact": "", "at least": ">= ", "at most": "<= ", "unknown": ""}[of.bound]
    return f"{sign}{of.ratio:.2f}" + ("" if math.isnan(of.low) else f" [{of.low:.2f}, {of.high:.2f}]")


def _amount(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


# --------------------------------------------------------------------------------------------- plot


def _draw(runs: Mapping[str, Sequence[Kept]], axis: str, budget: float | None, path: Path) -> None:
    """Draw the mean curve of each arm, up to the end of its shortest run, and thin each of its
    runs.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sppo_ray.compare.plots import COLOURS, MARKERS
    from sppo_ray.display.plots import STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.8), dpi=130, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for index, (arm, of_arm) in enumerate(runs.items()):
            curves = [on_axis(kept, axis) for kept in of_arm if kept.failed is None]
            if not curves:
                continue
            end = min(_end(curve, budget) for curve in curves)
            grid = np.linspace(0.0, end, GRID_POINTS)
            lines = [np.interp(grid, [p.seconds for p in c], [p.accuracy for p in c]) for c in curves]
            colour = COLOURS[index % len(COLOURS)]
            for line in lines:
                axes.plot(grid, line, color=colour, alpha=0.2, linewidth=0.7)
            look = {"marker": MARKERS[index // len(COLOURS) % len(MARKERS)], "markevery": 20, "markersize": 4}
            axes.plot(grid, np.mean(lines, axis=0), color=colour, label=arm, **look)
        axes.set(xlabel=AXES[axis][0], ylabel="held-out accuracy", ylim=(0, 1.02))
        axes.set_xlim(left=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        image = io.BytesIO()
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())
