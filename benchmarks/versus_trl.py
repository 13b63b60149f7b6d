"""Samples/s of GRPO, here and in TRL's GRPOTrainer: the same model, prompts, reward and cores.

    python -m benchmarks.versus_trl [--pairs 5] [--only NAME ...] [--add]

With `--only`, the rows of the other cases stay in the result as they are. With `--add`, the pairs
join those of the result. It is written after each pair of all cases, so an interruption loses only
the pair under way.

Each run is a process of its own, pinned to the same core (or two); the two take turns, so that a
busy machine slows both. TRL generates with Transformers (its vLLM mode needs a GPU). The figure is
samples/s, ours against TRL's, in each pair; the start of a run does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, commit, print_table, write_result
from benchmarks.shaped_model import make_model
from benchmarks.trl_side import Task

WARM_UP = 4
"""Steps at the beginning that do not count."""
RUNNING_SUM = "builtin:running-sum"
LONG_TAILED = 1 / 100
"""The chance that a response ends after a token: lengths of 100 on average, cut at 512."""


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison; `end_chance` None = the quickstart's own model."""

    name: str
    target: float  # samples/s, ours against TRL's
    cores: int = 1
    prompts: int = 32
    samples: int = 8
    updates: int = 1
    response_tokens: int = 80
    end_chance: float | None = None
    steps: int = 16  # of a run, the first WARM_UP not counted

    def task(self, model: str) -> Task:
        return Task(
            steps=self.steps,
            threads=self.cores,
            model=model,
            prompts=self.prompts,
            samples=self.samples,
            updates=self.updates,
            response_tokens=self.response_tokens,
            learning_rate=5e-4 if self.end_chance is None else 1e-9,
        )


CASES = [
    Case("quickstart-1-update", 1.0),
    Case("quickstart-4-updates", 1.0, updates=4),
    Case("quickstart-2-cores", 1.1, cores=2),
    Case("1.6M-64x128", 1.3, prompts=8, response_tokens=128, end_chance=0.0, steps=10),
    Case("1.6M-256x32", 1.3, response_tokens=32, end_chance=0.0, steps=10),
    Case("1.6M-long-tailed", 2.0, prompts=8, response_tokens=512, end_chance=LONG_TAILED, steps=7),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=str(names))
    parser.add_argument("--add", action="store_true", help="to the pairs of the result")
    options = parser.parse_args()
    known = earlier_rows() if options.add else {}
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for case in CASES if case.name in options.only]
        models = {case.name: model_of(case, Path(folder)) for case in cases}
        pairs: dict[str, list[Sequence[float]]] = {case.name: earlier_pairs(known, case) for case in cases}
        for _ in range(options.pairs):
            for case in cases:
                task = case.task(models[case.name])
                pairs[case.name].append((measure_ours(task, case.cores), measure_trl(task, case.cores)))
            print(write({case.name: summary(case, pairs[case.name]) for case in cases}), flush=True)


def write(measured: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the result with the rows of these cases, and print it. Returns the file."""
    known = earlier_rows() | measured
    rows = {case.name: known[case.name] for case in CASES if case.name in known}
    targets = [
        {
            "what": f"samples/s against TRL, {case.name}",
            "target": f">= {case.target}",
            "figure": rows[case.name]["ratio_median"],
            "met": rows[case.name]["ratio_median"] >= case.target,
        }
        for case in CASES
        if case.name in rows
    ]
    print_table([{key: value for key, value in row.items() if key != "seconds"} for row in rows.values()])
    return write_result("versus_trl", list(rows.values()), targets)


def earlier_rows() -> dict[str, dict[str, Any]]:
    """The rows of the result that is there, by case, each with the commit it was measured on."""
    try:
        earlier = json.loads((RESULTS / "versus_trl.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {row["case"]: {"commit": earlier["commit"]} | row for row in earlier["rows"]}


def earlier_pairs(known: Mapping[str, Mapping[str, Any]], case: Case) -> list[Sequence[float]]:
    """The pairs of a case that the result has. Exits when they are of another commit."""
    row = known.get(case.name, {"commit": commit()})
    if row["commit"] != commit():
        sys.exit(f"{case.name}: measured on {row['commit']}, this is {commit()}: leave out --add")
    return [*row.get("seconds", [])]


def model_of(case: Case, folder: Path) -> str:
    if case.end_chance is None:
        return RUNNING_SUM
    directory = folder / f"ends-{case.end_chance:g}"
    if not directory.exists():
        make_model(directory, end_chance=case.end_chance)
    return str(directory)


def summary(case: Case, pairs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """`pairs` are (ours, TRL's) seconds a step."""
    ratios = [trl / ours for ours, trl in pairs]
    return {
        "case": case.name,
        "ours_s": round(statistics.median(ours for ours, _ in pairs), 3),
        "trl_s": round(statistics.median(trl for _, trl in pairs), 3),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_least": round(min(ratios), 3),
        "ratio_most": round(max(ratios), 3),
        "pairs": len(pairs),
        "seconds": [[round(ours, 3), round(trl, 3)] for ours, trl in pairs],
        "commit": commit(),
    }


def measure_ours(task: Task, cores: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = our_settings(task) | {
            "algorithm.type": "grpo",
            "data.prompts_per_step": task.prompts,
            "data.samples_per_prompt": task.samples,
            "data.minibatch_size": task.prompts * task.samples // task.updates,
            "loop.max_staleness": int(cores > 1),
            "eval.every": 0,
            "eval.at_start": "false",
        }
        train("quickstart", run, settings, cores)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return seconds_a_step([row["time"] for row in map(json.loads, lines) if "seconds/step" in row])


def our_settings(task: Task) -> dict[str, Any]:
    return {
        "learner.model": task.model,
        "learner.optimizer.lr": task.learning_rate,
        "rollout.max_response_tokens": task.response_tokens,
        "seed": task.seed,
        "loop.steps": task.steps,
        "checkpoint.every": 0,
        "guardrails.action": "off",  # a random policy learns nothing
    }


def measure_trl(task: Task, cores: int) -> float:
    found = json.loads(pinned(task.command(), cores).splitlines()[-1])
    return seconds_a_step(found["ends"])


def train(recipe: str, run: Path, settings: dict[str, Any], cores: int) -> None:
    """`sppo-ray train` in a process of its own."""
    pinned(train_command(recipe, run, settings), cores)


def train_command(recipe: str, run: Path, settings: dict[str, Any]) -> list[str]:
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "sppo_ray", "train", recipe, "--run-dir", str(run), *options]


def pinned(command: Sequence[str], cores: int) -> str:
    """The output of a command that has only the first `cores` cores."""
    done = subprocess.run(
        on_cores(command, cores), env=environment(cores), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def on_cores(command: Sequence[str], cores: int) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, range(cores))), *command]


def environment(cores: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(cores), "RAY_worker_niceness": "0"}


def seconds_a_step(ends: Sequence[float]) -> float:
    """The mean between the ends of the steps that count."""
    counted = ends[WARM_UP - 1 :]
    return (counted[-1] - counted[0]) / (len(counted) - 1)


if __name__ == "__main__":
    main()
