"""FAKE workers for tests of the loop: plain objects without Ray, vLLM or torch. Real ones are in
tests/ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.protocols import PublishedWeights, ScoreRequest, WeightManifest, WorkerFailure
from sppo_ray.types import (
    CriticBatch,
    Minibatch,
    Prompt,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    TokenCriticBatch,
    TokenRows,
    Trajectory,
    Verdict,
)


def prompt(index: int) -> Prompt:
    return Prompt(f"task/{index}", "task", f"{index}=", (1, 2, 3), (1, 2), str(index))


@dataclass
class FakeFleet:
    """Serves requests in the order of their `delays` (by prompt id, in event-loop ticks); stamps
    the served version.
    """

    delays: Mapping[str, int] = field(default_factory=dict)
    version: int = 0
    synced: list[int] = field(default_factory=list)
    restarts: int = 0
    log: list[str] = field(default_factory=list)

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Trajectory]]:
        how = "generate" if sampling.temperature else "generate greedily"
        self.log.append(f"{how} {requests[0].request_id.purpose} at version {self.version}")
        dispatched_at = self.version
        for request in sorted(requests, key=lambda r: self.delays.get(r.prompt_id, 0)):
            await asyncio.sleep(0)
            trajectory = Trajectory(
                request.request_id,
                request.prompt_id,
                (5, 0),
                (-0.1, -0.2),
                "stop",
                dispatched_at,
                self.version,
                "rollout-0",
                0.1,
            )
            yield [trajectory]

    async def sync(self, published: PublishedWeights) -> Any:
        from sppo_ray.rollout.views import FleetSync

        self.version = published.manifest.version
        self.synced.append(self.version)
        self.log.append(f"sync {self.version}")
        return FleetSync((), 0.0)

    def mark_failed(self, failure: WorkerFailure) -> None:
        self.log.append(f"distrust {failure.worker}")

    def view(self) -> list[Any]:
        return []


@dataclass
class FakeLearner:
    log: list[str]
    updates: list[Minibatch] = field(default_factory=list)

    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        self.updates.append(minibatch)
        self.log.append(f"update {minibatch.num_global_samples}")
        await asyncio.sleep(0)
        return {"loss": 0.5, "logprob_difference_mean": 0.01 * min(len(self.updates), 2)}

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        self.log.append("recompute")
        return minibatch

    async def publish(self, version: int) -> PublishedWeights:
        self.log.append(f"publish {version}")
        return PublishedWeights(
            WeightManifest(version, ("w",), ((1,),), (0,), "float32", 4, "d"), None, (1, 2), (-0.5,)
        )

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        self.log.append("save")
        (directory / "weights").write_text(str(len(self.updates)))
        return digest_folder(directory)


@dataclass
class FakeCritic:
    log: list[str]
    batches: list[Any] = field(default_factory=list)

    async def values(self, prompts: TokenRows) -> list[PromptValue]:
        self.log.append(f"values {len(prompts)} by critic {len(self.batches)}")
        await asyncio.sleep(0)
        return [PromptValue(0.0, 0.5, len(self.batches)) for _ in prompts]

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        self.batches.append(batch)
        await asyncio.sleep(0)
        return {"loss": 0.7}

    async def token_values(self, prompts: TokenRows, responses: TokenRows) -> list[np.ndarray]:
        self.log.append(f"token values {len(prompts)} by critic {len(self.batches)}")
        return [np.full(length, 0.5, dtype=np.float32) for length in responses.lengths]

    async def token_update(self, batch: TokenCriticBatch) -> Mapping[str, float]:
        self.log.append(f"token update {len(batch.responses)}")
        self.batches.append(batch)
        await asyncio.sleep(0)
        return {"loss": 0.7}

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        (directory / "weights").write_text(str(len(self.batches)))
        return digest_folder(directory)


@dataclass
class FakeReference:
    log: list[str]

    async def logprobs(self, minibatch: Minibatch) -> Minibatch:
        self.log.append("reference")
        return minibatch


@dataclass
class FakeRewardClient:
    """Reward 1 for even prompts; `slow` ones (by ground truth) take a while, `broken` ones cannot
    be judged.
    """

    slow: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    reward: float | None = None

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        return [await self.judge(request) for request in requests]

    async def judge(self, request: ScoreRequest) -> Verdict:
        if request.ground_truth in self.slow:
            await asyncio.sleep(0.02)
        if request.ground_truth in self.broken:
            return Verdict(None, "error: timeout after 10 s", 10.0)
        reward = self.reward if self.reward is not None else float(int(request.ground_truth) % 2 == 0)
        return Verdict(reward, "correct" if reward else "wrong", 0.0)
