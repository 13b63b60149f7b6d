"""One driver with 1 to 256 engines: the real Trainer with stand-ins that sleep (`stand_ins.py`).

    taskset -c 1 python -m benchmarks.scale [--rounds 5] [--engines 1 4 16 64 256]

Three questions, each the median of runs that take turns:

efficiency  seconds of a synchronous step that the stand-ins' sleeps alone allow (the same run in
            virtual time) / measured seconds. Each engine adds 16 samples a step and the calls keep
            their seconds, so an ideal driver keeps the step's seconds, too.
driver      samples/s without any sleep: what one driver can do, in one process with the stand-ins.
            Both are given as measured and "alone": by CPU seconds, without the other jobs' share.
advice      the saving that a run of n engines predicts for one more, against a run of n + 1, alone.

Ray is not in it: what its messages cost comes on top.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.report import print_table, write_result
from benchmarks.stand_ins import NO_LATENCY, Shape, alone_run, ideal_run, measured_run, step_seconds
from sppo_ray.planning.advice import advice_of

SAMPLES_AN_ENGINE = 16
STEPS = 4  # the first one does not count
TARGET_EFFICIENCY, TARGET_RATE, TARGET_ADVICE = 0.9, 3000, 0.05
DRIVERS = {
    "40 tokens": Shape(64, 1024, STEPS, 40, 80, 0.0, latencies=NO_LATENCY),
    "4,500 tokens": Shape(64, 1024, STEPS, 4500, 4500, 0.0, latencies=NO_LATENCY),
}


ADVISED = [(engines, staleness) for engines in (1, 2, 4) for staleness in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    options = parser.parse_args()
    rounds = [measure_round(options.engines) for _ in range(options.rounds)]
    rows = [summary([round_[place] for round_ in rounds]) for place in range(len(rounds[0]))]
    print_table(rows)
    print(write_result("scale", rows, targets(rows), {"rounds": options.rounds}))


def measure_round(engines: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each run."""
    efficiencies = [measure_efficiency(count) for count in engines]
    drivers = [measure_driver(name) for name in DRIVERS]
    return efficiencies + drivers + [measure_advice(*advised) for advised in ADVISED]


def shape_of(engines: int) -> Shape:
    """Lengths have a median of 100 tokens and a long tail up to 400."""
    return Shape(engines, SAMPLES_AN_ENGINE * engines, STEPS, median_tokens=100, longest_tokens=400)


def measure_efficiency(engines: int) -> dict[str, Any]:
    shape = shape_of(engines)
    ideal, row = step_seconds(ideal_run(shape)), _measured(shape)
    return {
        "what": f"{engines} engines",
        "ideal_s": ideal,
        "efficiency": ideal / row["step_s"],
        "efficiency_alone": ideal / row["step_alone_s"],
    } | row


def measure_driver(name: str) -> dict[str, Any]:
    return {"what": f"driver, {name}"} | _measured(DRIVERS[name])


def measure_advice(engines: int, staleness: int) -> dict[str, Any]:
    """256 samples a step; an engine has places for 16 at a time, so one more takes its share."""
    settings = ("--rollout.max_sequences=16", f"--loop.max_staleness={staleness}")
    shape = Shape(engines, 256, 8, median_tokens=40, longest_tokens=80, settings=settings)
    rows, more = alone_run(shape), alone_run(replace(shape, engines=engines + 1))
    advice = advice_of(rows, learner_ranks=1, critic_ranks=1, is_overlapped=staleness > 0)
    assert advice is not None and advice.bottleneck == "generation"
    return {
        "what": f"advice, {engines} engines, staleness {staleness}",
        "saving_predicted": advice.saving,
        "saving_measured": 1 - step_seconds(more, 2) / step_seconds(rows, 2),
    }


def _measured(shape: Shape) -> dict[str, Any]:
    measured, alone = step_seconds(measured_run(shape)), step_seconds(alone_run(shape))
    return {
        "samples_a_step": shape.samples,
        "step_s": measured,
        "step_alone_s": alone,
        "samples_per_s": shape.samples / measured,
        "samples_per_s_alone": shape.samples / alone,
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians; of what is judged the least and the most, too."""
    row = {"what": runs[0]["what"]}
    for name in runs[0]:
        if name != "what":
            row[name] = round(statistics.median(run[name] for run in runs), 3)
    judged = next(name for name in ("efficiency", "samples_per_s", "saving_measured") if name in runs[0])
    figures = [run[judged] for run in runs]
    return row | {f"{judged}_least": round(min(figures), 3), f"{judged}_most": round(max(figures), 3)}


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        if row["what"] == "64 engines":
            name, least, figure = "efficiency of 64 stand-in engines", TARGET_EFFICIENCY, row["efficiency"]
        elif row["what"].startswith("driver"):
            name, least = f"samples/s through one {row['what']}, by its CPU seconds", TARGET_RATE
            figure = row["samples_per_s_alone"]
        else:
            continue
        found.append({"what": name, "target": f">= {least}", "figure": figure, "met": figure >= least})
    errors = [
        abs(row["saving_predicted"] - row["saving_measured"]) for row in rows if "saving_predicted" in row
    ]
    worst = round(max(errors), 3)
    return [
        *found,
        {
            "what": "saving of one more engine, predicted against measured, at worst",
            "target": f"<= {TARGET_ADVICE}",
            "figure": worst,
            "met": worst <= TARGET_ADVICE,
        },
    ]


if __name__ == "__main__":
    main()
