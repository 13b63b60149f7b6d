"""Compute the resources of a run, and whether they fit on a cluster. Pure: the caller passes the
live figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sppo_ray.config import RewardSettings, RunConfig
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.errors import UserError
from sppo_ray.settings import Settings

EPSILON = 1e-9  # tolerance for sums of fractional shares


@dataclass(frozen=True, slots=True)
class Resources:
    """Logical resources of a node. `accelerator`: Ray's name of its GPUs, empty = not known."""

    cpus: float
    gpus: float
    accelerator: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The resources of one actor, or of `members` that share a GPU; one bundle of the placement
    group.
    """

    role: str
    cpus: float
    gpus: float
    members: tuple[Bundle, ...] = ()

    @property
    def actors(self) -> tuple[Bundle, ...]:
        """The resources of each actor in the bundle."""
        return self.members or (self,)

    @property
    def needs(self) -> str:
        """For people: "2 CPU, 1 GPU"."""
        return f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")

    def as_ray(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def bundles_of(config: RunConfig) -> list[Bundle]:
    """Return the bundles of a run, in a fixed order. Layout separate: one for each actor. Layout
    colocated: gpu-i with engine i, learner rank i and critic rank i; reward-*, reward.
    """
    return [*_by_gpu(config, _separate_bundles(config)), *_judging_bundles(config)]


def _by_gpu(config: RunConfig, ranks: Sequence[Bundle]) -> list[Bundle]:
    """Return the bundles of engines and ranks: in layout colocated those of equal number as one."""
    if config.cluster.layout == "separate":
        return list(ranks)
    return [
        _shared_bundle(f"gpu-{i}", [bundle for bundle in ranks if bundle.role.endswith(f"-{i}")])
        for i in range(config.rollout.workers)
    ]


def _shared_bundle(name: str, members: Sequence[Bundle]) -> Bundle:
    """Return one bundle for members that use the same GPU, each with an equal fraction of it: Ray
    maps all GPU fractions of a bundle of one GPU to that GPU.
    """
    gpus = max(member.gpus for member in members)
    fraction = int(gpus / len(members) * 100) / 100  # Ray counts GPUs in steps of 0.0001
    parts = tuple(replace(member, gpus=fraction) for member in members)
    return Bundle(name, sum(member.cpus for member in members), gpus, parts)


def _separate_bundles(config: RunConfig) -> list[Bundle]:
    """Return one bundle per actor: rollout-*, learner-*, critic-*, reference-*."""
    rollout, learner, critic, reference = config.rollout, config.learner, config.critic, config.reference
    critics = critic.ranks if config.has_critic else 0
    references = learner.ranks if config.has_reference else 0
    return [
        *(
            Bundle(f"rollout-{i}", rollout.cpus_per_worker, rollout.gpus_per_worker)
            for i in range(rollout.workers)
        ),
        *(Bundle(f"learner-{i}", learner.cpus_per_rank, learner.gpus_per_rank) for i in range(learner.ranks)),
        *(Bundle(f"critic-{i}", critic.cpus_per_rank, critic.gpus_per_rank) for i in range(critics)),
        *(
            Bundle(f"reference-{i}", reference.cpus_per_rank, reference.gpus_per_rank)
            for i in range(references)
        ),
    ]


def reward_bundles(reward: RewardSettings) -> list[Bundle]:
    """Return one bundle per actor: reward-model-*-*, reward."""
    models = [
        Bundle(name, model.cpus_per_replica, model.gpus_per_replica)
        for model, names in zip(reward.models, reward_model_names(reward), strict=True)
        for name in names
    ]
    return [*models, Bundle("reward", reward.cpus, 0.0)]


def reward_model_names(reward: RewardSettings) -> list[list[str]]:
    """Return the names of the replicas of each reward model: reward-model-M-R."""
    return [
        [f"reward-model-{number}-{replica}" for replica in range(model.replicas)]
        for number, model in enumerate(reward.models)
    ]


def _judging_bundles(config: RunConfig | EvaluationConfig) -> list[Bundle]:
    """Return the bundles of what answers and scores responses: environment, reward-*, reward."""
    environment = config.environment
    environments = [] if environment is None else [Bundle("environment", environment.cpus, 0.0)]
    return [*environments, *reward_bundles(config.reward)]


def serving_bundles_of(config: RunConfig | EvaluationConfig) -> list[Bundle]:
    """Return the bundles for sampling and scoring without training: rollout-*, reward-*."""
    rollout = config.rollout
    workers = [
        Bundle(f"rollout-{i}", rollout.cpus_per_worker, rollout.gpus_per_worker)
        for i in range(rollout.workers)
    ]
    return [*workers, *_judging_bundles(config)]


def learning_bundles_of(config: RunConfig) -> list[Bundle]:
    """Return the bundles for training without engines and verifier: learner-*, critic-*,
    reference-*; in layout colocated gpu-i.
    """
    ranks = [bundle for bundle in _separate_bundles(config) if not bundle.role.startswith("rollout-")]
    return _by_gpu(config, ranks)


def require_feasible(
    config: RunConfig | EvaluationConfig, nodes: Sequence[Resources], bundles: Sequence[Bundle] | None = None
) -> None:
    """Refuse bundles that can never be placed, before any actor exists. `bundles`: None = all of
    the run's. Raises UserError with the sums and the remedy.
    """
    bundles = bundles_of(config) if bundles is None else bundles
    wanted = ", ".join(f"{b.role} {b.cpus:g} CPU" + (f" + {b.gpus:g} GPU" if b.gpus else "") for b in bundles)
    remedy = (
        "lower rollout.workers, learner.ranks or critic.ranks, or the *_per_worker and *_per_rank shares, or "
        "add nodes"
    )
    for name, need, have in (
        ("CPUs", sum(b.cpus for b in bundles), sum(node.cpus for node in nodes)),
        ("GPUs", sum(b.gpus for b in bundles), sum(node.gpus for node in nodes)),
    ):
        if need > have + EPSILON:
            share = f"; on one machine --cluster.local_cpus={math.ceil(need)} lets them share its cores"
            raise UserError(
                f"this run needs {need:g} logical {name}, the Ray cluster has {have:g} ({wanted}): {remedy}"
                + (share if name == "CPUs" else "")
            )
    for bundle in bundles:
        if not any(
            bundle.cpus <= node.cpus + EPSILON and bundle.gpus <= node.gpus + EPSILON for node in nodes
        ):
            largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
            raise UserError(
                f"{bundle.role} needs {bundle.cpus:g} CPUs and {bundle.gpus:g} GPUs on one node, and no node "
                "has them "
                "(the largest: "
                f"{largest.cpus:g} and {largest.gpus:g}): lower its share, or add a larger node"
            )


def require_local_cpus(config: RunConfig, cpus: float) -> None:
    """Refuse a run that needs more CPUs than a local Ray cluster will have. Raises UserError as
    `require_feasible` does, which checks the GPUs too once Ray has counted them.
    """
    gpus = sum(bundle.gpus for bundle in bundles_of(config))
    require_feasible(config, [Resources(cpus, gpus)])


def fitted_cpus(config: RunConfig, cpus: float) -> RunConfig:
    """Return the settings with lower CPU shares where none were set, so that the run fits on
    `cpus` of one machine. A run that fits, or cannot fit so, is returned as it is.
    """
    shares = {
        ("rollout", "cpus_per_worker"): config.rollout.workers,
        ("learner", "cpus_per_rank"): config.learner.ranks,
        ("critic", "cpus_per_rank"): config.critic.ranks if config.has_critic else 0,
        ("reference", "cpus_per_rank"): config.learner.ranks if config.has_reference else 0,
        ("reward", "cpus"): 1,
    } | ({} if config.environment is None else {("environment", "cpus"): 1})
    is_free = {key: key[1] not in _section(config, key).model_fields_set for key in shares}
    free = {key: count for key, count in shares.items() if is_free[key]}
    unset = sum(count * getattr(_section(config, key), key[1]) for key, count in free.items())
    is_set = config.logical_cpus() - unset
    if config.logical_cpus() <= cpus + EPSILON or is_set >= cpus or not unset:
        return config
    factor = (cpus - is_set) / unset
    changes: dict[str, Settings] = {}
    for section, name in free:
        settings = _section(config, (section, name))
        share = int(getattr(settings, name) * factor * 100) / 100  # rounded down
        if share <= 0:
            return config
        changes[section] = settings.model_copy(update={name: share})
    return config.model_copy(update=changes)


def _section(config: RunConfig, key: tuple[str, str]) -> Settings:
    return getattr(config, key[0])


def resolve_device(config: RunConfig | EvaluationConfig, nodes: Sequence[Resources]) -> str:
    """Return the device of config.device on this cluster: "cpu" or "cuda"."""
    if config.device == "auto":
        return "cuda" if config.logical_gpus() > 0 and any(node.gpus > 0 for node in nodes) else "cpu"
    return config.device
