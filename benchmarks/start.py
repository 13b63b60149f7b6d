"""Seconds that a run takes before its first step and after its last one, and those of `--help`.

    python -m benchmarks.start [--rounds 5]

Each round is `sppo-ray train quickstart` of two steps on two cores, with checkpoint and export, and
`sppo-ray --help` on one. The start ends when the first step begins; the end is from the last step's
record to the end of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import print_table, write_result
from benchmarks.versus_trl import pinned, train

TARGETS = {"start_s": 25.0, "end_s": 10.0, "help_s": 0.4}
WHAT = {
    "start_s": "train to its first step, two cores, seconds",
    "end_s": "last step to the end of the process, two cores, seconds",
    "help_s": "sppo-ray --help, one core, seconds",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = [measure_round() for _ in range(options.rounds)]
    targets = []
    for name, bound in TARGETS.items():
        figure = statistics.median(row[name] for row in rows)
        targets.append(
            {"what": WHAT[name], "target": f"<= {bound}", "figure": round(figure, 2), "met": figure <= bound}
        )
    print_table(rows)
    print_table(targets)
    print(write_result("start", rows, targets))


def measure_round() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.time()
        train("quickstart", run, {"loop.steps": 2, "eval.every": 0, "eval.at_start": "false"}, 2)
        ended = time.time()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "seconds/step" in row]
    helping = time.time()
    pinned([sys.executable, "-m", "sppo_ray", "--help"], 1)
    return {
        "start_s": round(steps[0]["time"] - steps[0]["seconds/step"] - began, 2),
        "end_s": round(ended - steps[-1]["time"], 2),
        "help_s": round(time.time() - helping, 2),
    }


if __name__ == "__main__":
    main()
