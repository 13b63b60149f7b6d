"""Creates the actors in their reserved places. The only module that imports `actors`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.algorithms.base import AlgorithmSettings
from sppo_ray.config import ModelSettings, RunConfig
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.launch.actor_registry import ActorRegistry, ActorRow, ProcessLocation
from sppo_ray.launch.placement_pool import ROLLOUT, RayPlacementPool, reserve_group
from sppo_ray.planning.resources import Bundle, reward_model_names
from sppo_ray.protocols import Critic, EnvironmentClient, Learner, Reference, RewardClient, RolloutWorker
from sppo_ray.rewards.build import judge_keys
from sppo_ray.rollout.views import PendingView

if TYPE_CHECKING:
    from ray.actor import ActorClass, ActorHandle

    from actors.environment_client import RayEnvironmentClient
    from actors.handles import Announce, Ranks, ReferenceGroup
    from actors.reward_client import RayRewardClient


PENDING_AFTER_S = 5.0  # a process that has not started after this time is shown as pending


@contextlib.asynccontextmanager
async def actor_factory(
    config: RunConfig | EvaluationConfig,
    device: str,
    bundles: Sequence[Bundle],
    *,
    on_actors: Callable[[list[ActorRow]], None] = lambda rows: None,
) -> AsyncIterator[ActorFactory]:
    """Reserve a place for each of `bundles` and yield a factory; all places are released when the
    block ends. `on_actors` receives the process of each actor whenever one changes.
    """
    from ray.util.placement_group import remove_placement_group

    group = await reserve_group(config, bundles)
    registry = ActorRegistry(_locate, on_actors)
    places = RayPlacementPool(group, bundles, on_release=registry.remove)
    try:
        yield ActorFactory(config, device, places, registry)
    finally:
        registry.close()
        places.close()
        remove_placement_group(group)


class ActorFactory:
    """Creates actors in their reserved places. Use `actor_factory`."""

    def __init__(
        self,
        config: RunConfig | EvaluationConfig,
        device: str,
        places: RayPlacementPool,
        registry: ActorRegistry,
    ) -> None:
        self._config = config
        self._device = device
        self._registry = registry
        self.places = places

    def pending(self) -> list[PendingView]:
        """Processes other than engines that were requested a while ago and have not started."""
        late = [row for row in self._registry.missing() if time.time() - row["since"] >= PENDING_AFTER_S]
        beside = [row for row in late if not row["name"].startswith(ROLLOUT)]
        return [
            PendingView(row["name"], self.places.of(row["name"]).bundle.needs, row["since"]) for row in beside
        ]

    async def rollout_worker(
        self, name: str, policy_path: Path, stop_token_ids: tuple[int, ...]
    ) -> RolloutWorker:
        from actors.handles import RayRolloutWorker
        from actors.remote_calls import answer, kill
        from actors.rollout import RolloutActor, rollout_env

        settings = self._config.rollout
        handle = self._actor(
            RolloutActor,
            name,
            name,
            settings,
            env=rollout_env(settings, self._device),
            model_path=str(policy_path),
            max_model_len=self._config.data.max_prompt_tokens + settings.max_response_tokens,
            stop_token_ids=stop_token_ids,
            seed=self._config.seed,
            device=self._device,
            can_sleep=self._config.cluster.layout == "colocated",
        )
        try:
            await answer(name, "start-up", handle.ready.remote(), settings.start_timeout_s)
        except BaseException:  # also when it was cancelled: no other code has a handle yet
            kill(handle)
            raise
        return RayRolloutWorker(name, handle, pull_timeout_s=self._config.weight_sync.timeout_s)

    async def learner(self, policy_path: Path) -> Learner:
        from actors.handles import LearnerGroup
        from actors.learner import LearnerActor

        config = self._config
        warmup = config.critic_warmup_steps
        ranks = await self._ranks(
            "learner",
            LearnerActor,
            config.learner,
            policy_path,
            total_updates=config.data.minibatches_per_step * max(1, config.loop.steps - warmup),
            algorithm=_loss_settings(config.algorithm),
            temperature=config.rollout.temperature,
            max_response_tokens=config.rollout.max_response_tokens,
            sync_dtype=config.rollout.dtype,
        )
        return LearnerGroup(ranks, tokenizer_path=str(policy_path), announce=self._announce(ranks))

    def _announce(self, ranks: Ranks) -> Announce | None:
        """Return how versions are published for a broadcast; None = the transport is flat."""
        if self._config.transport == "flat":
            return None
        from actors.group_sender import GroupSender

        sync = self._config.weight_sync
        return GroupSender(
            ranks,
            transport=self._config.transport,
            chunk_bytes=int(sync.chunk_mib * 2**20),
            timeout_s=sync.transfer_timeout_s,
        ).announce

    async def critic(self, critic_path: Path, policy_path: Path) -> Critic | None:
        """Create the prompt critic or the token critic; None when the algorithm has no critic. A
        token critic is exported with the policy's tokenizer, as it reads the policy's prompts.
        """
        config = self._config
        if not config.has_critic:
            return None
        from actors.critic import CriticActor, TokenCriticActor
        from actors.handles import CriticGroup

        updates = (
            config.data.minibatches_per_step * config.loop.steps * config.critic.updates_per_minibatch
        )
        if config.spec.critic == "token":
            ranks = await self._ranks(
                "critic",
                TokenCriticActor,
                config.critic,
                critic_path,
                total_updates=updates,
                critic_loss=config.algorithm.token_critic_loss,
            )
        else:
            ranks = await self._ranks(
                "critic", CriticActor, config.critic, critic_path, total_updates=updates
            )
        critic_loss = "bce" if config.critic_needs_probabilities else "mse"
        reads = policy_path if config.spec.critic == "token" else critic_path
        return CriticGroup(ranks, tokenizer_path=str(reads), critic_loss=critic_loss)

    async def reference(self, policy_path: Path) -> Reference | None:
        """Create the frozen starting policy, one copy for each learner rank; None without a KL
        penalty.
        """
        config = self._config
        if not config.has_reference:
            return None
        from actors.handles import ReferenceGroup
        from actors.reference import ReferenceActor

        handles = [
            self._actor(
                ReferenceActor,
                f"reference-{rank}",
                rank,
                config.reference,
                env=_rank_env(config.reference.cpus_per_rank),
                model_path=str(policy_path),
                temperature=config.rollout.temperature,
                attention=config.learner.attention,
            )
            for rank in range(config.learner.ranks)
        ]
        group = ReferenceGroup(handles, timeout_s=config.learner.timeout_s)
        await _or_kill(group, group.ready(config.cluster.ready_timeout_s))
        return group

    async def reward_client(self) -> RewardClient:
        from actors.reward import RewardActor
        from actors.reward_client import RayRewardClient

        settings = self._config.reward
        models = self._reward_models()
        handle = self._actor(
            RewardActor,
            "reward",
            "reward",
            settings,
            env={"OMP_NUM_THREADS": "1"},
            models=[[models[name] for name in names] for names in reward_model_names(settings)],
            keys=judge_keys(settings),
        )
        client = RayRewardClient(handle, deadline_s=settings.longest_s, models=models)
        await _or_kill(client, client.ready(self._config.cluster.ready_timeout_s))
        return client

    def _reward_models(self) -> dict[str, ActorHandle]:
        """Create the replicas of each reward model, by name."""
        from actors.reward_model import RewardModelActor
        from sppo_ray.models.bundled import resolve_model

        settings = self._config.reward
        return {
            name: self._actor(
                RewardModelActor,
                name,
                name,
                model,
                env=_rank_env(model.cpus_per_replica),
                model_path=str(resolve_model(model.model)),
            )
            for model, names in zip(settings.models, reward_model_names(settings), strict=True)
            for name in names
        }

    async def environment_client(self) -> EnvironmentClient | None:
        """Create the environment; None without one."""
        settings = self._config.environment
        if settings is None:
            return None
        from actors.environment import EnvironmentActor
        from actors.environment_client import RayEnvironmentClient

        env = {"OMP_NUM_THREADS": "1"}
        handle = self._actor(EnvironmentActor, "environment", "environment", settings, env=env)
        client = RayEnvironmentClient(handle, deadline_s=settings.deadline_s)
        await _or_kill(client, client.ready(self._config.cluster.ready_timeout_s))
        return client

    async def _ranks(
        self, role: str, actor_class: ActorClass, settings: ModelSettings, model_path: Path, **keywords: Any
    ) -> Ranks:
        """Create the ranks of a role and form their process group."""
        from actors.handles import Ranks

        handles = [
            self._actor(
                actor_class,
                f"{role}-{rank}",
                rank,
                settings.ranks,
                settings,
                env=_rank_env(settings.cpus_per_rank),
                model_path=str(model_path),
                seed=self._config.seed,
                **keywords,
            )
            for rank in range(settings.ranks)
        ]
        ranks = Ranks(role, handles, timeout_s=settings.timeout_s)
        await _or_kill(ranks, ranks.setup(self._config.cluster.ready_timeout_s))
        return ranks

    def _actor(
        self, actor_class: ActorClass, name: str, *arguments: Any, env: dict[str, str], **keywords: Any
    ) -> ActorHandle:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = self.places.of(name)
        options = {
            "num_cpus": place.bundle.cpus,
            "num_gpus": place.bundle.gpus,
            "max_restarts": 0,  # the fleet restarts it: a new engine must be synced before it serves
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                place.group, placement_group_bundle_index=place.index
            ),
            "runtime_env": {"env_vars": env},
        }
        handle = actor_class.options(**options).remote(*arguments, **keywords)
        self._registry.add(name, handle)
        return handle


def _loss_settings(algorithm: AlgorithmSettings) -> AlgorithmSettings:
    """Return the settings that all algorithms share, which the loss reads: the class of a plugin
    need not be importable in the learner's process.
    """
    return AlgorithmSettings(**{name: getattr(algorithm, name) for name in AlgorithmSettings.model_fields})


def _rank_env(cpus: float) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(max(1, int(cpus))),
        # threads that spin at a barrier take the core from an engine
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


async def _or_kill(
    made: Ranks | ReferenceGroup | RayRewardClient | RayEnvironmentClient, start: Awaitable[Any]
) -> None:
    """Wait until the new actors have started; kill them when that fails or is cancelled, because no
    other code has their handles yet.
    """
    try:
        await start
    except BaseException:  # also on cancellation: no other code would end its processes
        made.kill()
        raise


async def _locate(handle: ActorHandle) -> ProcessLocation:
    from actors.liveness import whereabouts

    return await handle.__ray_call__.remote(whereabouts)
