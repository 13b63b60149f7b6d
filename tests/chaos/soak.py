"""`make soak`: the quickstart under a random fault every 20 seconds for 15 minutes, and whether it
learns as it does in peace.

    python -m tests.chaos.soak --minutes 15 --every 20 --seed 1

Runs of the recipe follow each other, seed after seed, until the time is over; each is struck until
it ends. It passes when the record of each is whole and its final accuracy is as near to that of an
undisturbed run of the same seed and settings, which is made first (it does not count as time), as
undisturbed runs of different seeds are to each other (benchmarks/results/learning-quickstart.json).
How far the two are equal to the bit is said as well: the run is synchronous.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tests.conftest  # noqa: F401 - sets the environment that every test runs under
from sppo_ray.rundir.environment import environment
from sppo_ray.rundir.jsonlines import write_atomically
from tests.chaos.record import Audit, audit, first_difference
from tests.chaos.run import REPOSITORY, RunEnded, TrainingRun
from tests.chaos.states import scoring_child

PROMPTS, STEPS = 256, 60  # the recipe's
FREEZES = 0.25  # of all faults
HANGS_AFTER_S = 300.0  # without a finished step
SETTINGS = [
    "--rollout.workers=2",
    "--rollout.cpus_per_worker=0.25",
    "--rollout.start_timeout_s=180",
    "--rollout.probe_every_s=1",
    "--rollout.probe_timeout_s=10",
    "--rollout.max_restarts=20",
    "--rollout.restart_window_s=60",
    "--recovery.max_restarts=20",
    "--recovery.probe_every_s=1",
    "--recovery.probe_timeout_s=10",
    "--reward.processes=2",
    "--checkpoint.every=2",
    "--checkpoint.export=false",
    "--guardrails.action=warn",
    "--logging.progress=plain",
    "--logging.tensorboard=false",
    "--cluster.local_cpus=8",
]


@dataclass(frozen=True, slots=True)
class SoakedRun:
    """One run of the recipe with faults."""

    seed: int
    seconds: float
    faults: dict[str, int]  # "rollout-1 SIGKILL" -> how often
    resumes: int
    cost: Audit
    accuracy: float
    undisturbed: float
    spread: float  # of undisturbed runs over their seeds
    difference: str | None  # what differs first from the undisturbed run; None: equal to the bit
    end: list[str]  # what was wrong with it

    @property
    def is_good(self) -> bool:
        return (
            self.cost.is_clean
            and self.cost.steps == STEPS
            and not self.end
            and self._difference <= self.spread
        )

    @property
    def _difference(self) -> float:
        return abs(self.accuracy - self.undisturbed)

    def __str__(self) -> str:
        cost = self.cost
        return (
            f"seed {self.seed}: {sum(self.faults.values())} faults in {self.seconds:.0f} s, {self.resumes} "
            "resumes; "
            f"lost {cost.lost}, repeated {cost.repeated}, wrong version {cost.wrong_version}; "
            f"accuracy {self.accuracy:.4f}, undisturbed {self.undisturbed:.4f} (spread {self.spread:.4f}): "
            f"{'equal to the bit' if self.difference is None else 'first difference: ' + self.difference}; "
            f"{'good' if self.is_good else 'BAD ' + '; '.join(self.end)}"
        )


class Marksman:
    """Strikes a random process of a random role every so often; the same ones for the same seed, as
    far as they are up.
    """

    def __init__(self, draw: random.Random, every_s: float) -> None:
        self._draw = draw
        self._every_s = every_s
        self._next = time.monotonic() + every_s
        self.faults: Counter[str] = Counter()

    def look(self, run: TrainingRun) -> str | None:
        """Strike when it is time to. Returns what was struck."""
        if time.monotonic() < self._next:
            return None
        self._next += self._every_s
        pids = {row["name"]: row["pid"] for row in run.status.get("actors", []) if row["pid"]}
        if (child := scoring_child(pids.get("reward"))) is not None:
            pids["verifier"] = child
        if not pids:
            return None
        run.refresh()
        name = self._draw.choice(sorted(pids))
        fault = signal.SIGSTOP if self._draw.random() < FREEZES else signal.SIGKILL
        # struck before, and its replacement is not in the roster yet
        with suppress(ProcessLookupError):
            os.kill(pids[name], fault)
            self.faults[f"{name} {fault.name}"] += 1
            return f"{name} {fault.name} in step {run.step}"
        return None


def soak_run(
    path: Path, seed: int, marksman: Marksman, undisturbed: Path, say: Callable[[str], None]
) -> SoakedRun:
    """One run from its start to its end, struck all the way."""
    run = TrainingRun(path, [*SETTINGS, f"--seed={seed}"])
    began = time.monotonic()
    try:
        run.start()
        _to_the_end(run, marksman.look, say)
        end = [] if run.process and run.process.returncode == 0 else ["did not finish"]
        end += run.end()
    finally:
        run.close()
    cost = audit(path, range(1, run.step + 1), prompts=PROMPTS, samples_per_prompt=1, staleness=0)
    finals = published_accuracies()
    return SoakedRun(
        seed,
        round(time.monotonic() - began, 1),
        dict(marksman.faults),
        run.resumes,
        cost,
        final_accuracy(path),
        final_accuracy(undisturbed),
        max(finals.values()) - min(finals.values()),
        first_difference(path, undisturbed)[1],
        end,
    )


def _to_the_end(
    run: TrainingRun, look: Callable[[TrainingRun], str | None], say: Callable[[str], None]
) -> None:
    """Until it has finished. Raises WaitedTooLong when it takes no step any more."""
    while True:
        step = run.step
        try:
            run.wait(f"step {step + 1}", lambda step=step: _advanced(run, step, look, say), HANGS_AFTER_S)
            say(f"step {run.step}")
        except RunEnded as ended:
            assert run.process is not None
            if run.process.returncode == 0:
                return
            say(f"{ended}; resuming")
            run.resume()


def _advanced(
    run: TrainingRun, step: int, look: Callable[[TrainingRun], str | None], say: Callable[[str], None]
) -> bool:
    if struck := look(run):
        say(struck)
    time.sleep(0.2)
    return run.step > step


def undisturbed_run(work: Path, seed: int) -> Path:
    """The run without faults: as many workers, the same settings. Made once, kept in the work
    folder.
    """
    run = TrainingRun(work / f"undisturbed-{seed}", [*SETTINGS, f"--seed={seed}"])
    if not (run.path / "summary.json").exists():
        try:
            run.start(resume=(run.path / "config.yaml").exists())
            _to_the_end(run, lambda run: None, lambda text: None)
        finally:
            run.close()
    return run.path


def final_accuracy(run_dir: Path) -> float:
    """Held-out accuracy at the end; NaN when there was none."""
    summary = run_dir / "summary.json"
    return json.loads(summary.read_text())["final_accuracy"] if summary.exists() else float("nan")


def published_accuracies() -> dict[int, float]:
    """seed -> final held-out accuracy of the quickstart, as recorded."""
    rows = json.loads((REPOSITORY / "benchmarks/results/learning-quickstart.json").read_text())["rows"]
    return {row["seed"]: row["final_accuracy"] for row in rows}


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: nothing is left behind
    draw = random.Random(options.seed)
    results: list[SoakedRun] = []
    for seed in sorted(published_accuracies()) * 100:
        if sum(result.seconds for result in results) > 60.0 * options.minutes:
            break
        print(_stamped(f"seed {seed} without faults"), flush=True)
        undisturbed = undisturbed_run(options.work, seed)
        path = options.work / f"seed-{seed}-{time.strftime('%H%M%S')}"
        results.append(
            soak_run(
                path,
                seed,
                Marksman(draw, options.every),
                undisturbed,
                lambda text: print(_stamped(text), flush=True),
            )
        )
        print(results[-1], flush=True)
        if options.report is not None:
            _write(options, results)
    return 0 if results and all(result.is_good for result in results) else 1


def _write(options: argparse.Namespace, results: list[SoakedRun]) -> None:
    settings: dict[str, Any] = {
        "minutes": options.minutes,
        "every_s": options.every,
        "seed": options.seed,
        "overrides": SETTINGS,
    }
    content = {
        "environment": environment(),
        **settings,
        "runs": [asdict(result) | {"good": result.is_good} for result in results],
    }
    options.report.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.report, json.dumps(content, indent=1) + "\n")


def _stamped(text: str) -> str:
    return f"  {time.strftime('%H:%M:%S')} {text}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--work", type=Path, default=Path("runs/soak"))
    parser.add_argument(
        "--report", type=Path, help="write the figures here, e.g. benchmarks/results/soak.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
