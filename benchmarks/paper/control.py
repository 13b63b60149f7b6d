"""Control study: one advantage an episode (Sequence-Level PPO) against one a step (PPO with GAE),
binary terminal reward.

    python -m benchmarks.paper.control [--envs cartpole hopper ...] [--seeds 5] [--jobs 1]
    [--resume]

LunarLander and Hopper need the extra `control` (gymnasium). For every task and arm the same three
learning rates run on the first --sweep-seeds seeds; the one with the largest mean success over
training runs on the others, up to --seeds. That these seeds chose it flatters every arm, and one
whose runs scatter widely more than others. Finished runs lie in --runs, and --resume takes a killed
study up from there. Writes benchmarks/results/control-study.json, .md and .png after each task, and
prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import control_tasks
from benchmarks.paper.control_learning import ARMS, Settings, train
from benchmarks.paper.control_report import figures_of, markdown, page, row_of, save_plot, verdicts
from benchmarks.report import RESULTS, write_result

LEARNING_RATES = (3e-4, 1e-3, 3e-3)
NAME = "control-study"


@dataclass(frozen=True)
class Problem:
    """A task and what every arm may spend on it."""

    make: Callable[[], control_tasks.Task]
    env_steps: int
    episodes: int  # per update
    needs: tuple[str, ...] = ()  # packages of the extra `control`


PROBLEMS: Mapping[str, Problem] = {
    "cartpole": Problem(control_tasks.PrecisionCartPole, 600_000, 512),
    "mountaincar": Problem(control_tasks.MountainCar, 500_000, 64),
    "pendulum": Problem(control_tasks.Pendulum, 1_500_000, 128),
    "lunarlander": Problem(control_tasks.LunarLander, 250_000, 64, ("gymnasium", "Box2D", "pygame")),
    "hopper": Problem(control_tasks.Hopper, 100_000, 128, ("gymnasium", "mujoco", "imageio")),
}


@dataclass(frozen=True)
class Run:
    """One training: what it is named by and kept under."""

    env: str
    arm: str
    learning_rate: float
    seed: int

    @property
    def settings(self) -> Settings:
        problem = PROBLEMS[self.env]
        return Settings(
            env_steps=problem.env_steps, episodes=problem.episodes, learning_rate=self.learning_rate
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that its result depends on, but for the code of loop and dynamics."""
        task = PROBLEMS[self.env].make
        return {
            **asdict(self),
            **asdict(self.settings),
            **asdict(ARMS[self.arm]),
            "horizon": task.horizon,
            "criterion": task.__doc__,
        }

    def path(self, folder: Path) -> Path:
        return folder / self.env / f"{self.arm}-lr{self.learning_rate:g}-seed{self.seed}.json"


def main() -> int:
    options = parse_options()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(
        options.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        for env in options.envs:
            rows += study(env, options, pool)
            report(rows, options)
    print(markdown(rows))
    print("\n".join(verdicts(rows)))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--envs", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["sequence", "token"])
    parser.add_argument(
        "--ablate", nargs="*", choices=PROBLEMS, default=["cartpole"], help="tasks on which all arms run"
    )
    parser.add_argument("--seeds", type=positive, default=5, help="number of seeds of the study: 1..N")
    parser.add_argument(
        "--sweep-seeds", type=positive, default=3, help="seeds a learning rate in the sweep, from 1 on"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="processes, one core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/control"))
    parser.add_argument(
        "--resume", action="store_true", help="take finished runs of equal settings from --runs"
    )
    options = parser.parse_args()
    missing = [
        name for env in options.envs for name in PROBLEMS[env].needs if importlib.util.find_spec(name) is None
    ]
    if missing:
        parser.error(
            f"{', '.join(options.envs)} need {', '.join(sorted(set(missing)))}: pip install "
            "'sppo-ray[control]'"
        )
    return options


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give an integer of at least 1, not {text!r}")
    return int(text)


def study(env: str, options: argparse.Namespace, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """Sweep and seeds of one task; a row an arm."""
    arms = list(ARMS) if env in options.ablate else options.arms
    seeds = range(1, options.seeds + 1)
    swept = seeds[: options.sweep_seeds]
    trials = {
        (arm, rate): [Run(env, arm, rate, seed) for seed in swept] for arm in arms for rate in LEARNING_RATES
    }
    found = finish([run for runs in trials.values() for run in runs], options, pool)
    areas = {
        key: sum(figures_of(found[run])["area"] for run in runs) / len(runs) for key, runs in trials.items()
    }
    best = {arm: max(LEARNING_RATES, key=lambda rate, arm=arm: areas[arm, rate]) for arm in arms}
    runs = {arm: [Run(env, arm, best[arm], seed) for seed in seeds] for arm in arms}
    found |= finish([run for arm in arms for run in runs[arm] if run not in found], options, pool)
    rows = []
    for arm in arms:
        finals = {
            rate: [round(figures_of(found[run])["final"], 4) for run in trials[arm, rate]]
            for rate in LEARNING_RATES
        }
        sweep = {
            f"{rate:g}": {"mean_area": round(areas[arm, rate], 4), "finals": finals[rate]}
            for rate in LEARNING_RATES
        }
        head = {"env": env, "arm": arm, "learning_rate": best[arm], "sweep": sweep}
        rows.append(head | row_of([found[run] for run in runs[arm]], PROBLEMS[env].env_steps))
    return rows


def finish(
    runs: Sequence[Run], options: argparse.Namespace, pool: ProcessPoolExecutor
) -> dict[Run, dict[str, Any]]:
    """The results of all runs; those that are not in the folder (or may not be taken from there)
    are trained.
    """
    found = dict(kept(runs, options.runs)) if options.resume else {}
    waiting = {pool.submit(execute, run, options.runs): run for run in runs if run not in found}
    for future in as_completed(waiting):
        run = waiting[future]
        found[run] = future.result()
        figures = figures_of(found[run])
        print(
            f"{run.env} {run.arm} lr {run.learning_rate:g} seed {run.seed}: final {figures['final']:.3f}, "
            f"mean {figures['area']:.3f}, {found[run]['cpu_s']:.0f} CPU s",
            flush=True,
        )
    return found


def kept(runs: Sequence[Run], folder: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Finished runs of equal fingerprint."""
    for run in runs:
        if run.path(folder).is_file():
            result = json.loads(run.path(folder).read_text(encoding="utf-8"))
            if result["fingerprint"] == run.fingerprint:
                yield run, result


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """Train, keep the result in the folder and return it. In a process of the pool."""
    started = time.process_time()
    updates = train(PROBLEMS[run.env].make(), ARMS[run.arm], run.settings, run.seed)
    result = {
        "fingerprint": run.fingerprint,
        "cpu_s": round(time.process_time() - started, 1),
        "updates": updates,
    }
    path = run.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(path)
    return result


def one_thread() -> None:
    """A process is one core: the networks are too small to share."""
    torch.set_num_threads(1)


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the JSON, the plot and the page of the tasks that are done."""
    criteria = {row["env"]: " ".join(PROBLEMS[row["env"]].make.__doc__.split()) for row in rows}
    arms = {row["arm"]: asdict(ARMS[row["arm"]]) for row in rows}
    extra = {
        "verdicts": verdicts(rows),
        "criteria": criteria,
        "arms": arms,
        "table": markdown(rows).splitlines(),
    }
    print(write_result(NAME, rows, [], extra), flush=True)
    save_plot(rows, RESULTS / f"{NAME}.png")
    (RESULTS / f"{NAME}.md").write_text(page(rows, criteria, f"{NAME}.png"), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
