"""How well does the prompt critic know what its policy can solve? (The paper: Pearson 0.642,
Spearman 0.664 against avg@64.)

    python -m benchmarks.paper.critic_quality [--recipe long-sum] [--seeds 3] [--steps 30] [-k 32]

Trains each seed with Sequence-Level PPO, then compares V(prompt) with the share of k responses that
are right, on 256 held-out prompts and on prompts that it was trained on (`sppo-ray calibrate`).
Writes benchmarks/results/paper/critic-quality/: report.md, report.json and each seed's reliability
plot. Seeds that are measured already, with as many steps and responses, are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, write_result

PAPER = {"pearson": 0.642, "spearman": 0.664}
RUNS = Path("runs/paper/critic-quality")
REPORT = "paper/critic-quality"
SHOWN = ("pearson", "spearman", "auroc", "ece", "brier", "brier_constant")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--recipe", default="long-sum")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("-k", type=int, default=32)
    options = parser.parse_args()
    rows = [row for seed in range(1, options.seeds + 1) for row in measure(options, seed)]
    held_out = [row for row in rows if row["prompts"].startswith("held-out")]
    path = write_result(
        f"{REPORT}/report", rows, targets(held_out), {"recipe": options.recipe, "steps": options.steps}
    )
    text = markdown(options, rows)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text, path.with_suffix(".md"), sep="\n")
    for seed in range(1, options.seeds + 1):
        shutil.copyfile(run_path(options, seed) / "calibration" / "reliability.png", plot_path(seed))
    return 0


def run_path(options: argparse.Namespace, seed: int) -> Path:
    return RUNS / f"{options.recipe}-{options.steps}-steps-seed{seed}"


def plot_path(seed: int) -> Path:
    return RESULTS / REPORT / f"reliability-seed{seed}.png"


def measure(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each set of prompts: held out, seen."""
    run_dir = run_path(options, seed)
    result = run_dir / "calibration" / "calibration.json"
    if not is_measured(result, options.k):
        common = [
            "--run-dir",
            str(run_dir),
            "--seed",
            str(seed),
            f"--loop.steps={options.steps}",
            "--eval.every=0",
        ]
        resume = ["--resume"] if (run_dir / "metrics.jsonl").is_file() else []
        if not (run_dir / "export" / "critic").is_dir():
            call("train", options.recipe, *common, *resume)
        call("calibrate", str(run_dir), "-k", str(options.k))
    accuracy = json.loads((run_dir / "summary.json").read_text())["final_accuracy"]
    trained_on = json.loads((run_dir / "environment.json").read_text())["commit"]
    return [
        {"seed": seed, "commit": trained_on, "prompts": name, "accuracy": accuracy, **figures_of(measured)}
        for name, measured in json.loads(result.read_text())["sets"].items()
    ]


def is_measured(result: Path, k: int) -> bool:
    if not result.is_file():
        return False
    return all(
        measured["responses_a_prompt"] == k for measured in json.loads(result.read_text())["sets"].values()
    )


def figures_of(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {"n": measured["count"], "k": measured["responses_a_prompt"]} | {
        name: measured["figures"][name] for name in SHOWN
    }


def markdown(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> str:
    """The report: a row a seed and set of prompts, the mean of the seeds, the paper's figures, the
    plots.
    """
    columns = ("seed", "prompts", *SHOWN)
    means = [
        {"seed": "mean", "prompts": name}
        | {
            figure: statistics.fmean(row[figure] for row in rows if row["prompts"] == name)
            for figure in SHOWN
        }
        for name in dict.fromkeys(row["prompts"] for row in rows)
    ]
    paper = {"seed": "paper", "prompts": "held-out prompts", **PAPER}
    lines = [
        f"# Critic quality: {options.recipe}, {options.steps} steps, avg@{options.k}",
        "",
        f"V(prompt) against the share of {options.k} responses that are right, {rows[0]['n']} prompts a set. "
        "Accuracy of the "
        "policies: "
        + ", ".join(f"{row['accuracy']:.2f}" for row in rows if row["prompts"] == rows[0]["prompts"])
        + ". `brier_constant` is the Brier score of the mean solve rate, said of every prompt.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *(
            "| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |"
            for row in (*rows, *means, paper)
        ),
        "",
        *(f"![Reliability, seed {seed}]({plot_path(seed).name})" for seed in range(1, options.seeds + 1)),
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def call(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "sppo_ray", *arguments], check=True)


def targets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for name, paper in PAPER.items():
        mean = statistics.fmean(row[name] for row in rows)
        found.append(
            {
                "what": f"{name} on held-out prompts, mean of seeds",
                "target": f">= {paper}",
                "figure": mean,
                "met": mean >= paper,
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
