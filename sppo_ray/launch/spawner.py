"""Makes the actors in their bundles. The only module that imports `actors`."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.config import ModelSettings, RunConfig
from sppo_ray.launch.places import ROLLOUT, Place, RolloutPlaces
from sppo_ray.launch.roster import Roster
from sppo_ray.resources import Bundle, bundles_of
from sppo_ray.trainer.fleet_members import PendingView

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


PENDING_AFTER_S = 5.0  # a process that is not up so long after it was asked for is worth showing


class Spawner:
    """Makes actors in their bundles."""

    def __init__(
        self,
        config: RunConfig,
        group: PlacementGroup,
        device: str,
        bundles: Sequence[Bundle] | None = None,
        *,
        on_actors: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    ) -> None:
        """`on_actors` hears which process each actor is (`Roster`), whenever that changes."""
        self._config = config
        self._device = device
        bundles = bundles_of(config) if bundles is None else bundles
        self._places = {bundle.role: (Place(group, index), bundle) for index, bundle in enumerate(bundles)}
        self.roster = Roster(_locate, on_actors)
        self._group, self._bundles = group, bundles

    @functools.cached_property
    def rollout_places(self) -> RolloutPlaces:
        """Made when it is first asked for: a replay has no rollout worker to place."""
        return RolloutPlaces(self._group, self._bundles, on_release=self.roster.remove)

    def pending(self) -> list[PendingView]:
        """Processes beside the engines that were asked for a while ago and are not up: the cluster has no room, or they start."""
        late = [row for row in self.roster.missing() if time.time() - row["since"] >= PENDING_AFTER_S]
        beside = [row for row in late if row["name"] in self._places and not row["name"].startswith(ROLLOUT)]
        return [PendingView(row["name"], self._places[row["name"]][1].needs, row["since"]) for row in beside]

    def close(self) -> None:
        """Give back what was reserved beside the run's own group."""
        self.roster.close()
        if "rollout_places" in self.__dict__:
            self.rollout_places.close()

    def actor(self, actor_class: Any, role: str, *arguments: Any, env: dict[str, str], **keywords: Any) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place, bundle = self._place_of(role)
        options = {
            "num_cpus": bundle.cpus,
            "num_gpus": bundle.gpus,
            "max_restarts": 0,  # healing is ours: a restarted actor must be synced before it serves
            "scheduling_strategy": PlacementGroupSchedulingStrategy(place.group, placement_group_bundle_index=place.index),
            "runtime_env": {"env_vars": env},
        }
        handle = actor_class.options(**options).remote(*arguments, **keywords)
        self.roster.add(role, handle)
        return handle

    def _place_of(self, role: str) -> tuple[Place, Bundle]:
        return self.rollout_places.of(role) if role.startswith(ROLLOUT) else self._places[role]

    def rank_env(self, cpus: float) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": str(max(1, int(cpus))),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin at a barrier take the core from the engine beside them
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    async def rollout_worker(self, name: str, *, model_path: Path, stop_token_ids: tuple[int, ...]) -> Any:
        from actors.group import RayRolloutWorker, answer, kill
        from actors.rollout import RolloutActor, rollout_env

        settings = self._config.rollout
        handle = self.actor(
            RolloutActor,
            name,
            name,
            settings,
            env=rollout_env(settings, self._device),
            model_path=str(model_path),
            max_model_len=self._config.data.max_prompt_tokens + settings.max_response_tokens,
            stop_token_ids=stop_token_ids,
            seed=self._config.seed,
            device=self._device,
        )
        try:
            await answer(name, "start-up", handle.ready.remote(), settings.start_timeout_s)
        except BaseException:  # also when it is no longer wanted: nobody else knows of it yet
            kill(handle)
            raise
        return RayRolloutWorker(name, handle, pull_timeout_s=self._config.weight_sync.timeout_s)

    async def learner(self, *, model_path: Path, total_updates: int) -> Any:
        from actors.group import LearnerGroup
        from actors.learner import LearnerActor

        config = self._config
        ranks = self._ranks(
            "learner",
            LearnerActor,
            config.learner,
            model_path=str(model_path),
            algorithm=config.algorithm,
            temperature=config.rollout.temperature,
            max_response_tokens=config.rollout.max_response_tokens,
            total_updates=total_updates,
            seed=config.seed,
            sync_dtype=config.rollout.dtype,
        )
        await _or_kill(ranks, ranks.setup(config.cluster.ready_timeout_s))
        return LearnerGroup(ranks, tokenizer_path=str(model_path))

    async def critic(self, *, model_path: Path, total_updates: int) -> Any:
        """The prompt critic or the token critic, as the algorithm asks; None when it has none."""
        from actors.critic import CriticActor, TokenCriticActor
        from actors.group import CriticGroup

        config = self._config
        if not config.has_critic:
            return None
        common = {"model_path": str(model_path), "total_updates": total_updates, "seed": config.seed}
        if config.spec.critic == "token":
            ranks = self._ranks("critic", TokenCriticActor, config.critic, critic_loss=config.algorithm.critic_loss, **common)
        else:
            ranks = self._ranks("critic", CriticActor, config.critic, **common)
        await _or_kill(ranks, ranks.setup(config.cluster.ready_timeout_s))
        critic_loss = "bce" if config.critic_needs_probabilities else "mse"
        return CriticGroup(ranks, tokenizer_path=str(model_path), critic_loss=critic_loss)

    async def reference(self, *, model_path: Path) -> Any:
        """The frozen starting policy, a copy for each learner rank; None without a KL penalty."""
        from actors.group import ReferenceGroup
        from actors.reference import ReferenceActor

        config = self._config
        if not config.has_reference:
            return None
        handles = [
            self.actor(
                ReferenceActor,
                f"reference-{rank}",
                rank,
                config.reference,
                env=self.rank_env(config.reference.cpus_per_rank),
                model_path=str(model_path),
                temperature=config.rollout.temperature,
                attention=config.learner.attention,
            )
            for rank in range(config.learner.ranks)
        ]
        group = ReferenceGroup(handles, timeout_s=config.learner.timeout_s)
        await _or_kill(group, group.ready(config.cluster.ready_timeout_s))
        return group

    async def scorer(self) -> Any:
        from actors.group import RayScorer
        from actors.reward import RewardActor

        handle = self.actor(RewardActor, "reward", "reward", self._config.reward, env={"OMP_NUM_THREADS": "1"})
        scorer = RayScorer(handle, deadline_s=self._config.reward.deadline_s)
        await _or_kill(scorer, scorer.ready(self._config.cluster.ready_timeout_s))
        return scorer

    def _ranks(self, role: str, actor_class: Any, settings: ModelSettings, **keywords: Any) -> Any:
        from actors.group import Ranks

        handles = [
            self.actor(
                actor_class,
                f"{role}-{rank}",
                rank,
                settings.ranks,
                settings,
                env=self.rank_env(settings.cpus_per_rank),
                **keywords,
            )
            for rank in range(settings.ranks)
        ]
        return Ranks(role, handles, timeout_s=settings.timeout_s)


async def _or_kill(made: Any, start: Awaitable[Any]) -> None:
    """Wait for the start of what was made; when it fails or is no longer wanted, nobody else knows of its processes yet."""
    try:
        await start
    except BaseException:  # a cancellation as well: nobody else would end its processes
        made.kill()
        raise


async def _locate(handle: Any) -> dict[str, Any]:
    from actors.liveness import whereabouts

    return await handle.__ray_call__.remote(whereabouts)
