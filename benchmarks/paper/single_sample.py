"""Methods with one response a prompt side by side: SPPO and its variants, SAO, SPO, PPO, and the
group methods.

    python -m benchmarks.paper.single_sample NAME [--budget-minutes M] [--retry]      NAMEs: see STUDIES, or --list
    python -m benchmarks.paper.single_sample NAME --report

First every arm runs with three learning rates on a seed of its own; the best of an arm is taken for
its seeds. A study takes hours: each finished run is kept in benchmarks/results/paper/single-sample/
NAME/runs/, which is committed, and a later command goes on from there. With --budget-minutes it
starts no run that would not end in time. A run takes one core (own-core: two), so two studies can
be made at a time, e.g. by `taskset -c 0` and `taskset -c 1`. The page (report.md, report.json,
plots) is written after every run. A failed run is kept as failed; --retry makes it again.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from benchmarks.paper.kept_runs import Kept, Run, Study, make, read_kept
from benchmarks.paper.single_sample_report import write
from sppo_ray.compare.comparison import say
from sppo_ray.compare.curves import area

RATES = (2.5e-4, 5e-4, 1e-3)
SWEEP_SEED = 101
SEEDS = {"sppo": 5, "grpo": 5, "ppo": 5, "sao": 5}
OTHER_SEEDS = 3

ARMS: Mapping[str, str] = {
    "sppo": "sppo",
    "sppo-dis": "sppo,algorithm.loss.type=dis",
    "sppo-privileged": 'sppo,data.critic_suffix="{ground_truth}"',
    "sppo-tracker": "sppo,algorithm.tracker.rho=0.875",
    "sao": "sao",
    "spo": "spo",
    "ppo": "ppo",
    "grpo": "grpo",
    "rloo": "rloo",
    "reinforce": "reinforce",
    "grpo-equal-prompts": "grpo-equal-prompts",
}
KNOWN_PROMPTS = "data.train.0.size=1024"
"""A prompt comes again after 1,024 others: with prompts that are always new, a tracker knows
nothing, so sppo-tracker would be sppo and spo would be reinforce++.
"""
ALL_AXES = ("seconds", "tokens", "prompts")


def stale(arm: str, *levels: int) -> dict[str, str]:
    """Return an arm for each `max_staleness`."""
    return {f"{arm}-stale{level}": f"{ARMS[arm]},loop.max_staleness={level}" for level in levels}


def staleness_arms() -> dict[str, str]:
    return {
        name: definition
        for arm in ("sppo", "sppo-dis", "sao", "grpo")
        for name, definition in stale(arm, 0, 2, 8).items()
    }


STUDIES: Mapping[str, Study] = {
    "quickstart": Study(
        "short responses (40 tokens)", "quickstart", ARMS, 60, ALL_AXES, (0.7, 0.85),
        ("eval.every_s=6", KNOWN_PROMPTS),
    ),
    "long": Study(
        "long responses (317 to 599 tokens), most prompts hopeless at the start",
        "register-machine", ARMS, 360, ALL_AXES, (0.3, 0.5), ("eval.every_s=45", KNOWN_PROMPTS),
    ),
    "equal-prompts": Study(
        "the paper's own comparison: 256 prompts a step, answered once or eight times",
        "quickstart", {name: ARMS[name] for name in ("sppo", "grpo-equal-prompts")},
        240, ("seconds", "tokens"), (0.7, 0.86, 0.9, 0.94), ("eval.every_s=6",),
        baseline="grpo-equal-prompts",
    ),
    # By steps: the clock of a stale run would not count what is generated during an evaluation.
    "staleness": Study(
        "samples 0, 2 and 8 steps old: who collapses",
        "quickstart", staleness_arms(), 180, ("tokens",), (0.7, 0.85),
        ("loop.budget_s=null", "loop.steps=48", "eval.every_s=null", "eval.every=4", KNOWN_PROMPTS),
        rates_of="quickstart", baseline="sppo-stale0",
    ),
    "few-prompts": Study(
        "256 distinct prompts over many passes: what is learned by heart, critic against tracker",
        "register-machine",
        {name: ARMS[name] for name in ("sppo", "sppo-privileged", "sppo-tracker", "spo")}
        | {
            "spo-prioritised": "spo,data.curriculum.candidates=2,data.curriculum.sharpness=0.5,"
            "data.curriculum.floor=0.1"
        }
        | {name: ARMS[name] for name in ("ppo", "grpo")},
        360, ("seconds", "tokens"), (0.3, 0.5), ("eval.every_s=45", "data.train.0.size=256"),
        rates_of="long",
    ),
    "own-core": Study(
        "the critic on a core of its own, engine and learner on the other",
        "quickstart", {name: ARMS[name] for name in ("sppo", "sao", "ppo", "grpo", "reinforce")},
        60, ("seconds",), (0.7, 0.85), ("eval.every_s=6", KNOWN_PROMPTS),
        rates_of="quickstart", baseline="grpo", num_cores=2, cores={"critic": 1, "": 0},
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("name", nargs="?", choices=sorted(STUDIES))
    parser.add_argument("--budget-minutes", type=float, help="start no run that ends later")
    parser.add_argument("--retry", action="store_true", help="make failed runs again")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--list", action="store_true", help="the studies, and what they are about")
    options = parser.parse_args(arguments)
    if options.list or options.name is None:
        print("\n".join(f"{name:12} {study.about}" for name, study in STUDIES.items()))
        return 0
    if not options.report:
        try:
            work(options.name, options.budget_minutes, retry=options.retry)
        except KeyboardInterrupt:  # the run that was under way is not kept
            return 130
    print(report(options.name))
    return 0


def folder(name: str) -> str:
    return f"single-sample/{name}"


def work(name: str, budget_minutes: float | None, *, retry: bool) -> None:
    """Make runs until none is missing, or the time is used up."""
    study, started = STUDIES[name], time.monotonic()
    tried: set[Run] = set()
    while (run := next_run(name, retry=retry, tried=tried)) is not None:
        needed, left = expected_s(name), _left_s(budget_minutes, started)
        if needed > left:
            say(f"{run.name}: takes about {needed:.0f} s, and {max(0.0, left):.0f} s are left")
            return
        say(f"{run.name}: {missing(name)} runs to go, about {needed:.0f} s each")
        make(folder(name), study, run, say)
        tried.add(run)
        report(name)


def _left_s(budget_minutes: float | None, started: float) -> float:
    return math.inf if budget_minutes is None else 60 * budget_minutes - (time.monotonic() - started)


def wanted(name: str) -> Iterator[Run]:
    """Yield all runs of a study in their order: the sweep, then the arms seed by seed. The second
    part begins when the sweep is finished.
    """
    study = STUDIES[name]
    if study.rates_of is None:
        for rate, arm in product(RATES, study.arms):
            yield Run(arm, rate, SWEEP_SEED)
    rates = chosen_rates(name)
    if len(rates) < len(study.arms):
        sys.exit(f"the learning rates of {name} are swept in {study.rates_of}: run that first")
    for seed in range(1, max(SEEDS.values()) + 1):
        for arm in study.arms:
            if seed <= SEEDS.get(like(arm), OTHER_SEEDS):
                yield Run(arm, rates[arm], seed)


def next_run(name: str, *, retry: bool, tried: set[Run]) -> Run | None:
    """Return the first run that is not kept; with `retry` also one that failed and is not in
    `tried`.
    """
    for run in wanted(name):
        kept = read_kept(folder(name), STUDIES[name], run)
        if kept is None or (retry and kept.failed is not None and run not in tried):
            return run
    return None


def missing(name: str) -> int:
    """Return the number of runs that are not kept, as far as they are known."""
    study = STUDIES[name]
    swept = len(RATES) * len(study.arms) if study.rates_of is None else 0
    seeds = sum(SEEDS.get(like(arm), OTHER_SEEDS) for arm in study.arms)
    return swept + seeds - sum(1 for _ in kept_runs(name))


def kept_runs(name: str) -> Iterator[Kept]:
    """Yield all kept runs of a study, the sweep included."""
    study = STUDIES[name]
    highest = max(SEEDS.values())
    for arm, rate, seed in product(study.arms, RATES, (SWEEP_SEED, *range(1, highest + 1))):
        kept = read_kept(folder(name), study, Run(arm, rate, seed))
        if kept is not None:
            yield kept


def expected_s(name: str) -> float:
    """Return the seconds of a whole run: the mean of those that are kept, else a guess."""
    walls = [kept.wall_s for kept in kept_runs(name) if kept.failed is None]
    return sum(walls) / len(walls) if walls else 1.4 * STUDIES[name].budget_s + 120


def like(arm: str) -> str:
    """Return the arm whose learning rate and number of seeds an arm has."""
    return {"spo-prioritised": "spo"}.get(arm, arm.partition("-stale")[0])


def sweep(name: str) -> dict[str, dict[float, float]]:
    """Return the mean accuracy over the budget by arm and learning rate, of the runs that are kept;
    0 for a failed one.
    """
    study = STUDIES[name]
    found: dict[str, dict[float, float]] = {arm: {} for arm in study.arms}
    for arm, rate in product(study.arms, RATES):
        kept = read_kept(folder(name), study, Run(arm, rate, SWEEP_SEED))
        if kept is not None:
            found[arm][rate] = 0.0 if kept.failed is not None else area(kept.curve, study.budget_s)
    return found


def chosen_rates(name: str) -> dict[str, float]:
    """Return the learning rate of each arm whose sweep is finished."""
    study = STUDIES[name]
    areas = sweep(study.rates_of or name)
    return {
        arm: max(of, key=lambda rate, of=of: of[rate])
        for arm in study.arms
        if len(of := areas[like(arm)]) == len(RATES)
    }


def report(name: str) -> str:
    """Write the page of what is kept and return its path."""
    study = STUDIES[name]
    rates = chosen_rates(name)
    runs: dict[str, list[Kept]] = {arm: [] for arm in study.arms}
    for kept in kept_runs(name):
        if kept.run.seed != SWEEP_SEED and kept.run.rate == rates.get(kept.run.arm):
            runs[kept.run.arm].append(kept)
    swept = sweep(name) if study.rates_of is None else {}
    return str(write(folder(name), study, runs, swept))


if __name__ == "__main__":
    sys.exit(main())
