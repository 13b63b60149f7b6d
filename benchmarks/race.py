"""The race: seconds of training to a held-out accuracy, Sequence-Level PPO here against TRL's GRPO.

    python -m benchmarks.race [--seeds 3] [--accuracy 0.82] [--cores 2]

Both train the quickstart's policy on its prompts, 256 samples and four updates a step, and evaluate
every four steps one sample of each of 256 held-out prompts; evaluations do not count as time. Each
has the best of three learning rates, by the median over the seeds. The runs take turns. GRPO here
runs as well, to tell the algorithm from the system.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, write_result
from benchmarks.trl_side import Task
from benchmarks.versus_trl import environment, on_cores, our_settings, pinned, train_command

RATES = (2.5e-4, 5e-4, 1e-3)
EVERY = 2
STEPS = 60
TARGET = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--accuracy", type=float, default=0.82)
    parser.add_argument("--cores", type=int, default=2, choices=[1, 2])
    options = parser.parse_args()
    rows = []
    for seed in range(1, options.seeds + 1):
        for rate in RATES:
            task = Task(
                steps=STEPS,
                threads=options.cores,
                updates=4,
                learning_rate=rate,
                seed=seed,
                evaluate_every=EVERY,
                stop_at=options.accuracy,
            )
            for side, race in SIDES.items():
                rows.append({"side": side, "rate": rate, "seed": seed, "seconds": race(task, options.cores)})
    best = {side: best_rate(rows, side) for side in SIDES}
    ratio = best["sppo-ray, sppo"][1] / best["trl, grpo"][1]
    targets = [
        {
            "what": f"seconds to {options.accuracy}, sppo here / TRL's GRPO, {options.cores} core(s)",
            "target": f"<= {TARGET}",
            "figure": round(ratio, 3),
            "met": ratio <= TARGET,
        }
    ]
    print_table(rows)
    summary = [{"side": side, "rate": rate, "median_s": median} for side, (rate, median) in best.items()]
    print_table(summary)
    print(write_result("race", rows, targets, {"best": summary}))


def best_rate(rows: list[dict[str, Any]], side: str) -> tuple[float, float]:
    """The learning rate with the least median of seconds, and that median."""
    medians = {
        rate: statistics.median(r["seconds"] for r in rows if (r["side"], r["rate"]) == (side, rate))
        for rate in RATES
    }
    return min(medians.items(), key=lambda entry: entry[1])


def ours(task: Task, cores: int, **settings: Any) -> float:
    """Seconds of training to the accuracy; infinite when the run did not reach it."""
    schedule = {"learner.optimizer.lr_warmup_steps": 0}  # as TRL's default
    return seconds_to(task.stop_at, our_settings(task) | schedule | settings, cores)


def seconds_to(accuracy: float, settings: dict[str, Any], cores: int) -> float:
    """The same for the quickstart with `settings`. The run is stopped when it is there."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = {"eval.every": EVERY, "checkpoint.every": 0} | settings
        command = on_cores(train_command("quickstart", run, settings), cores)
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, env=environment(cores), stdout=log, stderr=log)
            while process.poll() is None and not seconds_reached(run, accuracy):
                time.sleep(1)
            process.terminate()
            status, reached = process.wait(), seconds_reached(run, accuracy)
            if status and not reached:
                log.seek(0)
                raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-4000:]}")
    return round(min(reached), 2) if reached else float("inf")


def seconds_reached(run: Path, accuracy: float) -> list[float]:
    """The training seconds of the evaluations that have the accuracy."""
    found = [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("step-*.json"))]
    return [one["train_seconds"] for one in found if one["overall"]["accuracy"] >= accuracy]


def our_grpo(task: Task, cores: int) -> float:
    """The algorithm of the other side: what is left of the difference is the system's."""
    groups = {"data.prompts_per_step": task.prompts, "data.samples_per_prompt": task.samples}
    return ours(task, cores, **{"algorithm.type": "grpo"} | groups)


def trl(task: Task, cores: int) -> float:
    found = json.loads(pinned(task.command(), cores).splitlines()[-1])
    reached = [int(step) for step, accuracy in found["accuracies"].items() if accuracy >= task.stop_at]
    return round(found["ends"][min(reached) - 1], 2) if reached else float("inf")


SIDES = {"sppo-ray, sppo": ours, "sppo-ray, grpo": our_grpo, "trl, grpo": trl}


if __name__ == "__main__":
    main()
