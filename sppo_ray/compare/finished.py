"""Compare runs that have ended, made by whatever commands: results, and what differed in settings,
code and packages.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.compare.curves import Point, crossing
from sppo_ray.compare.report import default_targets
from sppo_ray.config.flat import flatten
from sppo_ray.errors import UserError
from sppo_ray.formatting import format_fraction, format_seconds
from sppo_ray.rundir.environment import code_label
from sppo_ray.rundir.evaluations import read_evaluations
from sppo_ray.rundir.files import RunFile, json_object
from sppo_ray.rundir.jsonlines import write_atomically
from sppo_ray.rundir.layout import ENVIRONMENT, SUMMARY
from sppo_ray.rundir.record import settings_of
from sppo_ray.rundir.summary import Summary

_NOT_SETTINGS = ("name", "seed")  # columns of their own


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run that finished or was stopped."""

    label: str
    summary: Summary
    evaluations: tuple[Mapping[str, Any], ...]  # those with a graded response
    settings: Mapping[str, Any]  # flat
    versions: Mapping[str, str]  # of the code and the packages

    @property
    def curve(self) -> list[Point]:
        return [
            Point(e["train_seconds"], e["train_samples"], e["train_tokens"], e["overall"]["accuracy"])
            for e in self.evaluations
        ]


def read_runs(paths: Sequence[Path]) -> list[EndedRun]:
    """Read the runs. Raises UserError for one that has not ended, or that is given twice."""
    places = [path.resolve() for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"{place} is given twice: compare different runs")
    return [_read(path, label) for path, label in zip(paths, _labels(places), strict=True)]


def comparison_text(runs: Sequence[EndedRun], targets: Sequence[float] = ()) -> str:
    """Return the results as a table, and under it the differences; `targets` are held-out
    accuracies (none: by the rule of `default_targets`).
    """
    blocks = [_results(runs, targets or _targets(runs))]
    if len({_held_out(run) for run in runs}) > 1:
        blocks.append("The held-out data differ: accuracies cannot be compared.")
    different = differences([run.settings for run in runs])
    different = {name: row for name, row in different.items() if name not in _NOT_SETTINGS}
    labels = [run.label for run in runs]
    blocks.append(_table(["setting", *labels], different) if different else "The settings are the same.")
    versions = differences([run.versions for run in runs])
    if versions:
        blocks.append(_table(["version", *labels], versions))
    return "\n\n".join(blocks)


def differences(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the entries that are not the same in all flat trees, as text: {name: one per tree};
    "-" where a tree has none.
    """
    names = dict.fromkeys(name for tree in trees for name in tree)
    rows = {name: [_shown(tree[name]) if name in tree else "-" for tree in trees] for name in names}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def draw_runs(runs: Sequence[EndedRun], path: Path) -> None:
    """Write a PNG: held-out accuracy with its 95 % interval against training time and tokens."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sppo_ray.compare.plots import COLOURS, MARKERS
    from sppo_ray.display.plots import STYLE

    spent = {"training time (seconds)": "train_seconds", "generated tokens": "train_tokens"}
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (label, key) in zip(figure.subplots(1, 2, sharey=True), spent.items(), strict=True):
            axes.set(title=f"Held-out accuracy against {label}", ylim=(0, 1.02))
            for index, run in enumerate(runs):
                at = [evaluation[key] for evaluation in run.evaluations]
                scores = [evaluation["overall"] for evaluation in run.evaluations]
                colour = COLOURS[index % len(COLOURS)]
                look = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "markersize": 4.5}
                axes.plot(at, [score["accuracy"] for score in scores], label=run.label, **look)
                low, high = ([score[f"accuracy_{end}"] for score in scores] for end in ("low", "high"))
                axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.set_xlim(left=0)
        figure.axes[0].legend(loc="lower right")
        image = io.BytesIO()
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


# ------------------------------------------------------------------------------------------- inside


def _read(path: Path, label: str) -> EndedRun:
    summary = Summary.read(RunFile(path, SUMMARY))
    if summary is None:
        raise UserError(f"{path}: has no {SUMMARY}, so it has not ended: wait for it, or stop it")
    machine = json_object(RunFile(path, ENVIRONMENT))
    versions = dict(machine.get("packages") or {})
    if "commit" in machine:
        versions["code"] = code_label({"packages": {}, "modified": None} | machine)
    graded = [e for e in read_evaluations(path) if e["overall"]["accuracy"] is not None]
    return EndedRun(label, summary, tuple(graded), flatten(settings_of(path)), versions)


def _labels(places: Sequence[Path]) -> list[str]:
    """The shortest last parts of the paths that tell them apart."""
    for parts in range(1, max(len(place.parts) for place in places)):
        labels = ["/".join(place.parts[-parts:]) for place in places]
        if len(set(labels)) == len(labels):
            return labels
    return [str(place) for place in places]


def _results(runs: Sequence[EndedRun], targets: Sequence[float]) -> str:
    head = ["run", "algorithm", "seed", "status", "steps", "accuracy: first", "last [95 %]", "best", "time"]
    head += ["samples", "tokens", "tokens/s", *(f"time to {target:g}" for target in targets)]
    rows = {}
    for run in runs:
        summary = run.summary
        rows[run.label] = [
            summary.algorithm,
            str(summary.seed),
            summary.status,
            str(summary.steps),
            _fraction(summary.initial_accuracy),
            _last(run),
            _fraction(summary.best_accuracy),
            format_seconds(summary.seconds),
            f"{summary.samples:,}",
            f"{summary.response_tokens:,}",
            "-" if math.isnan(summary.tokens_per_second) else f"{summary.tokens_per_second:,.0f}",
            *(_time_to(run, target) for target in targets),
        ]
    return _table(head, rows)


def _last(run: EndedRun) -> str:
    if not run.evaluations:
        return "-"
    scores = run.evaluations[-1]["overall"]
    interval = f"[{_fraction(scores['accuracy_low'])}, {_fraction(scores['accuracy_high'])}]"
    return f"{_fraction(scores['accuracy'])} {interval}"


def _time_to(run: EndedRun, target: float) -> str:
    """Training time until two evaluations in a row reached the target."""
    curve = run.curve
    if not curve:
        return "-"
    met = crossing(curve, target, curve[-1].seconds)
    return format_seconds(met.seconds) if met.reached else "never"


def _targets(runs: Sequence[EndedRun]) -> tuple[float, ...]:
    curves = [run.curve for run in runs if run.curve]
    if not curves:
        return ()
    base = min(curve[0].accuracy for curve in curves)
    return default_targets(base, [curve[-1].accuracy for curve in curves])


def _held_out(run: EndedRun) -> tuple[tuple[str, str], ...]:
    names = ("data.held_out.", "eval.prompts", "eval.samples_per_prompt", "reward.function.")
    return tuple((name, str(value)) for name, value in run.settings.items() if name.startswith(names))


def _fraction(value: float | None) -> str:
    return format_fraction(math.nan if value is None else value)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"


def _table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Columns of text, two blanks between them."""
    lines = [list(head), *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)
