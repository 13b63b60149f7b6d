"""Seconds of training to a held-out accuracy, overlapped against synchronous, on two cores.

    python -m benchmarks.overlap [--seeds 3] [--accuracy 0.9]

Both are `sppo-ray train quickstart`; the overlapped run has `loop.max_staleness: 1`, so the engine
generates the next step's responses while the learner trains. Runs take turns, and evaluations do
not count as time.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.race import seconds_to
from benchmarks.report import print_table, write_result

TARGET = 1.4
SIDES = {"synchronous": 0, "overlapped": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--accuracy", type=float, default=0.9)
    options = parser.parse_args()
    rows = []
    for seed in range(1, options.seeds + 1):
        row: dict[str, float] = {"seed": seed}
        for side, staleness in SIDES.items():
            settings = {"seed": seed, "loop.max_staleness": staleness}
            row[side] = seconds_to(options.accuracy, settings, cores=2)
        rows.append(row | {"ratio": round(row["synchronous"] / row["overlapped"], 3)})
    figure = statistics.median(row["ratio"] for row in rows)
    targets = [
        {
            "what": f"seconds to {options.accuracy}, synchronous / overlapped, two cores",
            "target": f">= {TARGET}",
            "figure": figure,
            "met": figure >= TARGET,
        }
    ]
    print_table(rows)
    print(write_result("overlap", rows, targets))


if __name__ == "__main__":
    main()
