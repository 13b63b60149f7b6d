"""Are the guardrails quiet on runs that went well, and quick when something goes wrong? On figures
of recorded runs.

    python -m benchmarks.guardrails RUN_OR_DIRECTORY...

Every run below the directories is replayed through the detectors with their default limits. Then
faults are injected into its figures, one at a time, from the middle of the run on, each growing
over a few steps as it does in life; the delay is counted from the first step that has any of it.

Runs of before `value/std` was recorded get it from their trajectories, else from the Brier score
and the correlation: of two solutions the smaller, which is nearer to a collapse. A step without it
is not counted for the detectors that read it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import yaml

from benchmarks.report import print_table, write_result
from sppo_ray.config import GuardrailSettings
from sppo_ray.errors import UserError
from sppo_ray.rundir.metrics import is_training_step, read_metrics
from sppo_ray.trainer.detectors import DETECTORS, KNOWN_AFTER
from sppo_ray.trainer.guardrails import Guardrails, finite_or_nan

PROMISED_STEPS = 20
Figures = dict[str, float]


@dataclass(frozen=True)
class Recorded:
    """The training steps of one run."""

    name: str
    synchronous: bool
    steps: list[Figures]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", type=Path, help="run directories, or what they lie below")
    options = parser.parse_args()
    runs = distinct([run for path in found(options.directories) if (run := read_run(path)).steps])
    if not runs:
        raise UserError("none of the directories holds a run with training steps")
    quiet, alarms = replay_all(runs)
    faults = [row for name in FAULTS if (row := inject_everywhere(runs, name))["injected"]]
    for alarm in alarms:
        print(f"{alarm['run']} step {alarm['step']}: {alarm['message']}")
    print_table(quiet)
    print_table(faults)
    write_result(
        "guardrails",
        quiet,
        _targets(runs, alarms, faults),
        {"alarms": alarms, "faults": faults, "runs": len(runs)},
    )


def found(directories: Sequence[Path]) -> list[Path]:
    return sorted(
        {metrics.parent for directory in directories for metrics in directory.rglob("metrics.jsonl")}
    )


def distinct(runs: Sequence[Recorded]) -> list[Recorded]:
    """Without copies: a comparison may take over the runs of another."""
    return list({run.steps[0].get("time", run.name): run for run in runs}.values())


def read_run(path: Path) -> Recorded:
    config = path / "config.yaml"
    settings: Any = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    steps = [with_spread(path, finite_or_nan(row)) for row in read_metrics(path) if is_training_step(row)]
    return Recorded(path.name, settings.get("loop", {}).get("max_staleness", 0) == 0, steps)


def with_spread(path: Path, figures: Figures) -> Figures:
    """The figures with value/std where they lack it and it can be known."""
    if "value/mean" not in figures or "value/std" in figures:
        return figures
    log = path / "trajectories" / f"step-{int(figures['step']):06d}.parquet"
    if log.is_file():
        return figures | {
            "value/std": statistics.pstdev(parquet.read_table(log, columns=["value"])["value"].to_pylist())
        }
    spreads = _solutions(figures)
    return figures | {"value/std": min(spreads)} if spreads else figures


def _solutions(figures: Figures) -> list[float]:
    """Positive s with brier = (mean V - mean R)^2 + s^2 - 2 rho s std(R) + std(R)^2."""
    correlation, deviation = figures.get("value/pearson", math.nan), figures["reward/std"]
    bias = figures["value/mean"] - figures["reward/mean"]
    rest = figures["value/brier"] - bias**2 - deviation**2
    inner = (correlation * deviation) ** 2 + rest
    if not inner >= 0.0:
        return []
    return [s for s in {correlation * deviation + sign * math.sqrt(inner) for sign in (-1, 1)} if s > 0.0]


def guardrails_for(run: Recorded) -> Guardrails:
    return Guardrails(GuardrailSettings(), synchronous=run.synchronous)


def replay_all(runs: Sequence[Recorded]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(a row a detector, every alarm)."""
    watched: Counter[str] = Counter()
    alarms: list[dict[str, Any]] = []
    for run in runs:
        rails = guardrails_for(run)
        for figures in run.steps:
            alarms += [
                {"run": run.name, **alarm.model_dump()}
                for alarm in rails.check(int(figures["step"]), figures)
            ]
        watched.update(rails.watched())
    counts = Counter(alarm["detector"] for alarm in alarms)
    rows = [
        {"detector": name, "steps": watched[name], "alarms": counts[name], "only warns": detector.only_warns}
        for name, detector in DETECTORS.items()
    ]
    return rows, alarms


# ------------------------------------------------------------------------------------------- faults


def _share(age: int, steps: int) -> float:
    """How much of a fault is there that grows over so many steps; `age` counts from 0."""
    return min(1.0, (age + 1) / steps)


FAULTS: dict[str, Callable[[Figures, int], Figures]] = {
    "skipped_updates": lambda f, age: (
        f | {"policy/loss": math.nan, "policy/grad_norm": math.nan, "policy/skipped": 1.0}
    ),
    "equal_rewards": lambda f, age: f | {"reward/std": 0.0, "reward/mean": 0.0},
    # The critic's values close in on 1 while rewards stay what they are.
    "value_collapse": lambda f, age: (
        f | {"value/std": f["value/std"] * (1 - _share(age, 5)), "value/mean": 0.99}
    ),
    "critic_blind": lambda f, age: f | {"value/std": 1e-5},
    "negative_advantages": lambda f, age: f | {"advantage/mean": -0.37},
    "entropy_collapse": lambda f, age: (
        f | {"policy/entropy": f["policy/entropy"] * 0.6**age, "reward/mean": 0.2}
    ),
    "truncation_rise": lambda f, age: (
        f | {"response/truncation_rate": max(f["response/truncation_rate"], _share(age, 8))}
    ),
    "all_truncated": lambda f, age: f | {"response/truncation_rate": 1.0},
    # below reward.max_error_rate
    "reward_error_rate": lambda f, age: f | {"reward/errors": 0.08 * f["samples/count"]},
    "over_optimisation": lambda f, age: (
        f
        | {
            "reward/mean": f["reward/mean"] + 0.2 * _share(age, 8),
            "reward/watched": f["reward/watched"] - 0.2 * _share(age, 8),
        }
    ),
    "clip_fraction_rise": lambda f, age: (
        f | {"policy/clip_fraction_low": f["policy/clip_fraction_low"] + 0.2 * _share(age, 8)}
    ),
    "ratio_drift": lambda f, age: (
        f | {"policy/ratio_mean": f["policy/ratio_mean"] * (1 - 0.5 * _share(age, 8))}
    ),
    "kl": lambda f, age: f | {"policy/approx_kl_k3": f["policy/approx_kl_k3"] + 0.4 * _share(age, 8)},
    "effective_sample_size": lambda f, age: (
        f
        | {"policy/effective_sample_size": f["policy/effective_sample_size"] * (1 - 0.9 * _share(age, 8))}
    ),
    # An engine at another temperature, or a version behind: a hundredth of a nat where rounding is
    # a ten-millionth.
    "mismatch": lambda f, age: f | {"mismatch/logprob_difference_mean": 0.01},
}
"""(figures, steps since it began) -> figures with the fault."""


def delay(run: Recorded, name: str, at: int) -> int | None:
    """Steps from the injection before step number `at` (an index) to its alarm; None = never raised
    within the run.

    Only for runs whose steps from there on have what the detector reads.
    """
    rails = guardrails_for(run)
    for index, figures in enumerate(run.steps):
        faulty = FAULTS[name](figures, index - at) if index >= at else figures
        if any(alarm.detector == name for alarm in rails.check(index + 1, faulty)):
            return index - at + 1
    return None


def inject_everywhere(runs: Sequence[Recorded], name: str) -> dict[str, Any]:
    """Inject in the middle of every run that is long enough, and sum up how long it took."""
    needed = PROMISED_STEPS + KNOWN_AFTER
    delays: list[int | None] = []
    for run in runs:
        kept = [
            f for f in run.steps if all(key in f for key in DETECTORS[name].watches) and _applies(f, name)
        ]
        if len(kept) >= needed:
            delays.append(
                delay(
                    Recorded(run.name, run.synchronous, kept),
                    name,
                    min(len(kept) // 2, len(kept) - PROMISED_STEPS),
                )
            )
    noticed = [d for d in delays if d is not None]
    in_time = sum(d <= PROMISED_STEPS for d in noticed)
    worst = max(noticed, default=None)
    return {
        "fault": name,
        "injected": len(delays),
        f"within {PROMISED_STEPS} steps": in_time,
        "slowest": worst,
    }


def _applies(figures: Figures, name: str) -> bool:
    """Detectors of the values look only where rewards vary; clip fractions and the like are not
    taken in a critic's warm-up.
    """
    return not name.startswith(("value", "critic")) or figures["reward/std"] >= 0.1


def _targets(runs: Sequence[Recorded], alarms: Sequence[Any], faults: Sequence[Any]) -> list[dict[str, Any]]:
    steps = sum(len(run.steps) for run in runs)
    false = sum(alarm["action"] != "warn" for alarm in alarms)
    late = sum(row["injected"] - row[f"within {PROMISED_STEPS} steps"] for row in faults)
    return [
        {"what": "good steps replayed", "target": ">= 1000", "figure": steps, "met": steps >= 1000},
        {"what": "alarms that would pause a good run", "target": 0, "figure": false, "met": false == 0},
        {
            "what": f"injected faults not seen within {PROMISED_STEPS} steps",
            "target": 0,
            "figure": late,
            "met": late == 0,
        },
    ]


if __name__ == "__main__":
    main()
