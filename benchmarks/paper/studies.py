"""The comparisons of the Sequence-Level PPO paper (arXiv 2604.08865) at the scale of a CPU, each
one command.

    python -m benchmarks.paper.studies NAME [--seeds N] [--budget SECONDS] [--out DIR]      NAMEs: see STUDIES, or --list

Each is a `sppo-ray compare`: it can be interrupted and started again, and more seeds can be added
later; a run that another study has made already is taken over. The report goes to
benchmarks/results/paper/NAME/ (report.md, report.json, plots); the run directories stay in
runs/paper/NAME.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import RESULTS
from sppo_ray.compare import compare

REPORTS = RESULTS / "paper"
RUNS = Path("runs/paper")
WARM_CRITIC = RUNS / "warm-start" / "export" / "critic"
NO_WARMUP = "critic.warmup_steps=0"
"""As published. A fresh critic says 0.5 of every prompt, which is a fair baseline to start from."""
GSPO = "algorithm.ratio=sequence,algorithm.clip_low=3e-4,algorithm.clip_high=4e-4"
"""With the clip range of its paper (arXiv 2507.18071); it comes with the mean over sequences, which
has an arm of its own.
"""
ALL_ARMS = ("sppo", "grpo", "grpo-equal-prompts", "ppo", "rloo", "remax", "reinforce")


@dataclass(frozen=True, slots=True)
class Study:
    """One comparison. `overrides` hold for all its arms."""

    about: str
    recipe: str
    arms: tuple[str, ...]
    seeds: int
    budget_s: float
    baseline: str
    overrides: tuple[str, ...] = ()


STUDIES: Mapping[str, Study] = {
    "time-short": Study(
        "time to accuracy, short responses (40 tokens): the paper's efficiency figure",
        "quickstart", ALL_ARMS, 5, 60, "grpo", ("eval.every_s=6", NO_WARMUP),
    ),
    "time-long": Study(
        "time to accuracy, longer responses (84 tokens) and prompts of widely varied difficulty",
        "long-sum", ALL_ARMS, 5, 120, "grpo", ("eval.every_s=12", NO_WARMUP),
    ),
    "samples-a-prompt": Study(
        "N = 1 against N = 8, with and without the critic, at equal tokens and at equal prompts",
        "quickstart",
        (
            "sppo",
            "sppo-n8-equal-tokens:sppo,data.prompts_per_step=32,data.samples_per_prompt=8",
            "sppo-n8-equal-prompts:sppo,data.samples_per_prompt=8,data.minibatch_size=512,learner.optimizer.lr_warmup_steps=2",
            "grpo",
            "grpo-equal-prompts",
        ),
        3, 60, "sppo", ("eval.every_s=6", NO_WARMUP),
    ),
    "ablations": Study(
        "PPO with a BCE critic, critic size, sequence-level ratio, curriculum, critic warm start (from "
        "another run's 5,120 "
        "samples, which its own budget does not hold)",
        "quickstart",
        (
            "sppo",
            "ppo",
            "ppo-bce",
            "ppo-lam95",
            "sppo-tiny-critic:sppo,critic.model=builtin:tiny-critic",
            "sppo-sequence-mean:sppo,algorithm.loss_aggregation=sequence-mean",
            f"sppo-sequence-ratio:sppo,algorithm.loss_aggregation=sequence-mean,{GSPO}",
            "sppo-warmup:sppo,critic.warmup_steps=3",
            f"sppo-warm-critic:sppo,critic.model={WARM_CRITIC}",
            "sppo-curriculum:sppo,data.curriculum.candidates=4",
        ),
        3, 60, "sppo", ("eval.every_s=6", NO_WARMUP),
    ),
    "memory": Study(
        "peak memory by role: a critic of the policy's size against a small one",
        "smollm2-arithmetic",
        (
            "sppo-small-critic:sppo",
            "sppo-policy-size-critic:sppo,critic.model=builtin:smollm2-135m",
            "ppo-policy-size-critic:ppo,critic.model=builtin:smollm2-135m",
            "grpo",
        ),
        1, 60, "sppo-policy-size-critic", ("eval.prompts=8", NO_WARMUP),
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("name", nargs="?", choices=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, help="default: the study's")
    parser.add_argument("--budget", type=float, help="seconds of training a run; default: the study's")
    parser.add_argument("--out", type=Path, help=f"of the runs (default: {RUNS}/NAME)")
    parser.add_argument("--list", action="store_true", help="the studies, and what they are about")
    options = parser.parse_args(arguments)
    if options.list or options.name is None:
        print("\n".join(f"{name:18} {study.about}" for name, study in STUDIES.items()))
        return 0
    study, out = STUDIES[options.name], options.out or RUNS / options.name
    if any(str(WARM_CRITIC) in arm for arm in study.arms):
        make_warm_critic()
    report = compare(
        study.recipe,
        study.arms,
        range(1, (options.seeds or study.seeds) + 1),
        options.budget or study.budget_s,
        out,
        overrides=study.overrides,
        baseline=study.baseline,
        reuse=[
            folder
            for folder in sorted(RUNS.glob("*"))
            if folder != out and (folder / "compare.json").exists()
        ],
    )
    print(f"{publish(options.name, out)}: {len(report.failed)} runs failed")
    return 1 if report.failed else 0


def make_warm_critic() -> None:
    """A critic of another run on the same task (seed 101), to start from."""
    if not WARM_CRITIC.is_dir():
        run_dir = WARM_CRITIC.parents[1]
        shutil.rmtree(run_dir, ignore_errors=True)  # of an interrupted try
        command = ["train", "quickstart", "--run-dir", str(run_dir), "--seed", "101", "--loop.steps=20"]
        subprocess.run([sys.executable, "-m", "sppo_ray", *command], check=True)


def publish(name: str, out: Path) -> Path:
    """Copy the report to benchmarks/results/paper/NAME."""
    target = REPORTS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in (*out.glob("report.*"), *out.glob("*.png")):
        shutil.copyfile(file, target / file.name)
    return target


if __name__ == "__main__":
    sys.exit(main())
