"""Settings that make a run fit, or use a cluster better; and the refusal of what cannot fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import parse_config, set_setting
from sppo_ray.errors import UserError
from sppo_ray.formatting import format_seconds
from sppo_ray.planning.devices import GPUS_PER_NODE, Cluster, Node
from sppo_ray.planning.models import Models
from sppo_ray.planning.plan import Plan, make_plan
from sppo_ray.planning.time import Assumptions

Change = Mapping[str, Any]
"""Settings by key, e.g. {"learner.zero_stage": 3}."""
MOST_CHANGES = 3
CLUSTER_SIZES = (1, 2, 3, 4, 6, 8, 16, 24, 32, 64)
RANKS = (1, 2, 4, 8, 16)
KV_CACHES = (48.0, 32.0, 24.0, 16.0, 12.0, 8.0, 4.0)
"""GiB that an engine with a KV cache of a given size may have instead."""


def nearest_change(
    config: RunConfig, cluster: Cluster, models: Models, assumed: Assumptions | None = None
) -> tuple[str, ...] | None:
    """Return the fewest settings that make the run fit, as --section.key=value; () when it fits,
    None when there are none. Settings that leave a tenth of the memory free come first; among as
    few, those that cost least time.
    """
    if make_plan(config, cluster, models, assumed).fits:
        return ()
    found = _nearest(config, cluster, models, assumed)
    return found and as_options(found[0], config)


def _nearest(
    config: RunConfig, cluster: Cluster, models: Models, assumed: Assumptions | None
) -> tuple[Change, Plan] | None:
    """Return the change and the plan with it."""
    plan = make_plan(config, cluster, models, assumed)
    singles = list(_singles(config, plan))
    tight: tuple[Change, Plan] | None = None
    for number in range(1, MOST_CHANGES + 1):
        for parts in combinations(singles, number):
            change = _together(parts)
            changed = change and with_settings(config, change)
            found = changed and make_plan(changed, cluster, models, assumed)
            if found and found.fits:
                if not found.warnings:
                    return change, found
                tight = tight or (change, found)
    return tight


def smallest_cluster(
    config: RunConfig, cluster: Cluster, models: Models, assumed: Assumptions | None = None
) -> tuple[Cluster, tuple[str, ...]] | None:
    """Return the smallest larger cluster of the same GPUs on which the run fits, with the settings
    that it needs there.
    """
    if cluster.device.kind == "cpu":
        return None
    first = cluster.nodes[0]
    for size in CLUSTER_SIZES:
        if size <= cluster.num_gpus:
            continue
        nodes = tuple(
            Node(first.cpus / first.gpus * gpus, gpus, first.memory // first.gpus * gpus)
            for gpus in _by_node(size)
        )
        larger = replace(cluster, nodes=nodes)
        change = nearest_change(config, larger, models, assumed)
        if change is not None:
            return larger, change
    return None


def faster_split(
    config: RunConfig, plan: Plan, models: Models, assumed: Assumptions | None = None
) -> tuple[tuple[str, ...], Plan] | None:
    """Return the number of engines and ranks that make a step shortest on the whole cluster, and
    their plan; None when idle GPUs shorten it by less than 5 %.
    """
    cluster = plan.cluster
    if cluster.device.kind == "cpu" or plan.gpus >= cluster.num_gpus or not plan.fits:
        return None
    best: tuple[tuple[str, ...], Plan] | None = None
    for change in _splits(config, cluster.num_gpus):
        changed = with_settings(config, change)
        found = changed and make_plan(changed, cluster, models, assumed)
        usable = found and found.fits and not found.warnings
        if usable and found.step_seconds < (best[1] if best else plan).step_seconds:
            best = as_options(change, config), found
    return best if best and best[1].step_seconds < 0.95 * plan.step_seconds else None


def _splits(config: RunConfig, gpus: int) -> Iterator[Change]:
    """Yield numbers of engines and ranks that use `gpus`."""
    if config.cluster.layout == "colocated":
        yield _all_on(config, gpus)
        return
    yield from _in_turns(config, gpus)
    critics = RANKS if config.has_critic else (1,)
    for ranks in (count for count in RANKS if count <= config.data.minibatch_size):
        for critic_ranks in critics:
            taken = ranks * config.learner.gpus_per_rank
            taken += config.has_reference * ranks * config.reference.gpus_per_rank
            taken += config.has_critic * critic_ranks * config.critic.gpus_per_rank
            workers = int((gpus - taken) // max(1.0, config.rollout.gpus_per_worker))
            change: Change = {"rollout.workers": workers, "learner.ranks": ranks}
            if workers > 0:
                yield {**change, "critic.ranks": critic_ranks} if config.has_critic else change


def _all_on(config: RunConfig, gpus: int) -> Change:
    """Return the settings of layout colocated on `gpus` GPUs."""
    change: Change = {"rollout.workers": gpus, "learner.ranks": gpus}
    return {**change, "critic.ranks": gpus} if config.has_critic else change


def _in_turns(config: RunConfig, gpus: int) -> Iterator[Change]:
    """Yield the settings with which all roles of a run in layout separate take turns on `gpus`
    GPUs: with the largest KV cache first, and with optimizers that stay on the GPU in their turn.
    """
    roles = ("learner", "critic") if config.has_critic else ("learner",)
    shares = {"rollout.gpus_per_worker": 1, "rollout.tensor_parallel_size": 1}
    shares |= {f"{role}.gpus_per_rank": 1 for role in roles}
    change = {"cluster.layout": "colocated", **_all_on(config, gpus), **shares}
    offloads = any(getattr(config, role).offload_optimizer for role in roles)
    stay: dict[str, Any] = {f"{role}.offload_optimizer": False for role in roles}
    # the recipes' CPUs are those of an optimizer on the host
    stay |= {f"{role}.cpus_per_rank": min(2, getattr(config, role).cpus_per_rank) for role in roles}
    for optimizers in ({}, stay) if offloads else ({},):
        for gib in KV_CACHES:
            yield {**change, **optimizers, "rollout.kv_cache_gib": gib}


def require_memory(config: RunConfig, cluster: Cluster, models: Models) -> tuple[str, ...]:
    """Refuse a run whose memory cannot suffice, before an actor starts. Returns warnings. Where
    the actors go is Ray's decision, so a plan that finds no place for one is no reason.

    Raises:
        UserError: with what is missing, and the nearest change that fits.
    """
    plan = make_plan(config, cluster, models)
    problems = [problem for problem in plan.problems if problem.role != "gpus"]
    if not problems:
        return plan.warnings
    change = nearest_change(config, cluster, models)
    remedy = f"the nearest change that fits is {' '.join(change)}" if change else "use a smaller model"
    what = "; ".join(problem.text for problem in problems)
    raise UserError(f"this run does not fit: {what}: {remedy} (`sppo-ray plan` shows the bytes)")


def advise(
    config: RunConfig, plan: Plan, models: Models, assumed: Assumptions | None = None
) -> tuple[str, ...]:
    """Return lines that say what to change, so that the run fits or that no GPU is idle."""
    cluster = plan.cluster
    if plan.fits:
        faster = faster_split(config, plan, models, assumed)
        if faster is None:
            return ()
        options, split = faster
        idle = f"{cluster.num_gpus - plan.gpus} of {cluster.num_gpus} GPUs are idle"
        return (f"{idle}; {format_seconds(split.step_seconds)} a step with {' '.join(options)}",)
    if nearest := _nearest(config, cluster, models, assumed):
        change, changed = nearest
        tight = f", tightly: {'; '.join(changed.warnings)}" if changed.warnings else ""
        return (f"the nearest change that fits: {' '.join(as_options(change, config))}{tight}",)
    larger = smallest_cluster(config, cluster, models, assumed)
    if larger is None:
        return ("no change of settings makes it fit here",)
    bigger, options = larger
    options = (f"--gpus={bigger.num_gpus}x{bigger.device.name}", *options)
    return (f"no change of settings makes it fit here; it fits on {' '.join(options)}",)


def with_settings(config: RunConfig, change: Change) -> RunConfig | None:
    """Return the config with the settings; None when they are impossible together."""
    tree = config.model_dump(mode="json")
    for key, value in change.items():
        set_setting(tree, key, value)
    try:
        return parse_config(tree)
    except UserError:
        return None


def as_options(change: Change, config: RunConfig) -> tuple[str, ...]:
    """Return the settings that are not those of `config`."""
    changed = {key: value for key, value in change.items() if value != _value(config, key)}
    return tuple(f"--{key}={str(value).lower()}" for key, value in changed.items())


def _value(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _together(parts: tuple[Change, ...]) -> Change | None:
    """Return the union; None when two parts set the same key."""
    keys = [key for part in parts for key in part]
    return {key: part[key] for part in parts for key in part} if len(keys) == len(set(keys)) else None


def _singles(config: RunConfig, plan: Plan) -> Iterator[Change]:
    """Yield single changes that can help against the plan's problems, the cheapest first."""
    roles = {problem.role for problem in plan.problems}
    if "gpus" in roles:
        yield from _fewer(config)
        if config.cluster.layout == "separate":
            yield from _in_turns(config, plan.cluster.num_gpus)
        for count in (4, 2, 1):
            if count < config.reward.cpus:
                yield {"reward.cpus": count, "reward.processes": min(count, config.reward.processes)}
    if roles & {"rollout", "memory"}:
        yield from _engine_changes(config, plan)
    for role in ("learner", "critic"):
        if role == "critic" and not config.has_critic:
            continue
        if roles & {role, "memory"} or (role == "learner" and "reference" in roles):
            yield from _training_changes(config, role)
        if "host" in roles and getattr(config, role).offload_optimizer:
            yield {f"{role}.offload_optimizer": False}
            yield {f"{role}.offload_optimizer": False, f"{role}.zero_stage": 3}
    if roles & {"host", "memory"}:
        yield from _fewer(config)


def _fewer(config: RunConfig) -> Iterator[Change]:
    if config.cluster.layout == "colocated":
        yield from (_all_on(config, gpus) for gpus in range(config.rollout.workers - 1, 0, -1))
        return
    for workers in range(config.rollout.workers - 1, 0, -1):
        yield {"rollout.workers": workers}
    for key in ("learner.ranks", "critic.ranks"):
        ranks = _value(config, key)
        while ranks > 1:
            ranks //= 2
            yield {key: ranks}


def _engine_changes(config: RunConfig, plan: Plan) -> Iterator[Change]:
    rollout = config.rollout
    if plan.cluster.device.kind == "cpu" or config.device == "cpu":
        for gib in (2.0, 1.0, 0.5, 0.25, 4.0, 8.0):
            if gib != rollout.kv_cache_gib:
                yield {"rollout.kv_cache_gib": gib}
    else:
        if rollout.kv_cache_gib is not None:
            yield from ({"rollout.kv_cache_gib": gib} for gib in KV_CACHES if gib < rollout.kv_cache_gib)
        for share in (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
            if share != rollout.gpu_memory_utilization:
                yield {"rollout.gpu_memory_utilization": share}
    if rollout.max_sequences > 32:
        yield {"rollout.max_sequences": rollout.max_sequences // 2}
    if rollout.dtype == "float32":
        yield {"rollout.dtype": "bfloat16"}
    if rollout.gpus_per_worker >= 1:
        for size in (2, 4, 8):
            if size > rollout.tensor_parallel_size:
                yield {"rollout.tensor_parallel_size": size, "rollout.gpus_per_worker": size}


def _training_changes(config: RunConfig, role: str) -> Iterator[Change]:
    settings = getattr(config, role)
    least = config.context_tokens if role == "learner" else config.critic_reads_at_most()[0]
    half = settings.max_tokens_per_microbatch // 2
    for tokens in dict.fromkeys((max(half, least), max(half // 2, least))):
        if tokens < settings.max_tokens_per_microbatch:
            yield {f"{role}.max_tokens_per_microbatch": tokens}
    if settings.ranks > 1:
        for stage in (2, 3):
            if stage > settings.zero_stage:
                yield {f"{role}.zero_stage": stage}
    if not settings.gradient_checkpointing:
        yield {f"{role}.gradient_checkpointing": True}
    if least < half // 2:
        yield {f"{role}.max_tokens_per_microbatch": least}
    if not settings.offload_optimizer and settings.gpus_per_rank > 0:
        stage = {} if settings.zero_stage else {f"{role}.zero_stage": 2}
        yield {f"{role}.offload_optimizer": True, **stage}
    if settings.dtype == "float32":
        yield {f"{role}.dtype": "bfloat16"}
    for ranks in RANKS:
        if ranks > settings.ranks:
            yield {f"{role}.ranks": ranks}
            if settings.zero_stage < 3:
                yield {f"{role}.ranks": ranks, f"{role}.zero_stage": 3}


def _by_node(gpus: int) -> list[int]:
    whole, rest = divmod(gpus, GPUS_PER_NODE)
    return [GPUS_PER_NODE] * whole + ([rest] if rest else [])
