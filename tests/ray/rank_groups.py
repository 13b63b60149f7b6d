"""Reusable processes for the ranks of groups, so tests do not wait for their start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sppo_ray.types import Minibatch, TokenRows


class RankHost:
    """A process for one rank after another. It has the verbs that the adapters of `actors.handles`
    call.
    """

    def start(self, rank_class: type, *positions: Any, **arguments: Any) -> None:
        self.rank = rank_class(*positions, **arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.rank, method)(*arguments)

    def setup(self, *arguments: Any) -> Any:
        return self.rank.setup(*arguments)

    def values(self, *arguments: Any) -> Any:
        return self.rank.values(*arguments)

    def token_values(self, *arguments: Any) -> Any:
        return self.rank.token_values(*arguments)

    def token_update(self, *arguments: Any) -> Any:
        return self.rank.token_update(*arguments)

    def logprobs(self, *arguments: Any) -> Any:
        return self.rank.logprobs(*arguments)

    def memory(self) -> Any:
        return self.rank.memory()


class Group:
    """The ranks of one learner or critic, called together."""

    def __init__(self, ray: Any, hosts: Sequence[Any], rank_class: type, arguments: dict[str, Any]) -> None:
        self.ray, self.hosts = ray, hosts
        ray.get(
            [host.start.remote(rank_class, rank, len(hosts), **arguments) for rank, host in enumerate(hosts)],
            timeout=120,
        )
        self.all("setup", *ray.get(hosts[0].call.remote("address"), timeout=60))

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        calls = [host.call.remote(method, *own) for host, own in zip(self.hosts, arguments, strict=True)]
        return self.ray.get(calls, timeout=120)

    def all(self, method: str, *arguments: Any) -> list[Any]:
        return self.each(method, [arguments] * len(self.hosts))

    def update_policy(self, batch: Minibatch) -> list[dict[str, float]]:
        return self.each(
            "update", [(shard, batch.num_global_tokens, batch.num_global_samples) for shard in batch.ranks]
        )

    def update_critic(
        self, prompts: Sequence[tuple[int, ...]], rewards: Sequence[float]
    ) -> list[dict[str, float]]:
        count, wanted = len(self.hosts), np.array(rewards, dtype=np.float32)
        shards = [
            (TokenRows.of(prompts[rank::count]), wanted[rank::count], len(prompts)) for rank in range(count)
        ]
        return self.each("update", shards)

    def weights(self) -> np.ndarray:
        return self.all("flat_weights", 1)[0][1].view(np.float32)
