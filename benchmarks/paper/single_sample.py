"""Methods with one response a prompt side by side: SPPO and its variants, SAO, SPO, PPO, and the
group methods.

    python -m benchmarks.paper.single_sample NAME [--budget-minutes M] [--retry]      NAMEs: see STUDIES, or --list
    python -m benchmarks.paper.single_sample NAME --times
    python -m benchmarks.paper.single_sample NAME --report

First every arm runs with three learning rates on a seed of its own; the best of an arm is taken for
its seeds. A study takes hours: each finished run is kept in benchmarks/results/paper/single-sample/
NAME/runs/, which is committed, and a later command goes on from there. With --budget-minutes it
starts no run that would not end in time. A run takes one core, and several commands can work on a
study at the same time, e.g. by `taskset -c 0` and `taskset -c 1`: they share out its runs. The page
(report.md, report.json, plots) is written after every run. A failed run is kept as failed; --retry
makes it again.

What a token costs in seconds depends on what else the machine does, and on the machine. So runs end
after a number of steps (equal-prompts, equal-rates: of seconds), learning is compared by tokens,
and seconds are measured on their own: --times runs all arms in turn, three rounds, on a core that
does nothing else. The seconds of a page are the tokens of a run times the median seconds of a token
of its arm.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from benchmarks.paper.kept_runs import SECONDS_PER_TOKEN, Kept, Run, Study, claimed, make, read_kept
from benchmarks.paper.single_sample_report import IDEAS, on_axis, write
from sppo_ray.compare.comparison import say
from sppo_ray.compare.curves import area, crossing

RATES = (2.5e-4, 5e-4, 1e-3)
SWEEP_SEED = 101
SEEDS = dict.fromkeys(("sppo", "grpo", "ppo", "sao", *IDEAS), 5)
OTHER_SEEDS = 3
ROUNDS = 3  # of timing
TIMED_RATE = 5e-4  # learning rate of the runs for timing

ARMS: Mapping[str, str] = {
    "sppo": "sppo",
    "sppo-dis": "sppo,algorithm.loss.type=dis",
    "sppo-privileged": 'sppo,data.critic_suffix="{ground_truth}"',
    "sppo-tracker": "sppo,algorithm.tracker.rho=0.875",
    "sppo-centered": "sppo,algorithm.center=true",
    "sppo-one-sided": "sppo,algorithm.center=negative",
    "sao": "sao",
    "spo": "spo",
    "ppo": "ppo",
    "grpo": "grpo",
    "rloo": "rloo",
    "reinforce": "reinforce",
}
KNOWN_PROMPTS = "data.train.0.size=1024"
"""A prompt comes again after 1,024 others: with prompts that are always new, a tracker knows
nothing, so sppo-tracker would be sppo and spo would be reinforce++.
"""
ALL_AXES = ("seconds", "tokens", "prompts")


def by_steps(steps: int, every: int) -> tuple[str, ...]:
    """Return the overrides of runs that end after `steps`, with an evaluation `every` so many."""
    return ("loop.budget_s=null", f"loop.steps={steps}", "eval.every_s=null", f"eval.every={every}")


def stale(arm: str, *levels: int) -> dict[str, str]:
    """Return an arm for each `max_staleness`."""
    return {f"{arm}-stale{level}": f"{ARMS[arm]},loop.max_staleness={level}" for level in levels}


def staleness_arms() -> dict[str, str]:
    return {
        name: definition
        for arm in ("sppo", "sppo-dis", "sao", "grpo")
        for name, definition in stale(arm, 0, 2, 8).items()
    }


POLL_S = 5.0
SHORT = (*by_steps(18, 2), KNOWN_PROMPTS)

STUDIES: Mapping[str, Study] = {
    "quickstart": Study(
        "short responses (40 tokens)", "quickstart", ARMS, 40, ALL_AXES, (0.7, 0.85), SHORT
    ),
    "long": Study(
        "long responses (317 to 599 tokens), most prompts hopeless at the start",
        "register-machine", ARMS, 220, ALL_AXES, (0.3, 0.5), (*by_steps(18, 3), KNOWN_PROMPTS),
    ),
    "equal-prompts": Study(
        "the paper's own comparison: 256 prompts a step, answered once or eight times",
        "quickstart", {"sppo": "sppo", "grpo-equal-prompts": "grpo-equal-prompts"},
        240, ("seconds", "tokens"), (0.7, 0.86, 0.9, 0.94), ("eval.every_s=6",),
        baseline="grpo-equal-prompts",
    ),
    # As in the paper. GRPO's steps have eight times the samples and bear a higher rate.
    "equal-rates": Study(
        "equal-prompts with one learning rate for both, the lowest of its sweep",
        "quickstart", {"sppo": "sppo", "grpo-equal-prompts": "grpo-equal-prompts"},
        150, ("tokens",), (0.7, 0.86, 0.9), ("eval.every_s=5",),
        rate=2.5e-4, baseline="grpo-equal-prompts", most_seeds=3,
    ),
    # At one rate, at which all methods learn equally fast from fresh samples. At its best rate for
    # these, 1e-3, sppo learned from stale ones worse than grpo at 5e-4, and the mask collapsed.
    "staleness": Study(
        "samples 0, 2 and 8 steps old: who collapses",
        "quickstart", staleness_arms(), 120, ("tokens",), (0.7, 0.85), (*by_steps(48, 4), KNOWN_PROMPTS),
        rate=5e-4, baseline="sppo-stale0", most_seeds=3,
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
        300, ("tokens",), (0.3, 0.5), (*by_steps(24, 3), "data.train.0.size=256"),
        rates_of="long", most_seeds=3,
    ),
    # Where the critic runs changes the seconds of a token, and nothing that is learned.
    "own-core": Study(
        "the critic on a core of its own, engine and learner on the other",
        "quickstart", {name: ARMS[name] for name in ("sppo", "sao", "ppo", "grpo", "reinforce")},
        40, ("seconds",), (0.7, 0.85), SHORT,
        rates_of="quickstart", runs_of="quickstart", baseline="grpo", num_cores=2,
        cores={"critic": 1, "": 0},
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("name", nargs="?", choices=sorted(STUDIES))
    parser.add_argument("--budget-minutes", type=float, help="start no run that ends later")
    parser.add_argument("--retry", action="store_true", help="make failed runs again")
    parser.add_argument("--times", action="store_true", help="measure the seconds of a token of each arm")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--list", action="store_true", help="the studies, and what they are about")
    options = parser.parse_args(arguments)
    if options.list or options.name is None:
        print("\n".join(f"{name:12} {study.about}" for name, study in STUDIES.items()))
        return 0
    try:
        if options.times:
            measure_times(options.name)
        elif not options.report:
            work(options.name, options.budget_minutes, retry=options.retry)
    except KeyboardInterrupt:  # the run that was under way is not kept
        return 130
    print(report(options.name))
    return 0


def folder(name: str) -> str:
    return f"single-sample/{name}"


def work(name: str, budget_minutes: float | None, *, retry: bool) -> None:
    """Make runs until none is missing, or the time is used up. Waits for the last runs of other
    processes, because the seeds begin when the sweep is finished.
    """
    started = time.monotonic()
    tried: set[Run] = set()
    while open_runs := list(missing_runs(name, retry=retry, tried=tried)):
        needed, left = expected_s(name), _left_s(budget_minutes, started)
        if needed > left:
            say(f"{name}: a run takes about {needed:.0f} s, and {max(0.0, left):.0f} s are left")
            return
        made = next((run for run in open_runs if _make_unless_claimed(name, run, retry=retry)), None)
        if made is None:
            time.sleep(POLL_S)
            continue
        tried.add(made)
        report(name)


def _make_unless_claimed(name: str, run: Run, *, retry: bool) -> bool:
    """Make a run and return True; False when another process makes it, or has just made it."""
    with claimed(folder(name), run) as is_mine:
        if not is_mine or run not in missing_runs(name, retry=retry, tried=set()):
            return False
        say(f"{run.name}: {missing(name)} runs to go, about {expected_s(name):.0f} s each")
        make(folder(name), STUDIES[name], run, say)
        return True


def _left_s(budget_minutes: float | None, started: float) -> float:
    return math.inf if budget_minutes is None else 60 * budget_minutes - (time.monotonic() - started)


def wanted(name: str) -> Iterator[Run]:
    """Yield all runs of a study in their order: the sweep, then the arms seed by seed. The second
    part begins when the sweep is finished.
    """
    study = STUDIES[name]
    if study.runs_of is not None:
        return
    if _is_swept(study):
        for rate, arm in product(RATES, study.arms):
            yield Run(arm, rate, SWEEP_SEED)
    rates = chosen_rates(name)
    if len(rates) < len(study.arms):
        if study.rates_of is not None:
            sys.exit(f"the learning rates of {name} are swept in {study.rates_of}: run that first")
        return
    for seed in range(1, max(SEEDS.values()) + 1):
        for arm in study.arms:
            if seed <= seeds_of(study, arm):
                yield Run(arm, rates[arm], seed)


def missing_runs(name: str, *, retry: bool, tried: set[Run]) -> Iterator[Run]:
    """Yield the runs that are not kept; with `retry` also those that failed and are not in
    `tried`.
    """
    for run in wanted(name):
        kept = read_kept(folder(name), STUDIES[name], run)
        if kept is None or (retry and kept.failed is not None and run not in tried):
            yield run


def missing(name: str) -> int:
    """Return the number of runs that are not kept, those after the sweep included."""
    study = STUDIES[name]
    seeds = sum(seeds_of(study, arm) for arm in study.arms)
    if _is_swept(study):
        return len(RATES) * len(study.arms) + seeds - sum(1 for _ in kept_runs(name))
    rates = chosen_rates(name)
    return seeds - sum(kept.run.rate == rates[kept.run.arm] for kept in kept_runs(name))


def kept_runs(name: str) -> Iterator[Kept]:
    """Yield all kept runs of a study, the sweep included."""
    name = STUDIES[name].runs_of or name
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


def _is_swept(study: Study) -> bool:
    return study.rates_of is None and study.rate is None


def seeds_of(study: Study, arm: str) -> int:
    return min(study.most_seeds, SEEDS.get(like(arm), OTHER_SEEDS))


def like(arm: str) -> str:
    """Return the arm whose learning rate and number of seeds an arm has."""
    return {"spo-prioritised": "spo"}.get(arm, arm.partition("-stale")[0])


def sweep(name: str) -> dict[str, dict[float, float]]:
    """Return the mean accuracy over equal tokens by arm and learning rate, of the runs that are
    kept; 0 for a failed one.
    """
    study = STUDIES[name]
    found: dict[str, dict[float, float]] = {}
    for arm in study.arms:
        runs = {rate: read_kept(folder(name), study, Run(arm, rate, SWEEP_SEED)) for rate in RATES}
        curves = {rate: on_axis(kept, "tokens") for rate, kept in runs.items() if kept is not None}
        end = min((curve[-1].seconds for curve in curves.values() if curve), default=math.nan)
        found[arm] = {rate: area(curve, end) if curve else 0.0 for rate, curve in curves.items()}
    return found


def swept_costs(name: str) -> dict[str, dict[float, list[float]]]:
    """Return the tokens to each target by arm and learning rate, of the finished runs of the sweep;
    infinite where the target was not reached.
    """
    study = STUDIES[name]
    found: dict[str, dict[float, list[float]]] = {}
    for arm, rate in product(study.arms, RATES):
        kept = read_kept(folder(name), study, Run(arm, rate, SWEEP_SEED))
        if kept is None or not kept.curve:
            continue
        curve = on_axis(kept, "tokens")
        ways = [crossing(curve, target, curve[-1].seconds) for target in study.targets]
        found.setdefault(arm, {})[rate] = [way.seconds if way.reached else math.inf for way in ways]
    return found


def chosen_rates(name: str) -> dict[str, float]:
    """Return the learning rate of each arm whose sweep is finished."""
    study = STUDIES[name]
    if study.rate is not None:
        return dict.fromkeys(study.arms, study.rate)
    areas = sweep(study.rates_of or name)
    return {
        arm: max(of, key=lambda rate, of=of: of[rate])
        for arm in study.arms
        if len(of := areas[like(arm)]) == len(RATES)
    }


# -------------------------------------------------------------------------------------------- times


def timing(study: Study) -> Study:
    """Return the study of the runs that measure the seconds of a token. They evaluate only before
    and after training, because work may go on beside an evaluation.
    """
    seconds = max(30.0, study.budget_s / 4)
    ends = (f"loop.budget_s={seconds:g}", "loop.steps=1000000", "eval.every_s=null", "eval.every=0")
    return replace(study, overrides=(*study.overrides, *ends, "eval.prompts=32"))


def times_folder(name: str) -> str:
    return f"{folder(name)}/times"


def measure_times(name: str) -> None:
    """Make the timing runs that are missing, all arms in turn."""
    study = timing(STUDIES[name])
    for number in range(1, ROUNDS + 1):
        for arm in study.arms:
            run = Run(arm, TIMED_RATE, number)
            if read_kept(times_folder(name), study, run) is None:
                make(times_folder(name), study, run, say)


def times(name: str) -> dict[str, list[Kept]]:
    """Return the timing runs that are kept, by arm."""
    study = timing(STUDIES[name])
    found: dict[str, list[Kept]] = {}
    for arm, number in product(study.arms, range(1, ROUNDS + 1)):
        kept = read_kept(times_folder(name), study, Run(arm, TIMED_RATE, number))
        if kept is not None and SECONDS_PER_TOKEN in kept.figures:
            found.setdefault(arm, []).append(kept)
    return found


def timed(kept: Kept, measured: Sequence[Kept]) -> Kept:
    """Return a run with the seconds that its tokens take on the machine of the timing runs."""
    rate = statistics.median(one.figures[SECONDS_PER_TOKEN] for one in measured)
    return replace(kept, curve=tuple(replace(point, seconds=rate * point.tokens) for point in kept.curve))


def report(name: str) -> str:
    """Write the page of what is kept and return its path."""
    study = STUDIES[name]
    rates = chosen_rates(name)
    measured = times(name)
    runs: dict[str, list[Kept]] = {arm: [] for arm in study.arms}
    for kept in kept_runs(name):
        arm = kept.run.arm
        if arm in study.arms and kept.run.seed != SWEEP_SEED and kept.run.rate == rates.get(arm):
            runs[arm].append(timed(kept, measured[arm]) if arm in measured else kept)
    swept, costs = (sweep(name), swept_costs(name)) if _is_swept(study) else ({}, {})
    return str(write(folder(name), study, runs, swept, costs, measured))


if __name__ == "__main__":
    sys.exit(main())
