"""Does a recipe learn? Trains it once a seed through the command line and reports held-out accuracy
before and after.

    python -m benchmarks.learning quickstart --seeds 1 2 3 [--name NAME] [--part NAME]
        [--section.key=value ...]
    python -m benchmarks.learning quickstart --arms [ARM ...] [--at-most RUNS] [--section.key=value]

Each run is a process of its own, as a user starts it. Writes benchmarks/results/NAME.json (default
learning-RECIPE) with a row a seed and the accuracies of each evaluation, and NAME.png with the
learning curve of the first seed; the run directories go to --runs (default runs/benchmark). With
--part the figures are those of a part of the reward instead of the whole (`truth` of the recipe
preference). With --from DIR ... it reports finished run directories instead of training.

--arms trains the methods of ARMS (default: all), first all of them with the first seed. Their rows
are kept in benchmarks/results/learning-RECIPE-arms.json after every run and not made again, so the
command can be ended at any time; --at-most ends it after as many runs.

A gain is the last held-out accuracy minus the first. Both are means over as many prompts, sampled
independently, so the half-width of the gain's 95 % interval is the root of the sum of their squared
half-widths.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, commit, print_table, write_result
from sppo_ray.compare.runner import clear_unfinished, is_finished
from sppo_ray.display.plots import draw_learning_curve
from sppo_ray.rundir.metrics import read_metrics

TARGETS = {"quickstart": 0.85}  # held-out accuracy that every seed has to reach
TIME_LIMIT_S = 600.0  # of the command, on 2 cores, without installation and base model

FEW_PROMPTS = "--data.train.0.size=1024"
"""A tracker learns from prompts that come again: a fresh prompt has no history."""
ARMS: Mapping[str, tuple[str, ...]] = {
    "sppo-dis": ("--algorithm.loss.type=dis",),
    "sppo-dppo": ("--algorithm.loss.type=dppo",),
    "sppo-cispo": ("--algorithm.loss.type=cispo",),
    "sppo-privileged": ('--data.critic_suffix="{ground_truth}"',),
    "sppo-tracker": ("--algorithm.tracker.rho=0.875", FEW_PROMPTS),
    "sao": ("--algorithm.type=sao", "--critic.updates_per_minibatch=2"),
    "spo": ("--algorithm.type=spo", FEW_PROMPTS),
    "reinforce-pp": ("--algorithm.type=reinforce++",),
}
"""The methods for one sample a prompt that `--arms` trains, as overrides of a recipe."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--name", help="of the result file")
    parser.add_argument("--part", help="report this part of the reward")
    parser.add_argument(
        "--from", dest="finished", type=Path, nargs="+", help="finished run directories to report"
    )
    parser.add_argument("--arms", nargs="*", choices=ARMS, help="train these methods")
    parser.add_argument("--at-most", type=int, help="runs of --arms")
    options, overrides = parser.parse_known_args()
    if options.arms is not None:
        return train_arms(options, overrides)
    name = options.name or f"learning-{options.recipe}"
    walls: dict[Path, float | None]
    if options.finished:
        walls = dict.fromkeys(options.finished)
    else:
        walls = {
            run_dir: train(options.recipe, seed, run_dir, overrides)
            for seed in options.seeds
            for run_dir in [options.runs / f"{name}-seed{seed}"]
        }
    rows = [row(run_dir, wall_s, options.part) for run_dir, wall_s in walls.items()]
    print_table([{k: v for k, v in r.items() if k != "curve"} for r in rows])
    more = {"overrides": overrides} | ({"part": options.part} if options.part else {})
    print(write_result(name, rows, targets(options.recipe, rows), more))
    (RESULTS / f"{name}.png").write_bytes(draw_learning_curve(next(iter(walls))))
    return 0


def train_arms(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train the methods that are not in the result file yet, and write it after every run."""
    name = options.name or f"learning-{options.recipe}-arms"
    rows = kept_rows(RESULTS / f"{name}.json", overrides)
    jobs = [(seed, arm) for seed in options.seeds for arm in options.arms or ARMS]
    missing = [job for job in jobs if job not in {(r["seed"], r["arm"]) for r in rows}]
    for seed, arm in missing[: options.at_most]:
        run_dir = options.runs / f"{name}-{arm}-seed{seed}"
        wall_s = None
        if not is_finished(run_dir):
            clear_unfinished(run_dir)
            wall_s = train(options.recipe, seed, run_dir, [*ARMS[arm], *overrides])
        figures = row(run_dir, wall_s, options.part)
        rows.append({"arm": arm, "commit": commit(), "settings": ARMS[arm], **figures})
        rows.sort(key=lambda r: (list(ARMS).index(r["arm"]), r["seed"]))
        extra = {"overrides": list(overrides)}
        print(write_result(name, rows, targets(options.recipe, rows), extra), flush=True)
    shown = ("arm", "seed", "steps", "initial_accuracy", "final_accuracy", "training_s", "wall_s")
    print_table([{key: r[key] for key in shown} for r in rows])
    return 0


def kept_rows(path: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of an earlier command with the same settings."""
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["overrides"] != list(overrides):
        return []
    return [r for r in earlier["rows"] if r["settings"] == list(ARMS.get(r["arm"], ()))]


def train(recipe: str, seed: int, run_dir: Path, overrides: Sequence[str]) -> float:
    """Train, and return the seconds of the whole command."""
    command = [
        sys.executable,
        "-m",
        "sppo_ray",
        "train",
        recipe,
        "--run-dir",
        str(run_dir),
        "--seed",
        str(seed),
        *overrides,
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def row(run_dir: Path, wall_s: float | None, part: str | None) -> dict[str, Any]:
    """A run in figures. `wall_s` is the whole command's time, start-up, evaluations and export
    included; None = not taken.
    """
    summary = json.loads((run_dir / "summary.json").read_text())
    metrics = read_metrics(run_dir)
    evaluations = [json.loads(path.read_text()) for path in sorted((run_dir / "evaluations").glob("*.json"))]
    scores = [accuracy(evaluation, part) for evaluation in evaluations]
    return {
        "seed": summary["seed"],
        "steps": summary["steps"],
        "samples": summary["samples"],
        "initial_accuracy": scores[0][0],
        "final_accuracy": scores[-1][0],
        **gain(scores[0], scores[-1]),
        "training_s": summary["seconds"],
        "wall_s": None if wall_s is None else round(wall_s, 1),
        "tokens_per_s": round(summary["tokens_per_second"]),
        "restarts": summary["restarts"],
        # |engine - learner| of the sampled tokens' log-probs at equal weights, nats
        "mismatch_mean": _largest(metrics, "mismatch/logprob_difference_mean"),
        "mismatch_max": _largest(metrics, "mismatch/logprob_difference_max"),
        "sync_s": statistics.median(m["sync/seconds"] for m in metrics if "sync/seconds" in m),
        "curve": [
            {"step": e["step"], "train_seconds": e["train_seconds"], "accuracy": score[0]}
            for e, score in zip(evaluations, scores, strict=True)
        ],
    }


def accuracy(evaluation: dict[str, Any], part: str | None) -> tuple[float, float, float]:
    """The mean held-out reward, or that of a part of it, with its 95 % interval."""
    if part is not None:
        mean, low, high = evaluation["parts"][part]
    else:
        overall = evaluation["overall"]
        mean, low, high = (overall[f"accuracy{end}"] for end in ("", "_low", "_high"))
    return mean, low, high


def gain(first: tuple[float, float, float], last: tuple[float, float, float]) -> dict[str, float]:
    """The gain from the first evaluation to the last, with its 95 % interval."""
    difference = last[0] - first[0]
    half = math.hypot((first[2] - first[1]) / 2, (last[2] - last[1]) / 2)
    return {"gain": difference, "gain_low": difference - half, "gain_high": difference + half}


def _largest(metrics: Sequence[dict[str, Any]], name: str) -> float | None:
    return max((m[name] for m in metrics if m.get(name) is not None), default=None)


def targets(recipe: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    least = min(r["gain_low"] for r in rows)
    found = [
        {
            "what": "lower end of the gain's 95 % interval, worst seed",
            "target": "> 0",
            "figure": least,
            "met": least > 0,
        }
    ]
    if recipe not in TARGETS:
        return found
    worst = min(r["final_accuracy"] for r in rows)
    found.append(
        {
            "what": "final accuracy, worst seed",
            "target": f">= {TARGETS[recipe]}",
            "figure": worst,
            "met": worst >= TARGETS[recipe],
        }
    )
    times = [r["wall_s"] for r in rows if r["wall_s"] is not None]
    if times:
        found.append(
            {
                "what": "seconds, slowest seed",
                "target": f"< {TIME_LIMIT_S:.0f}",
                "figure": max(times),
                "met": max(times) < TIME_LIMIT_S,
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
