"""The plan of a comparison: checked before anything runs, and stored in its folder.

OUT/compare.json     the plan                          OUT/runs/ARM-seedN/   a run directory each
OUT/arms/ARM.yaml    an arm's resolved settings        OUT/logs/ARM-seedN.log  what the run printed
OUT/runs.jsonl       how each process ended            OUT/report.md, report.json, *.png
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sppo_ray.compare.arms import Arm, make_arms
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.errors import UserError
from sppo_ray.rundir.jsonlines import write_atomically

LOCK = ".compare.lock"  # locked by the process that works in the folder
UNBOUNDED_STEPS = 1_000_000  # runs end by the budget
EVALUATIONS = 20  # per budget, by default
FORBIDDEN = {"seed": "--seeds N", "loop.budget_s": "--budget SECONDS"}


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a comparison."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of compare.json."""

    recipe: str
    overrides: tuple[str, ...]  # of the user, for all arms
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    budget_s: float  # of training, evaluations not counted
    concurrent: int  # runs at a time
    cores_per_run: int
    targets: tuple[float, ...]  # held-out accuracies; () = by the report's rule
    baseline: str  # the arm that the others' speed is measured against

    @property
    def jobs(self) -> list[Job]:
        """List the runs seed by seed, so that an interrupted comparison has equally many runs of
        each arm (or one more).
        """
        return [Job(arm.name, seed) for seed in self.seeds for arm in self.arms]

    @property
    def common(self) -> tuple[str, ...]:
        """Overrides of every arm, in order: the comparison's first, then the user's."""
        replaced = {override.partition("=")[0] for override in self.overrides}
        standing = [
            override
            for override in standing_overrides(self.budget_s)
            if override.partition("=")[0] not in replaced
        ]
        return (*standing, *self.overrides)

    def config(self, arm: Arm) -> RunConfig:
        """Return an arm's settings. Raises UserError naming the arm."""
        try:
            return load_config(self.recipe, [*self.common, *arm.overrides])
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error}") from None


def cores_per_run(concurrent: int) -> int:
    """Cores of this process per concurrent run, in equal shares."""
    return len(os.sched_getaffinity(0)) // concurrent


def standing_overrides(budget_s: float) -> tuple[str, ...]:
    """Return the overrides that make runs comparable at equal time; the user's overrides come later
    and win.
    """
    return (
        f"loop.budget_s={budget_s:g}",
        f"loop.steps={UNBOUNDED_STEPS}",
        f"eval.every_s={budget_s / EVALUATIONS:g}",
        # A schedule over steps would depend on an arm's number of steps in the budget.
        "learner.optimizer.schedule=constant",
        "critic.optimizer.schedule=constant",
        "checkpoint.every=0",
        "checkpoint.export=false",
        "logging.progress=plain",
        "logging.tensorboard=false",
        "logging.trajectories=false",
        "guardrails.action=warn",  # no one is present to resume a paused run
    )


def make_plan(
    recipe: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    budget_s: float,
    *,
    overrides: Sequence[str] = (),
    concurrent: int = 1,
    targets: Sequence[float] = (),
    baseline: str | None = None,
) -> Plan:
    """Build and check a comparison. Raises UserError with the remedy for anything that could not
    run.
    """
    overrides = tuple(override.removeprefix("--") for override in overrides)
    _check_numbers(seeds, budget_s, concurrent, targets)
    for override in overrides:
        key = override.partition("=")[0]
        if key in FORBIDDEN:
            raise UserError(f"--{key} is the comparison's own: give {FORBIDDEN[key]}")
    base = load_config(recipe, [*standing_overrides(budget_s), *overrides])
    _check_base(base, recipe, concurrent)
    made = tuple(make_arms(arms, base))
    names = [arm.name for arm in made]
    if baseline is not None and baseline not in names:
        raise UserError(
            f"--baseline {baseline}: no such arm in this comparison; there are {', '.join(names)}"
        )
    cores = cores_per_run(concurrent)
    plan = Plan(
        recipe,
        overrides,
        made,
        tuple(seeds),
        float(budget_s),
        concurrent,
        cores,
        tuple(sorted(targets)),
        baseline or names[0],
    )
    for arm in plan.arms:
        config = plan.config(arm)
        _check_schedules(arm, config)
        _check_clock(arm, config)
    return plan


def _check_numbers(seeds: Sequence[int], budget_s: float, concurrent: int, targets: Sequence[float]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {list(seeds)}: give at least one, and each once")
    if budget_s <= 0:
        raise UserError(
            f"--budget {budget_s:g}: give the seconds of training for each run, e.g. --budget 150"
        )
    usable = cores_per_run(1)
    if not 1 <= concurrent <= usable:
        raise UserError(
            f"--concurrent {concurrent}: each run needs a core of its own; between 1 and {usable} on this "
            "machine"
        )
    wrong = [target for target in targets if not 0 < target < 1]
    if wrong:
        raise UserError(
            f"--targets {wrong[0]:g}: a target is a held-out accuracy between 0 and 1, e.g. --targets 0.6,0.8"
        )


def _check_base(base: RunConfig, recipe: str, concurrent: int) -> None:
    if not base.data.held_out:
        raise UserError(
            f"{recipe}: data.held_out is empty, and a comparison is made on held-out prompts: name a source"
        )
    if not base.eval.at_start:
        raise UserError(
            f"{recipe}: eval.at_start is off, and a comparison starts from the base's accuracy: turn it on"
        )
    joins = base.cluster.address or os.environ.get("RAY_ADDRESS")
    if concurrent > 1 and joins:
        raise UserError(
            f"--concurrent {concurrent}: runs on the cluster {joins} cannot be kept to cores of their own: "
            "use 1"
        )
    if concurrent > 1 and base.logical_gpus() > 0:
        raise UserError(
            f"--concurrent {concurrent}: runs would share the GPUs and slow each other down: use 1"
        )


def _check_schedules(arm: Arm, config: RunConfig) -> None:
    """Refuse a linear schedule over more steps than a run can make: it would be almost constant,
    unnoticed.
    """
    models = {"learner": config.learner} | ({"critic": config.critic} if config.has_critic else {})
    for name, model in models.items():
        if model.optimizer.schedule == "linear" and config.loop.steps == UNBOUNDED_STEPS:
            raise UserError(
                f"arm {arm.name}: {name}.optimizer.schedule linear falls over loop.steps, and a comparison's "
                "runs end at "
                "--budget long before: leave it at constant, or give the --loop.steps that it is to fall "
                "over, for all arms"
            )


def _check_clock(arm: Arm, config: RunConfig) -> None:
    """Refuse overlapped runs: the clock stops during an evaluation, in which their next cohorts
    would be generated at no cost.
    """
    if config.loop.max_staleness > 0:
        raise UserError(
            f"arm {arm.name}: loop.max_staleness {config.loop.max_staleness} generates the next steps' "
            "responses while the clock "
            "stands still for an evaluation, so its seconds would not be those of a run: leave it at 0"
        )


# ------------------------------------------------------------------------------------------ on disk


def write_plan(plan: Plan, out: Path) -> Plan:
    """Write the plan into the folder `out`, or add arms and seeds to the existing plan. Returns the
    current plan. Raises UserError when new runs would not be comparable with those in `out`.
    """
    if (out / "compare.json").exists():
        plan = _extended(read_plan(out), plan, out)
    elif any(path.name != LOCK for path in out.iterdir()):
        raise UserError(f"{out}: exists and holds no comparison: choose another --out")
    (out / "arms").mkdir(parents=True, exist_ok=True)
    for arm in plan.arms:
        _write_settings(out / "arms" / f"{arm.name}.yaml", plan, arm)
    write_atomically(out / "compare.json", json.dumps(asdict(plan), indent=1, ensure_ascii=False) + "\n")
    return plan


def read_plan(out: Path) -> Plan:
    """Read the plan in `out`. Raises UserError when `out` holds no comparison."""
    path = out / "compare.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        arms = tuple(Arm(arm["name"], tuple(arm["overrides"]), arm["note"]) for arm in tree.pop("arms"))
        lists = {key: tuple(value) for key, value in tree.items() if isinstance(value, list)}
        return Plan(**tree | lists, arms=arms)
    except FileNotFoundError:
        raise UserError(
            f"{out}: holds no comparison (compare.json is missing): give a recipe to start one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a comparison's plan ({error}): restore it, or start again in another --out"
        ) from None


def _extended(old: Plan, new: Plan, out: Path) -> Plan:
    for field in ("recipe", "overrides", "budget_s", "concurrent", "cores_per_run"):
        before, now = getattr(old, field), getattr(new, field)
        if before != now:
            raise UserError(
                f"{out}: holds a comparison with {field} {_shown(before)}, now it is {_shown(now)}: runs of "
                "the two would not be "
                "comparable; choose another --out"
            )
    known = {arm.name: arm for arm in old.arms}
    for arm in new.arms:
        if arm.name in known and known[arm.name].overrides != arm.overrides:
            raise UserError(
                f"{out}: holds runs of another arm {arm.name} ({_shown(known[arm.name].overrides)}): rename "
                "the new one"
            )
    arms = (*old.arms, *(arm for arm in new.arms if arm.name not in known))
    seeds = (*old.seeds, *(seed for seed in new.seeds if seed not in old.seeds))
    return replace(new, arms=arms, seeds=seeds)


def _write_settings(path: Path, plan: Plan, arm: Arm) -> None:
    config = plan.config(arm)
    if path.exists():
        before = load_config(str(path))
        # The action of a guardrail changes no figure.
        before = before.model_copy(update={"guardrails": config.guardrails})
        changed = differences(before.model_dump(mode="json"), config.model_dump(mode="json"))
        if changed:
            raise UserError(
                f"{path}: the runs of arm {arm.name} were made with other settings "
                f"({'; '.join(changed[:3])}): the recipe "
                "or a default has changed since; choose another --out"
            )
    else:
        write_atomically(path, dump_config(config))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "data.minibatch_size 64 -> 32" for each different setting."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} {old} -> {new}")
    return found


def _shown(value: object) -> str:
    return " ".join(value) or "(none)" if isinstance(value, tuple) else str(value)
