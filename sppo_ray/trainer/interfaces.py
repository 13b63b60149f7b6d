"""What the loop needs of its workers, as Protocols: the trainer knows no Ray, the actors know no loop.

Every method is a coroutine (or an async iterator) with a deadline of its own inside the adapter; a failure raises
`WorkerDied` or `WorkerTimeout` naming the worker. `watch` has no end: it raises them when a process of the role is lost,
also while nobody waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from sppo_ray.config import RecoverySettings
from sppo_ray.types import (
    CriticBatch,
    Minibatch,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    ScoreRequest,
    TokenCriticBatch,
    Trajectory,
    Verdict,
)


class WorkerFailure(Exception):
    """A worker could not do what was asked. `worker` names it, e.g. "rollout-1"."""

    def __init__(self, worker: str, what: str) -> None:
        super().__init__(f"{worker}: {what}")
        self.worker = worker


class WorkerDied(WorkerFailure):
    """Its process is gone."""


class WorkerTimeout(WorkerFailure):
    """It did not answer before the deadline."""


class FleetExhausted(WorkerFailure):
    """Every rollout worker has used up its restarts."""


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """What one version of the policy's weights is, told apart from how its bytes travel.

    `names`, `shapes` and `offsets` describe the flat buffer: parameter i is `shapes[i]` of `dtype`, starting at byte
    `offsets[i]`. `digest` is the hash of the whole buffer, taken by the learner before it is sent.
    """

    version: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    dtype: str  # "float32" | "bfloat16" | "float16"
    num_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """A version that is ready to be pulled: its manifest, the transport's handle, the probe's expected log-probs."""

    manifest: WeightManifest
    handle: Any  # transport's own: a Ray ObjectRef for the flat backend
    probe_ids: tuple[int, ...]  # a fixed token sequence; length >= 2
    probe_logprobs: tuple[float, ...]  # learner's log p(probe_ids[t] | probe_ids[:t]) for t >= 1, temperature 1


@dataclass(frozen=True, slots=True)
class WeightReceipt:
    """An engine's proof that it serves a version."""

    worker: str
    version: int
    digest: str  # of the bytes it loaded, taken AFTER loading
    num_loaded: int  # parameters that reached the engine's model
    probe_logprobs: tuple[float, ...]  # the engine's own for `probe_ids`, with the new weights
    seconds: float


class RolloutWorker(Protocol):
    name: str

    def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingSettings) -> AsyncIterator[Trajectory]:
        """Yield each request's trajectory as it finishes, in the order in which they finish."""
        ...

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        """Load a version; requests in flight go on under it from their next token, with their KV cache recomputed."""
        ...

    async def ping(self) -> Mapping[str, Any]: ...

    async def abort(self) -> None:
        """Drop every unfinished request: their streams end without them."""
        ...

    async def memory(self) -> Mapping[str, int]:
        """Peak bytes of each of its processes since they started, {"rollout-0": bytes}; on a GPU the device's, else resident."""
        ...

    async def close(self) -> None: ...


class Learner(Protocol):
    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        """Forward, backward, one optimizer step. Returns the metrics averaged over the global minibatch."""
        ...

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        """The minibatch with pi_old taken from the learner's present weights."""
        ...

    async def memory(self) -> Mapping[str, int]: ...

    async def watch(self, settings: RecoverySettings) -> NoReturn: ...

    async def publish(self, version: int) -> PublishedWeights: ...

    async def save(self, directory: Path) -> None: ...

    async def load(self, directory: Path) -> None: ...

    async def export(self, directory: Path) -> None:
        """A plain Transformers checkpoint with its tokenizer."""
        ...

    async def close(self) -> None: ...


class Critic(Protocol):
    async def values(self, token_ids: Sequence[tuple[int, ...]]) -> list[PromptValue]:
        """V(prompt) of each prompt, by the critic's tokenizer. A token critic's is its value at the last prompt token."""
        ...

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        """Prompt critic only."""
        ...

    async def token_values(
        self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]
    ) -> list[tuple[float, ...]]:
        """Token critic only: the value before each response token, i.e. at the last prompt token and at all response tokens
        but the last."""
        ...

    async def token_update(self, batch: TokenCriticBatch) -> Mapping[str, float]:
        """Token critic only."""
        ...

    async def memory(self) -> Mapping[str, int]: ...

    async def watch(self, settings: RecoverySettings) -> NoReturn: ...

    def restore_version(self, version: int) -> None:
        """Count critic versions from `version` on, after `load`."""
        ...

    async def save(self, directory: Path) -> None: ...

    async def load(self, directory: Path) -> None: ...

    async def export(self, directory: Path) -> None: ...

    async def close(self) -> None: ...


class Reference(Protocol):
    """The frozen starting policy of a KL penalty."""

    async def logprobs(self, minibatch: Minibatch) -> Minibatch:
        """The minibatch with `reference_logprobs` filled in."""
        ...

    async def memory(self) -> Mapping[str, int]: ...

    async def watch(self, settings: RecoverySettings) -> NoReturn: ...

    async def close(self) -> None: ...


class Scorer(Protocol):
    async def score(self, request: ScoreRequest) -> Verdict: ...

    async def memory(self) -> Mapping[str, int]: ...

    async def watch(self, settings: RecoverySettings) -> NoReturn: ...

    async def close(self) -> None: ...
