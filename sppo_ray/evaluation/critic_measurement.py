"""Measure a critic against empirical solve rates for each set of prompts: figures with intervals,
as a table and as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppo_ray.algorithms.shaping import Shaping, unshaped
from sppo_ray.evaluation.calibration import BINS, CalibrationReport, calibrate, calibration_intervals
from sppo_ray.evaluation.sampler import GradedTrajectory
from sppo_ray.formatting import format_fraction
from sppo_ray.intervals import Interval, bootstrap_interval
from sppo_ray.rundir.jsonlines import finite_json
from sppo_ray.rundir.trajectories import read_step, steps, to_samples
from sppo_ray.types import Prompt

SEEN_STEPS = 16  # number of steps, evenly spread, from which seen prompts are taken


@dataclass(frozen=True, slots=True)
class SolveRate:
    """The rewards of k responses to one prompt."""

    rewards: tuple[float, ...]  # responses that the verifier scored
    errors: int  # responses that it could not score

    @property
    def mean(self) -> float:
        """avg@k over the graded responses; NaN when there is none."""
        return math.fsum(self.rewards) / len(self.rewards) if self.rewards else math.nan


def solve_rates(
    graded: Sequence[GradedTrajectory], k: int, *, shaped: Shaping = unshaped
) -> list[SolveRate]:
    """Return the solve rate of each prompt from its `k` consecutive responses. `shaped` gives the
    reward that the critic learned from.
    """
    groups = (graded[start : start + k] for start in range(0, len(graded), k))
    return [_solve_rate(group, shaped) for group in groups]


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """The critic's figures on one set of prompts. A prompt without a graded response is left out
    and counted.
    """

    name: str
    k: int
    report: CalibrationReport
    intervals: Mapping[str, Interval]  # of report.figures
    solve_rate: float  # mean over prompts of avg@k
    solve_rate_interval: Interval
    value_mean: float
    reward_errors: int  # responses that the verifier could not score
    prompts_left_out: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, NaN as null."""
        return finite_json(
            self.report.to_dict()
            | {
                "intervals": self.intervals,
                "responses_a_prompt": self.k,
                "solve_rate": self.solve_rate,
                "solve_rate_interval": self.solve_rate_interval,
                "value_mean": self.value_mean,
                "reward_errors": self.reward_errors,
                "prompts_left_out": self.prompts_left_out,
            }
        )


def measured(
    name: str, values: Sequence[float], rates: Sequence[SolveRate], *, k: int, seed: int, bins: int = BINS
) -> MeasuredSet:
    """Compare the value of each prompt with its solve rate. `seed` draws the bootstrap.

    Raises ValueError when no prompt has a graded response.
    """
    pairs = [(value, rate.mean) for value, rate in zip(values, rates, strict=True) if rate.rewards]
    if not pairs:
        raise ValueError(f"{name}: no response could be graded")
    known, solved = zip(*pairs, strict=True)
    return MeasuredSet(
        name=name,
        k=k,
        report=calibrate(known, solved, bins=bins),
        intervals=calibration_intervals(known, solved, seed=seed, bins=bins),
        solve_rate=math.fsum(solved) / len(solved),
        solve_rate_interval=bootstrap_interval(solved, seed=seed),
        value_mean=math.fsum(known) / len(known),
        reward_errors=sum(rate.errors for rate in rates),
        prompts_left_out=len(rates) - len(pairs),
    )


def seen_prompts(run_dir: Path, count: int, seed: int) -> list[Prompt]:
    """Return at most `count` different training prompts, evenly from up to SEEN_STEPS steps; empty
    when the run kept no trajectories. Raises UserError for a damaged trajectory file.
    """
    recorded = steps(run_dir)
    if not recorded:
        return []
    chosen = sorted(
        {recorded[round(at)] for at in np.linspace(0, len(recorded) - 1, num=min(SEEN_STEPS, len(recorded)))}
    )
    generator = np.random.default_rng(seed)
    found: dict[str, Prompt] = {}
    for place, step in enumerate(chosen, start=1):
        prompts = {
            sample.scored.prompt.id: sample.scored.prompt for sample in to_samples(read_step(run_dir, step))
        }
        fresh = [prompt for name, prompt in sorted(prompts.items()) if name not in found]
        share = max(round(count * place / len(chosen)) - len(found), 0)
        found |= {fresh[index].id: fresh[index] for index in generator.permutation(len(fresh))[:share]}
    return list(found.values())


def trained_prompts(run_dir: Path) -> set[tuple[int, ...]]:
    """Return all prompts of the run's recorded steps, as token ids of the critic. Raises UserError
    for a damaged trajectory file.
    """
    tables = (read_step(run_dir, step, ["critic_prompt_ids"]) for step in steps(run_dir))
    return {tuple(ids) for table in tables for ids in table["critic_prompt_ids"].to_pylist()}


def table_text(sets: Sequence[MeasuredSet]) -> str:
    """Format the sets side by side: one line per figure with its 95 % interval, then the
    reliability bins.
    """
    rows = [
        ("", [item.name for item in sets]),
        ("prompts", [str(item.report.count) for item in sets]),
        ("responses a prompt", [str(item.k) for item in sets]),
        ("reward errors", [str(item.reward_errors) for item in sets]),
        ("solve rate", [_with_interval(item.solve_rate, item.solve_rate_interval) for item in sets]),
        ("mean value", [f"{item.value_mean:.3f}" for item in sets]),
    ]
    for name in sets[0].report.figures:
        rows.append(
            (name, [_with_interval(item.report.figures[name], item.intervals[name]) for item in sets])
        )
    rows += [("", [""] * len(sets)), ("value in", ["prompts  value  solve rate"] * len(sets))]
    for place, bounds in enumerate(sets[0].report.bins):
        cells = [item.report.bins[place] for item in sets]
        shown = [
            f"{b.count:7}  {format_fraction(b.value_mean):>5}  {format_fraction(b.reward_mean):>10}"
            for b in cells
        ]
        rows.append((f"[{bounds.low:.2f}, {bounds.high:.2f})", shown))
    return "\n".join(
        f"{label:<19}{''.join(f'{cell:<28}' for cell in cells)}".rstrip() for label, cells in rows
    )


# ------------------------------------------------------------------------------------------- inside


def _solve_rate(graded: Sequence[GradedTrajectory], shaped: Shaping) -> SolveRate:
    rewards = tuple(
        shaped(one.verdict.reward, one.trajectory.num_actions)
        for one in graded
        if one.verdict.reward is not None
    )
    return SolveRate(rewards, len(graded) - len(rewards))


def _with_interval(figure: float, interval: Interval) -> str:
    if not math.isfinite(figure):
        return "-"
    return f"{figure:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
