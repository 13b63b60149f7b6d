"""The plan of a run on a cluster: bytes of every process, placement, seconds, and whether it fits.

    make_plan(config, cluster, models)  -->  Plan

Roles have devices of their own, share a GPU by fractions of `gpus_per_rank` and `gpus_per_worker`
(the sum has to fit), or take turns on it (`cluster.layout: colocated`; the largest phase has to).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sppo_ray.config import ModelSettings, RunConfig
from sppo_ray.planning.devices import CPU, GIB, Cluster, Device, Node, machine_memory, ray_cluster
from sppo_ray.planning.disk import disk_bytes, effective_stage, one_checkpoint
from sppo_ray.planning.engine_memory import Engine, EngineMemory, engine_memory, kv_bytes_a_token
from sppo_ray.planning.lora import adapters_of, trained_parameters
from sppo_ray.planning.memory import (
    DTYPE_BYTES,
    PROCESS,
    RankMemory,
    Training,
    head_memory,
    reference_memory,
    shared_memory_bytes,
    training_memory,
)
from sppo_ray.planning.models import Models
from sppo_ray.planning.placement import Place, place
from sppo_ray.planning.problems import (
    Problem,
    device_problems,
    host_problems,
    placement_problems,
    warnings_of,
)
from sppo_ray.planning.resources import Resources, bundles_of, resolve_device
from sppo_ray.planning.rewards import reward_memories
from sppo_ray.planning.shapes import ModelShape
from sppo_ray.planning.time import (
    Assumptions,
    Generation,
    compute_seconds,
    forward_flops,
    generation_seconds,
    optimizer_seconds,
    sync_seconds,
    training_flops,
)
from sppo_ray.planning.transfer import TransferBuffers, transfer_buffers
from sppo_ray.planning.turns import moved_bytes, phase_bytes, with_moved_states

CPU_KV_CACHE = 4 * GIB
"""vLLM's KV cache on a CPU where rollout.kv_cache_gib is null."""


@dataclass(frozen=True, slots=True)
class RolePlan:
    """Equal processes: engines or the ranks of a role."""

    role: str  # rollout, learner, critic, reference, reward-model-0, ...
    count: int
    memory: RankMemory
    peaks: tuple[int, ...] | None = None  # with and without gradient checkpointing


@dataclass(frozen=True, slots=True)
class Plan:
    cluster: Cluster
    roles: tuple[RolePlan, ...]
    places: tuple[Place, ...]
    host_bytes: tuple[int, ...]  # of each node, shared memory included
    shared_memory: int  # /dev/shm of the node that needs most
    disk: int  # checkpoints and export
    logits_chunk: int  # bytes of the learner's head at its peak
    cached_tokens: int  # of one engine's KV cache
    stages: Mapping[str, float]  # seconds of a step
    step_seconds: float
    steps: int
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    turns: Mapping[str, int]  # bytes of a GPU by phase; empty unless roles take turns
    gpus_needed: int = 0  # when not all actors have a place

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def gpus(self) -> int:
        """GPUs that the run uses: those of its actors, or what it needs when some have no place."""
        used = len({(found.node, gpu) for found in self.places for gpu in found.gpus})
        return max(used, self.gpus_needed)

    @property
    def hours(self) -> float:
        return self.step_seconds * self.steps / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


def make_plan(
    config: RunConfig,
    cluster: Cluster,
    models: Models,
    assumed: Assumptions | None = None,
    *,
    remaining: int | None = None,
) -> Plan:
    """Compute the plan.

    Args:
        remaining: steps to the end of the run; None = all.
    """
    assumed = assumed or Assumptions()
    device = _device_of(config, cluster)
    cluster = replace(cluster, device=device)
    engine = _engine_memory(config, models.policy, device)
    roles = _roles(config, models, device, engine)
    places, left = place(bundles_of(config), cluster)
    memories = {role.role: role.memory for role in roles}
    turns = _turns(config, models, device, memories)
    host, shared = _host(config, models.policy, cluster, places, memories)
    problems = [
        *placement_problems(config, cluster, left),
        *device_problems(config, device, places, memories, engine, turns),
        *host_problems(device, cluster, host),
    ]
    stages = _stages(config, models, device, engine, assumed, places, memories)
    beside = {"generation", "update"}
    busy = sum(seconds for name, seconds in stages.items() if name not in beside)
    overlap = max if config.loop.max_staleness else sum
    return Plan(
        cluster=cluster,
        roles=roles,
        places=places,
        host_bytes=host,
        shared_memory=shared,
        disk=disk_bytes(config, models),
        logits_chunk=head_memory(_policy_training(config, models.policy, device)),
        cached_tokens=engine.cached_tokens,
        stages=stages,
        step_seconds=overlap([stages["generation"], stages["update"]]) + busy,
        steps=config.loop.steps if remaining is None else remaining,
        problems=tuple(problems),
        warnings=warnings_of(device, cluster, host, places, memories, turns),
        turns=turns,
        gpus_needed=math.ceil(config.logical_gpus()) if left and device.kind == "cuda" else 0,
    )


def _device_of(config: RunConfig, cluster: Cluster) -> Device:
    kind = resolve_device(config, [node.resources for node in cluster.nodes])
    return CPU if kind == "cpu" and cluster.device.kind == "cuda" else cluster.device


# ---------------------------------------------------------------------------------------- roles


def training_of(
    settings: ModelSettings,
    shape: ModelShape,
    *,
    is_critic: bool,
    samples: float,
    longest: int,
    on_cuda: bool,
    entropy_gradient: bool = False,
    sync_bytes: int = 0,
    transfer: int = 0,
) -> Training:
    """Return the largest micro-batch of a rank and what else decides its memory. `samples`: of a
    minibatch, on one rank; `longest`: tokens of the longest one.
    """
    tokens = min(settings.max_tokens_per_microbatch, math.ceil(samples) * longest)
    return Training(
        shape=shape,
        parameters=shape.critic_parameters if is_critic else shape.parameters,
        item_bytes=DTYPE_BYTES[settings.dtype],
        stage=effective_stage(settings),
        ranks=settings.ranks,
        offload=settings.offload_optimizer,
        gradient_checkpointing=settings.gradient_checkpointing,
        tokens=tokens,
        head_rows=tokens,
        head_width=1 if is_critic else shape.vocabulary,
        entropy_gradient=entropy_gradient,
        on_cuda=on_cuda,
        sync_bytes=sync_bytes,
        transfer=transfer,
        adapters=adapters_of(settings.lora, shape, is_critic=is_critic),
    )


def _roles(
    config: RunConfig, models: Models, device: Device, engine: EngineMemory
) -> tuple[RolePlan, ...]:
    policy = _policy_training(config, models.policy, device)
    roles = [RolePlan("rollout", config.rollout.workers, engine.memory), _training_role("learner", policy)]
    if (values := _critic_training(config, models, device)) is not None:
        roles.append(_training_role("critic", values))
    if config.has_reference:
        item = DTYPE_BYTES[config.reference.dtype]
        frozen = replace(policy, item_bytes=item, sync_bytes=0, transfer=0, adapters=None)
        roles.append(RolePlan("reference", config.learner.ranks, reference_memory(frozen)))
    on_cuda = device.kind == "cuda"
    scoring = reward_memories(config.reward, models.rewards, on_cuda=on_cuda)
    roles += [RolePlan(role, count, memory) for role, count, memory in scoring]
    if _takes_turns(config, device):
        trains = ("learner", "critic")
        roles = [
            replace(role, memory=with_moved_states(role.memory)) if role.role in trains else role
            for role in roles
        ]
    return tuple(roles)


def _takes_turns(config: RunConfig, device: Device) -> bool:
    return config.cluster.layout == "colocated" and device.kind == "cuda"


def _turns(
    config: RunConfig, models: Models, device: Device, memories: Mapping[str, RankMemory]
) -> dict[str, int]:
    if not _takes_turns(config, device):
        return {}
    in_chunks = config.transport != "flat"
    return phase_bytes(memories, _critic_training(config, models, device), in_chunks=in_chunks)


def _critic_training(config: RunConfig, models: Models, device: Device) -> Training | None:
    if models.critic is None:
        return None
    return training_of(
        config.critic,
        models.critic,
        is_critic=True,
        samples=config.data.minibatch_size / config.critic.ranks,
        longest=config.critic_reads_at_most()[0],
        on_cuda=device.kind == "cuda",
    )


def _policy_training(config: RunConfig, shape: ModelShape, device: Device) -> Training:
    return training_of(
        config.learner,
        shape,
        is_critic=False,
        samples=config.data.minibatch_size / config.learner.ranks,
        longest=config.context_tokens,
        on_cuda=device.kind == "cuda",
        entropy_gradient=config.algorithm.entropy_coefficient > 0,
        sync_bytes=shape.parameters * DTYPE_BYTES[config.rollout.dtype],
        transfer=_transfer(config, shape).sender,
    )


def _transfer(config: RunConfig, shape: ModelShape) -> TransferBuffers:
    return transfer_buffers(
        config.transport,
        shape,
        DTYPE_BYTES[config.rollout.dtype],
        chunk_bytes=int(config.weight_sync.chunk_mib * 2**20),
        tensor_parallel=config.rollout.tensor_parallel_size,
    )


def _training_role(role: str, training: Training) -> RolePlan:
    both = (replace(training, gradient_checkpointing=recompute) for recompute in (True, False))
    peaks = tuple(training_memory(one).peak for one in both)
    return RolePlan(role, training.ranks, training_memory(training), peaks)


def _engine_memory(config: RunConfig, shape: ModelShape, device: Device) -> EngineMemory:
    rollout = config.rollout
    measured = 0 if device.kind == "cuda" else CPU_KV_CACHE
    kv_cache = measured if rollout.kv_cache_gib is None else int(rollout.kv_cache_gib * GIB)
    return engine_memory(
        Engine(
            shape=shape,
            item_bytes=DTYPE_BYTES[rollout.dtype],
            tensor_parallel=rollout.tensor_parallel_size,
            max_sequences=rollout.max_sequences,
            context_tokens=config.context_tokens,
            budget=int(rollout.gpu_memory_utilization * device.memory),
            kv_cache=kv_cache,
            graphs=not rollout.enforce_eager,
            on_cuda=device.kind == "cuda",
            transfer=_transfer(config, shape).receiver,
        )
    )


# ------------------------------------------------------------------------- host memory and disk


def _host(
    config: RunConfig,
    shape: ModelShape,
    cluster: Cluster,
    places: Sequence[Place],
    memories: Mapping[str, RankMemory],
) -> tuple[tuple[int, ...], int]:
    """Return the host bytes of each node, and the shared memory of the node that needs most.

    Every node with an engine or the learner's rank 0 holds the object store's versions. The buffer
    of a weight sync is rank 0's.
    """
    version = shape.parameters * DTYPE_BYTES[config.rollout.dtype]
    on_cuda = cluster.device.kind == "cuda"
    host, shared = [], []
    for number in range(len(cluster.nodes)):
        total, here = 0, [found for found in places if found.node == number]
        for found in here:
            role = found.role.rpartition("-")[0] or found.role
            if role not in memories:
                pool = config.environment if role == "environment" else config.reward
                total += PROCESS["other"] * (1 + (0 if pool is None else pool.processes))
                continue
            memory = memories[role]
            total += memory.host_peak if on_cuda else memory.peak + PROCESS["train"] * (role != "rollout")
            sync = memory.host.get("sync buffer", 0) if on_cuda else _sync_part(memory)
            total -= sync if role == "learner" and found.role != "learner-0" else 0
        engines = sum(found.role.startswith("rollout-") for found in here)
        tensor_parallel = engines if config.rollout.tensor_parallel_size > 1 else 0
        stores = engines > 0 or any(found.role == "learner-0" for found in here)
        shared.append(shared_memory_bytes(version, tensor_parallel) if stores else 0)
        driver = PROCESS["train"] + 2 * PROCESS["other"] if number == 0 else PROCESS["other"]
        host.append(total + shared[-1] + driver)  # the driver and Ray's own processes
    return tuple(host), max(shared, default=0)


def _sync_part(memory: RankMemory) -> int:
    return memory.phases[memory.peak_phase].get("sync buffer", 0)


# --------------------------------------------------------------------------------------- seconds


def _stages(
    config: RunConfig,
    models: Models,
    device: Device,
    engine: EngineMemory,
    assumed: Assumptions,
    places: Sequence[Place],
    memories: Mapping[str, RankMemory],
) -> dict[str, float]:
    """Return the seconds of a step by stage. The critic reads prompts while the engines generate,
    and trains beside the learner, if it has devices of its own. Roles that take turns move their
    states to the host and back.
    """
    data, rollout, learner = config.data, config.rollout, config.learner
    prompt = max(1.0, assumed.prompt_share * data.max_prompt_tokens)
    response = max(1.0, assumed.response_share * rollout.max_response_tokens)
    samples, item = data.samples_per_step, DTYPE_BYTES[rollout.dtype]
    cached = max(1.0, engine.cached_tokens / (prompt + response))
    on_cuda = device.kind == "cuda"
    generation = Generation(
        shape=models.policy,
        samples=samples * config.prompt_rounds / rollout.workers,
        prompt=prompt,
        response=response,
        longest=rollout.max_response_tokens,
        concurrent=min(rollout.max_sequences, cached),
        weight_bytes=models.policy.parameters * item // rollout.tensor_parallel_size,
        kv_bytes=kv_bytes_a_token(models.policy, item, rollout.tensor_parallel_size),
        devices=rollout.tensor_parallel_size if on_cuda else max(1, int(rollout.cpus_per_worker)),
    )
    stages = {"generation": generation_seconds(generation, device, assumed)}
    length = prompt + response
    if config.algorithm.old_logprobs == "learner":
        flops = forward_flops(models.policy, samples * length, length, head=True)
        # Only the last minibatch's are computed when nothing is generated any more.
        seconds = _compute(flops, samples * length, learner, device, assumed, train=False)
        in_turns = _takes_turns(config, device)
        stages["log-probs"] = seconds if in_turns else seconds / data.minibatches_per_step
    policy = _training_seconds(config, learner, models.policy, samples * length, length, device, assumed)
    critic = 0.0
    if models.critic is not None:
        reads = length if config.spec.critic == "token" else prompt
        critic = _training_seconds(
            config, config.critic, models.critic, samples * reads, reads, device, assumed, is_critic=True
        )
    is_beside = on_cuda and not _takes_turns(config, device)
    stages["update"] = max(policy, critic) if is_beside else policy + critic
    if _takes_turns(config, device):
        # All states leave and return in the role's own turn, the weights once more: the learner
        # publishes, and the critic values prompts.
        moved = {role: moved_bytes(memories[role]) for role in ("learner", "critic") if role in memories}
        total = sum(weights + states for weights, states in moved.values())
        sent = moved["learner"][0] if config.transport != "flat" else 0  # brought to be sent
        stages["turns"] = 2 * (total + sent) / device.host_link
    nodes = {found.node for found in places if found.role.startswith("rollout-")}
    learner_node = next((found.node for found in places if found.role == "learner-0"), 0)
    size = models.policy.parameters * item
    other_nodes = len(nodes - {learner_node})
    stages["weight sync"] = sync_seconds(
        size, device, assumed, other_nodes=other_nodes, transport=config.transport
    )
    if config.checkpoint.every:
        stages["checkpoint"] = one_checkpoint(config, models) / assumed.disk / config.checkpoint.every
    return stages


def _training_seconds(
    config: RunConfig,
    settings: ModelSettings,
    shape: ModelShape,
    tokens: float,
    length: float,
    device: Device,
    assumed: Assumptions,
    *,
    is_critic: bool = False,
) -> float:
    recompute, frozen = settings.gradient_checkpointing, settings.lora is not None
    flops = training_flops(shape, tokens, length, head=not is_critic, recompute=recompute, frozen=frozen)
    count = trained_parameters(settings.lora, shape, is_critic=is_critic)
    step = optimizer_seconds(count, settings.ranks, device, assumed, offload=settings.offload_optimizer)
    seconds = _compute(flops, tokens, settings, device, assumed, train=True)
    repeats = config.critic.updates_per_minibatch if is_critic else 1
    return repeats * (seconds + config.data.minibatches_per_step * step)


def _compute(
    flops: float, tokens: float, settings: ModelSettings, device: Device, assumed: Assumptions, *, train: bool
) -> float:
    cores = max(1, int(settings.cpus_per_rank))
    return compute_seconds(flops, tokens, settings.ranks, device, assumed, cores=cores, train=train)


def live_cluster(device: str, nodes: Sequence[Resources], *, is_local: bool) -> Cluster | None:
    """Return the cluster of a run that is about to start; None when its memory is not known: on
    "cuda" when Ray names no kind of GPU or several, on "cpu" when it is not this machine.
    """
    if device == "cuda":
        return ray_cluster(nodes)
    if not is_local:
        return None
    machine = machine_memory()
    cpus = sum(node.cpus for node in nodes)
    return Cluster(replace(CPU, memory=machine), (Node(cpus, 0, machine),))
