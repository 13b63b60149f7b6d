"""Does an engine idle while tools run? Episodes of several turns, whose answers take 10 to 500 ms.

    python -m benchmarks.episodes [--rounds 3]

The recipe guess-number with 256 episodes in flight, up to four turns each, on two cores: with
answers at once, with slow ones, and with slow ones and `loop.max_staleness: 1`, in which the next
step's episodes begin while the learner trains. `busy` is the share of a step in which the engine
had requests. `tools alone` are the seconds that the answers of a step take one after another.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, write_result
from benchmarks.versus_trl import train
from sppo_ray.rundir.metrics import read_metrics

WARM_UP = 4
STEPS = 16
LEAST_S, MOST_S = 0.01, 0.5
GAME = "benchmarks.slow_game:SlowGuessNumber"
CASES: dict[str, tuple[float, float, int]] = {
    "at once": (0.0, 0.0, 0),
    "10 to 500 ms": (LEAST_S, MOST_S, 0),
    "10 to 500 ms, overlapped": (LEAST_S, MOST_S, 1),
}
"""Bounds of an answer's seconds, and loop.max_staleness."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, case in CASES.items():
            found[name].append(measure(*case))
    rows = [
        {"answers": name} | {key: round(statistics.median(one[key] for one in runs), 3) for key in runs[0]}
        for name, runs in found.items()
    ]
    print_table(rows)
    print(write_result("episodes", rows, [], {"rounds": found, "bounds_s": [LEAST_S, MOST_S]}))


def measure(least_s: float, most_s: float, staleness: int) -> dict[str, float]:
    """Medians over the steps of one run."""
    settings: dict[str, Any] = {
        "environment": f"{{type: custom, environment: '{GAME}', max_turns: 4, max_turn_tokens: 4, cpus: 0.1, "
        f"options: {{least_s: {least_s}, most_s: {most_s}}}}}",
        "loop.steps": STEPS,
        "loop.max_staleness": staleness,
        "eval.every": 0,
        "eval.at_start": "false",
        "checkpoint.every": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train("guess-number", run, settings, cores=2)
        rows = [row for row in read_metrics(run) if "seconds/step" in row][WARM_UP:]

    def median(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    return {
        "step_s": median("seconds/step"),
        "busy": median("busy/rollout-0"),
        "turns": median("episode/turns_mean"),
        "tools_alone_s": median("samples/count") * median("episode/environment_seconds_mean"),
    }


if __name__ == "__main__":
    main()
