"""Defines the workers of the training loop as Protocols, so that the trainer does not import Ray.

Every method is a coroutine or an async iterator. The adapter sets its deadline. A failure raises
`WorkerDied` or `WorkerTimeout`, which name the worker. `watch` never returns: it raises one of them
when a process of the role is lost, also between calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, cast

import numpy as np

from sppo_ray.config import RecoverySettings
from sppo_ray.environments.base import StepRequest, StepResult
from sppo_ray.file_digests import FileDigest
from sppo_ray.types import (
    CriticBatch,
    Minibatch,
    Prompt,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    ScoreRequest,
    TokenCriticBatch,
    TokenRows,
    Trajectory,
    Verdict,
)

RoleName = Literal["rollout", "learner", "critic", "reference", "reward", "environment", "fleet"]


class WorkerFailure(Exception):
    """A call on a worker failed. `worker` is its name, e.g. "rollout-1"."""

    def __init__(self, worker: str, what: str, *, role: RoleName | None = None) -> None:
        """`role`: None = the worker's name without its number."""
        super().__init__(f"{worker}: {what}")
        self.worker = worker
        self.what = what
        self.role = cast(RoleName, worker.partition("-")[0]) if role is None else role


class WorkerDied(WorkerFailure):
    """The worker's process has ended."""


class WorkerTimeout(WorkerFailure):
    """The worker did not answer before the deadline."""


class FleetExhausted(WorkerFailure):
    """No rollout worker can serve: all have used up their restarts, or cannot get the version."""

    def __init__(self, what: str) -> None:
        super().__init__("rollout fleet", what, role="fleet")


class TransferFailed(Exception):
    """A broadcast of weights did not reach a process, which is alive and can get them by flat."""


class Holds(IntEnum):
    """What a worker holds in the memory of a device that several roles share."""

    NOTHING = 0
    WEIGHTS = 1
    ALL = 2  # an engine: its KV cache too; a rank: optimizer states and gradients too


class PromptSource(Protocol):
    def cohort(self, index: int) -> Sequence[Prompt]:
        """Return the prompts of cohort `index`: a pure function of settings, seed and index."""
        ...


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Describes one version of the policy's weights, independently of the transport.

    Parameter i has name `names[i]` and shape `shapes[i]`. It starts at byte `offsets[i]` of the
    flat buffer. `digest` is the hash of the whole buffer, which the learner computes before it
    sends the buffer; for a broadcast it combines the digests of the chunks.
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
    """A version of the weights that engines can pull, with the expected log-probs of the probe."""

    manifest: WeightManifest
    handle: Any  # the buffer: a Ray ObjectRef; None = `sender` broadcasts the version
    probe_ids: tuple[int, ...]  # a fixed token sequence; length >= 2
    # learner's log p(probe_ids[t] | probe_ids[:t]) for t >= 1, temperature 1
    probe_logprobs: tuple[float, ...]
    sender: WeightSender | None = None  # None = engines pull `handle`


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one process in a group that weights are broadcast in. Rank 0 is the sender."""

    host: str  # of the group's store
    port: int
    rank: int
    size: int  # number of processes


@dataclass(frozen=True, slots=True)
class Invitation:
    """What an engine needs to join its groups. `seats` has one seat for each of its devices."""

    epoch: int  # number of the group; each change of the members starts a new one
    transport: str  # "nccl" | "ipc"
    chunk_bytes: int
    timeout_s: float  # for forming the group, and for each transfer
    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class WeightReceipt:
    """Proof that an engine serves a version."""

    worker: str
    version: int
    digest: str  # of the loaded bytes, computed after loading
    num_loaded: int  # parameters that were copied into the engine's model
    probe_logprobs: tuple[float, ...]  # of `probe_ids`, by the engine with the new weights
    seconds: float


class RolloutWorker(Protocol):
    name: str

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]:
        """Yield the trajectories in bursts, in the order in which they finish."""
        ...

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        """Load a version. Requests in flight use it from their next token on; their KV cache is
        recomputed.
        """
        ...

    async def places(self) -> Sequence[str]:
        """Return the GPU of each of its devices; on a CPU, the host."""
        ...

    async def join_group(self, invitation: Invitation) -> None:
        """Join the group of an epoch instead of an earlier one. Raises TransferFailed."""
        ...

    async def receive_weights(self, published: PublishedWeights, epoch: int) -> None:
        """Load a version while the learner broadcasts it, and generate nothing until it is served.
        Raises TransferFailed; the engine then has to load a whole version first.
        """
        ...

    async def serve_received(self, published: PublishedWeights) -> WeightReceipt:
        """Serve the version that was received last, and return the proof."""
        ...

    async def ping(self) -> Mapping[str, Any]: ...

    async def abort(self) -> None:
        """Drop all unfinished requests. Their streams end without their trajectories."""
        ...

    async def sleep(self) -> None:
        """Free the device: weights and KV cache are lost, and only a pull wakes the engine."""
        ...

    async def memory(self) -> Mapping[str, int]:
        """Return the peak bytes of each process since its start, {"rollout-0": bytes}: device
        memory on a GPU, else resident memory.
        """
        ...

    async def close(self) -> None: ...


class WeightSender(Protocol):
    """The learner's side of a broadcast of weights."""

    async def open_group(self, epoch: int, workers: Sequence[RolloutWorker]) -> None:
        """Form a group of the learner and `workers`. Raises TransferFailed, or WorkerFailure of a
        process that was lost meanwhile.
        """
        ...

    async def send(self, version: int, epoch: int) -> None:
        """Broadcast the published version to the group. Raises TransferFailed."""
        ...

    async def flat(self, version: int) -> PublishedWeights | None:
        """Publish the version again, as one buffer. None = the learner's weights are newer."""
        ...


class RoleWorker(Protocol):
    """The methods that all workers except engines share."""

    async def memory(self) -> Mapping[str, int]:
        """Return the peak bytes of each process since its start, {"learner-0": bytes}."""
        ...

    async def watch(self, settings: RecoverySettings) -> NoReturn: ...

    async def close(self) -> None: ...


class TrainingWorker(RoleWorker, Protocol):
    """The learner or the critic."""

    async def hold(self, wanted: Holds) -> None:
        """Move states to host memory or back, until the ranks hold `wanted` on their devices.

        Updates and `load` need ALL. Calls that only read bring the weights for their duration, and
        `save` writes states from where they are.
        """
        ...


class Learner(TrainingWorker, Protocol):
    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        """Do one optimizer step. Returns the metrics, averaged over the global minibatch."""
        ...

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        """Return the minibatch with log pi_old computed from the learner's current weights."""
        ...

    async def publish(self, version: int) -> PublishedWeights: ...

    async def save(self, directory: Path) -> Mapping[str, FileDigest]:
        """Returns the digests of the files that it wrote, by their path in `directory`."""
        ...

    async def load(self, directory: Path) -> None: ...

    async def export(self, directory: Path) -> None:
        """Write a plain Transformers checkpoint with its tokenizer."""
        ...


class Critic(TrainingWorker, Protocol):
    async def values(self, prompts: TokenRows) -> list[PromptValue]:
        """Return V(prompt) of each prompt, tokenized by the critic's tokenizer. A token critic
        returns its value at the last prompt token.
        """
        ...

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        """Do one optimizer step of a prompt critic."""
        ...

    async def token_values(self, prompts: TokenRows, responses: TokenRows) -> list[np.ndarray]:
        """Return a token critic's value before each response token, [response tokens] per sample:
        at the last prompt token and at all response tokens except the last.
        """
        ...

    async def token_update(self, batch: TokenCriticBatch) -> Mapping[str, float]:
        """Do one optimizer step of a token critic."""
        ...

    def restore_version(self, version: int) -> None:
        """Set the critic version after `load`."""
        ...

    async def save(self, directory: Path) -> Mapping[str, FileDigest]:
        """Returns the digests of the files that it wrote, by their path in `directory`."""
        ...

    async def load(self, directory: Path) -> None: ...

    async def export(self, directory: Path) -> None: ...


class Reference(RoleWorker, Protocol):
    """The frozen starting policy of a KL penalty."""

    async def logprobs(self, minibatch: Minibatch) -> Minibatch:
        """Return the minibatch with `reference_logprobs` set."""
        ...


class RewardClient(RoleWorker, Protocol):
    """Calls the reward actor, whose verifier processes score the responses."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """Return the verdicts in the order of the requests."""
        ...


class EnvironmentClient(RoleWorker, Protocol):
    """Calls the environment actor, whose processes hold the episodes."""

    async def step(self, request: StepRequest) -> StepResult:
        """Answer an action. An error of the environment is in the result."""
        ...

    def forget(self, episodes: Sequence[str]) -> None:
        """Drop episodes that have ended, without waiting."""
        ...
