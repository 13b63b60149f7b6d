"""The control study in figures: a run's summary, a row an arm, the Markdown table, who is ahead,
and the plot.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEARNED = 0.5  # final success, mean of the seeds, from which on an arm counts as having learned
GRID = 31  # points of a curve
Row = Mapping[str, Any]


def figures_of(run: Row) -> dict[str, Any]:
    """A run's figures.

    final: success over the updates of the last tenth of the steps. area: mean success of all steps'
    policies.
    half: steps until the mean of three updates in a row is at least 0.5, None = never.
    """
    steps = np.array([update["env_steps"] for update in run["updates"]], dtype=float)
    success = np.array([update["success"] for update in run["updates"]])
    weights = np.diff(steps, prepend=0.0)
    three = np.convolve(success, np.full(3, 1 / 3), mode="valid") if len(success) >= 3 else np.zeros(0)
    reached = np.flatnonzero(three >= 0.5 - 1e-9)
    return {
        "final": float(success[steps > 0.9 * steps[-1]].mean()),
        "area": float((success * weights).sum() / steps[-1]),
        "half": int(steps[reached[0] + 2]) if len(reached) else None,
    }


def row_of(runs: Sequence[Row], env_steps: int) -> dict[str, Any]:
    """An arm's seeds together; `curves` hold each seed's success at GRID equally spaced steps up to
    `env_steps`.
    """
    figures = [figures_of(run) for run in runs]
    finals, areas = [f["final"] for f in figures], [f["area"] for f in figures]
    grid = np.linspace(0, env_steps, GRID)
    curves = [
        np.interp(grid, [u["env_steps"] for u in run["updates"]], [u["success"] for u in run["updates"]])
        .round(3)
        .tolist()
        for run in runs
    ]
    return {
        "final_mean": round(statistics.fmean(finals), 4),
        "final_sd": round(deviation(finals), 4),
        "finals": [round(final, 4) for final in finals],
        "areas": [round(area, 4) for area in areas],
        "steps_to_half": [f["half"] for f in figures],
        "first_update_success": round(statistics.fmean(run["updates"][0]["success"] for run in runs), 4),
        "final_length": round(statistics.fmean(run["updates"][-1]["length"] for run in runs), 1),
        "cpu_s": round(statistics.fmean(run["cpu_s"] for run in runs), 1),
        "env_steps": grid.astype(int).tolist(),
        "curves": curves,
    }


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(rows: Sequence[Row]) -> str:
    """The table: final success (mean +- sd over seeds), median steps to 50 % success, and how many
    runs get there.

    "learn, all rates" counts the sweep's runs, those at the worse learning rates too, that end at
    LEARNED or above.
    """
    lines = [
        "| task | arm | lr | start | final success | steps to 50 % | seeds there | learn, all rates | final "
        "length |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        there = [steps for steps in row["steps_to_half"] if steps is not None]
        half = f"{statistics.median(there):,.0f}" if there else "never"
        swept = [final for trial in row["sweep"].values() for final in trial["finals"]]
        lines.append(
            f"| {row['env']} | {row['arm']} | {row['learning_rate']:g} | {row['first_update_success']:.3f} | "
            f"{row['final_mean']:.3f} +- {row['final_sd']:.3f} | {half} | {len(there)}/{len(row['finals'])} "
            "| "
            f"{sum(final >= LEARNED for final in swept)}/{len(swept)} | {row['final_length']:.0f} |"
        )
    return "\n".join(lines)


def page(rows: Sequence[Row], criteria: Mapping[str, str], plot: str) -> str:
    """The report for readers. `criteria` say what success is, by task; `plot` is the file name of
    the figure.
    """
    return "\n".join(
        [
            "# Control study: one advantage an episode against one a step",
            "",
            f"![Success against environment steps]({plot})",
            "",
            "Binary terminal reward, MLP policies; each arm at the best of three learning rates.",
            "",
            markdown(rows),
            "",
            "Mean success over training, with two standard errors:",
            "",
            *(f"- {sentence}" for sentence in verdicts(rows)),
            "",
            "## Success",
            "",
            *(f"- **{env}**: {text}" for env, text in criteria.items()),
            "",
        ]
    )


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence for each task and token-level arm, against the arm `sequence`."""
    sequences = {row["env"]: row for row in rows if row["arm"] == "sequence"}
    others = [row for row in rows if row["arm"] != "sequence" and row["env"] in sequences]
    return [f"{row['env']}: {verdict(sequences[row['env']], row)}" for row in others]


def verdict(sequence: Row, token: Row) -> str:
    """Who is ahead in mean success over training (`areas`: it sees speed and level) by more than
    two standard errors.
    """
    name = token["arm"]
    learned = [row["arm"] for row in (sequence, token) if row["final_mean"] >= LEARNED]
    difference = statistics.fmean(sequence["areas"]) - statistics.fmean(token["areas"])
    error = math.sqrt(sum(deviation(row["areas"]) ** 2 / len(row["areas"]) for row in (sequence, token)))
    if abs(difference) <= 2 * error:
        ahead = f"sequence and {name} are level"
    else:
        ahead = (
            f"{'sequence' if difference > 0 else name} is ahead of {name if difference > 0 else 'sequence'}"
        )
    reached = {
        0: f"neither reaches {LEARNED:.0%}",
        1: f"only {''.join(learned)} reaches {LEARNED:.0%}",
        2: "both learn",
    }
    return (
        f"{ahead} (mean success over training {difference:+.3f} +- {2 * error:.3f}); {reached[len(learned)]}"
    )


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Success against environment steps, a panel a task; mean of the seeds, band from the worst to
    the best.
    """
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(row["env"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = Figure(figsize=(3.6 * len(envs), 3.2), layout="constrained")
    for axes, env in zip(figure.subplots(1, len(envs), squeeze=False)[0], envs, strict=True):
        for row in (row for row in rows if row["env"] == env):
            curves, colour = np.array(row["curves"]), f"C{arms.index(row['arm'])}"
            axes.plot(row["env_steps"], curves.mean(0), color=colour, label=row["arm"])
            axes.fill_between(
                row["env_steps"], curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0
            )
        axes.set(title=env, xlabel="environment steps", ylim=(-0.02, 1.02))
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    figure.axes[0].set_ylabel("success rate")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
