"""Adapters from Ray handles to the Protocols of the loop, one per role.

    Protocol call --> concurrent calls on all ranks, with a deadline
        --> WorkerDied / WorkerTimeout with the worker's name

A group of ranks is one learner, critic or reference. A minibatch is already sharded; a critic batch
is sharded here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
from ray.actor import ActorHandle

from actors.liveness import ask_beside
from actors.remote_calls import PING_TIMEOUT_S, answer, awaited, kill, translated
from sppo_ray.config import RecoverySettings
from sppo_ray.data.packing import deal
from sppo_ray.file_digests import FileDigest
from sppo_ray.models.critic_output import CriticLoss, prompt_value
from sppo_ray.protocols import (
    Holds,
    Invitation,
    PublishedWeights,
    TransferFailed,
    WeightReceipt,
    WorkerDied,
    WorkerFailure,
    WorkerTimeout,
)
from sppo_ray.rollout.liveness import Kind, WatchedRole
from sppo_ray.rollout.tasks import end_tasks
from sppo_ray.types import (
    CriticBatch,
    Minibatch,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    TokenCriticBatch,
    TokenRows,
    Trajectory,
    TrajectoryBlock,
)

Announce = Callable[[int], Awaitable[PublishedWeights]]
T = TypeVar("T")
CLOSE_TIMEOUT_S = 5.0
# when a rank dies, another rank may report a broken connection before Ray reports the death
CULPRIT_GRACE_S = 3.0


class RayRolloutWorker:
    """One RolloutActor."""

    def __init__(self, name: str, handle: ActorHandle, *, pull_timeout_s: float) -> None:
        self.name = name
        self._handle = handle
        self._pull_timeout_s = pull_timeout_s

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]:
        # No deadline: the fleet monitors the stream's progress.
        prompt_ids = {str(request.request_id): request.prompt_id for request in requests}
        stream = self._handle.generate.options(num_returns="streaming").remote(list(requests), sampling)
        with translated(self.name, "generating"):
            async for reference in stream:
                block: TrajectoryBlock = await reference
                yield block.trajectories(prompt_ids)

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        pulling = self._handle.pull_weights.remote(published.manifest, published.handle, published.probe_ids)
        return await answer(
            self.name, f"pulling policy version {published.manifest.version}", pulling, self._pull_timeout_s
        )

    async def places(self) -> Sequence[str]:
        return await answer(
            self.name, "naming its devices", self._handle.places.remote(), self._pull_timeout_s
        )

    async def join_group(self, invitation: Invitation) -> None:
        # the engine itself gives up at the deadline of the group
        patience = invitation.timeout_s + PING_TIMEOUT_S
        joining = self._handle.join_group.remote(invitation)
        if failure := await answer(self.name, "joining a group for weights", joining, patience):
            raise TransferFailed(f"{self.name}: {failure}")

    async def receive_weights(self, published: PublishedWeights, epoch: int) -> None:
        manifest = published.manifest
        receiving = self._handle.receive_weights.remote(manifest, epoch)
        doing = f"receiving policy version {manifest.version}"
        if failure := await answer(self.name, doing, receiving, self._pull_timeout_s):
            raise TransferFailed(f"{self.name}: {failure}")

    async def serve_received(self, published: PublishedWeights) -> WeightReceipt:
        version = published.manifest.version
        serving = self._handle.serve_received.remote(version, published.probe_ids)
        return await answer(self.name, f"proving policy version {version}", serving, self._pull_timeout_s)

    async def ping(self) -> Mapping[str, Any]:
        return await answer(self.name, "a ping", self._handle.ping.remote(), PING_TIMEOUT_S)

    async def memory(self) -> Mapping[str, int]:
        return {
            self.name: await answer(
                self.name, "reporting its memory", self._handle.memory.remote(), PING_TIMEOUT_S
            )
        }

    async def abort(self) -> None:
        """Drop all unfinished requests. Their streams end. Raises WorkerFailure."""
        await answer(self.name, "dropping its requests", self._handle.abort_all.remote(), PING_TIMEOUT_S)

    async def sleep(self) -> None:
        await answer(self.name, "going to sleep", self._handle.sleep.remote(), self._pull_timeout_s)

    async def close(self) -> None:
        kill(self._handle)


class Ranks:
    """Calls all ranks of a role."""

    def __init__(self, role: str, handles: Sequence[ActorHandle], *, timeout_s: float) -> None:
        self.role = role
        self.handles = list(handles)
        self._timeout_s = timeout_s
        pings = {
            f"{role}-{rank}": partial(_ping, f"{role}-{rank}", handle)
            for rank, handle in enumerate(self.handles)
        }
        self._watched = WatchedRole(pings)

    async def setup(self, timeout_s: float) -> list[dict[str, Any]]:
        """Form the process group at rank 0's address."""
        address, port = await answer(
            f"{self.role}-0", "start-up", self.handles[0].address.remote(), timeout_s
        )
        joining = [handle.setup.remote(address, port) for handle in self.handles]
        return await self.gather("joining its group", joining, timeout_s, kind="opaque")

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        """Run until cancelled. Raises WorkerFailure when a rank is lost, also between calls."""
        await self._watched.watch(settings)

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        """Each rank's part of a checkpoint; returns the digests of all their files."""
        shares = await self.all("saving its checkpoint", "save", str(directory))
        return {name: digest for share in shares for name, digest in share.items()}

    async def hold(self, wanted: Holds) -> None:
        await self.all("moving its states", "hold", wanted)

    async def all(self, doing: str, method: str, *arguments: Any) -> list[Any]:
        """Call `method` with equal arguments on all ranks, for reading and writing files."""
        return await self.gather(
            doing, [getattr(handle, method).remote(*arguments) for handle in self.handles], kind="opaque"
        )

    async def gather(
        self,
        doing: str,
        references: Sequence[Awaitable[Any]],
        timeout_s: float | None = None,
        *,
        kind: Kind = "steady",
    ) -> list[Any]:
        """Return the ranks' answers. Raises WorkerFailure naming the rank that failed first."""
        names = [f"{self.role}-{rank}" for rank in range(len(references))]
        waits = [
            asyncio.ensure_future(answer(name, doing, reference, timeout_s or self._timeout_s))
            for name, reference in zip(names, references, strict=True)
        ]
        try:
            with self._watched.call(kind):
                return await asyncio.gather(*waits)
        except WorkerFailure as failure:
            raise await _root_failure(failure, waits) from None
        finally:
            await end_tasks(waits)

    async def memory(self) -> dict[str, int]:
        answers = await self.all("reporting its memory", "memory")
        return {f"{self.role}-{rank}": peak for rank, peak in enumerate(answers)}

    async def close(self) -> None:
        closing = [
            asyncio.wait_for(awaited(handle.close.remote()), CLOSE_TIMEOUT_S) for handle in self.handles
        ]
        await asyncio.gather(*closing, return_exceptions=True)
        self.kill()

    def kill(self) -> None:
        """Kill the actors. Ray sends SIGKILL to a process that has not ended within 5 s."""
        for handle in self.handles:
            kill(handle)


async def _ping(worker: str, handle: ActorHandle) -> Mapping[str, Any]:
    return await answer(worker, "a ping", ask_beside(handle), PING_TIMEOUT_S)


async def _root_failure(failure: WorkerFailure, waits: Sequence[asyncio.Future[Any]]) -> WorkerFailure:
    """Return the failure of the rank that died, if `failure` is only a consequence of it."""
    if isinstance(failure, (WorkerDied, WorkerTimeout)) or len(waits) == 1:
        return failure
    await asyncio.wait(waits, timeout=CULPRIT_GRACE_S)
    found = [wait.exception() for wait in waits if wait.done() and not wait.cancelled()]
    return next((error for error in found if isinstance(error, WorkerDied)), failure)


async def publish_flat(
    ranks: Ranks, version: int, method: Literal["flat_weights", "flat_again"]
) -> PublishedWeights | None:
    """Publish a version as one buffer. None = the ranks no longer have its weights."""
    # All ranks take part, because gathering is a collective under ZeRO-3. The buffer is a
    # separate Ray object: engines on a node share one copy, and the driver never loads it.
    calls = [getattr(handle, method).options(num_returns=3).remote(version) for handle in ranks.handles]
    manifests = ranks.gather(f"publishing policy version {version}", [call[0] for call in calls])
    manifest = (await manifests)[0]
    if manifest is None:
        return None
    probe_ids, probe_logprobs = await answer("learner-0", "probing its weights", calls[0][2], PING_TIMEOUT_S)
    return PublishedWeights(manifest, calls[0][1], tuple(probe_ids), tuple(probe_logprobs))


class LearnerGroup:
    """The learner's ranks. `announce` publishes a version that is broadcast; None = as one
    buffer.
    """

    def __init__(self, ranks: Ranks, *, tokenizer_path: str, announce: Announce | None = None) -> None:
        self._ranks = ranks
        self._tokenizer_path = tokenizer_path
        self._announce = announce

    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        calls = [
            handle.update.remote(shard, minibatch.num_global_tokens, minibatch.num_global_samples)
            for handle, shard in zip(self._ranks.handles, minibatch.ranks, strict=True)
        ]
        return (await self._ranks.gather("a policy update", calls))[0]

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        """Return the minibatch with `old_logprobs` computed from the learner's current weights."""
        return await _with_logprobs(self._ranks, minibatch, "old_logprobs")

    async def memory(self) -> Mapping[str, int]:
        return await self._ranks.memory()

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        await self._ranks.watch(settings)

    async def publish(self, version: int) -> PublishedWeights:
        if self._announce is not None:
            return await self._announce(version)
        published = await publish_flat(self._ranks, version, "flat_weights")
        assert published is not None
        return published

    async def hold(self, wanted: Holds) -> None:
        await self._ranks.hold(wanted)

    async def save(self, directory: Path) -> Mapping[str, FileDigest]:
        return await self._ranks.save(directory)

    async def load(self, directory: Path) -> None:
        await self._ranks.all("loading its checkpoint", "load", str(directory))

    async def export(self, directory: Path) -> None:
        await self._ranks.all("exporting the policy", "export", str(directory), self._tokenizer_path)

    async def close(self) -> None:
        await self._ranks.close()


class ReferenceGroup:
    """The frozen starting policy. Copy r computes the shard of learner rank r."""

    def __init__(self, handles: Sequence[ActorHandle], *, timeout_s: float) -> None:
        self._ranks = Ranks("reference", handles, timeout_s=timeout_s)

    async def ready(self, timeout_s: float) -> None:
        """Load the policy on each copy. Raises UserError when it does not load."""
        await self._ranks.gather(
            "start-up", [h.setup.remote() for h in self._ranks.handles], timeout_s, kind="opaque"
        )

    async def logprobs(self, minibatch: Minibatch) -> Minibatch:
        return await _with_logprobs(self._ranks, minibatch, "reference_logprobs")

    async def memory(self) -> Mapping[str, int]:
        return await self._ranks.memory()

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        await self._ranks.watch(settings)

    def kill(self) -> None:
        self._ranks.kill()

    async def close(self) -> None:
        self.kill()


async def _with_logprobs(
    ranks: Ranks, minibatch: Minibatch, whose: Literal["old_logprobs", "reference_logprobs"]
) -> Minibatch:
    """Return the minibatch with the ranks' log-probs as field `whose`, fillers included."""
    calls = [
        handle.logprobs.remote(shard) for handle, shard in zip(ranks.handles, minibatch.ranks, strict=True)
    ]
    answers = await ranks.gather(f"computing {whose}", calls)
    shards = tuple(
        tuple(replace(micro, **{whose: column}) for micro, column in zip(shard, per_micro, strict=True))
        for shard, per_micro in zip(minibatch.ranks, answers, strict=True)
    )
    return replace(minibatch, ranks=shards)


class CriticGroup:
    """The critic's ranks. Prompts are assigned to ranks in turn, responses by length.

    `critic_loss` is the loss of the ranks; it determines whether their outputs are logits.
    """

    def __init__(self, ranks: Ranks, *, tokenizer_path: str, critic_loss: CriticLoss = "bce") -> None:
        self._ranks = ranks
        self._tokenizer_path = tokenizer_path
        self._critic_loss = critic_loss
        self._version = 0

    async def values(self, prompts: TokenRows) -> list[PromptValue]:
        version = self._version
        shards = self._in_turn(len(prompts))
        calls = [
            handle.values.remote(prompts.pick(own))
            for handle, own in zip(self._ranks.handles, shards, strict=True)
        ]
        answers = await self._ranks.gather("valuing prompts", calls)
        outputs = _in_order(shards, answers)
        return [prompt_value(float(output), self._critic_loss, version) for output in outputs]

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        calls = [
            handle.update.remote(batch.prompts.pick(own), batch.rewards[own], len(batch.rewards))
            for handle, own in zip(self._ranks.handles, self._in_turn(len(batch.rewards)), strict=True)
        ]
        # Increment at submission: ranks work in the order of submission, so later calls of `values`
        # use the updated weights.
        self._version += 1
        return (await self._ranks.gather("a critic update", calls))[0]

    async def token_values(self, prompts: TokenRows, responses: TokenRows) -> list[np.ndarray]:
        shards = self._deal(prompts, responses)
        calls = [
            handle.token_values.remote(prompts.pick(own), responses.pick(own))
            for handle, own in zip(self._ranks.handles, shards, strict=True)
        ]
        answers = await self._ranks.gather("valuing response tokens", calls)
        rows = [
            np.split(answer, responses.lengths[own].cumsum()[:-1]) if own else []
            for own, answer in zip(shards, answers, strict=True)
        ]
        return _in_order(shards, rows)

    async def token_update(self, batch: TokenCriticBatch) -> Mapping[str, float]:
        prompts, responses = batch.prompts, batch.responses
        shards = self._deal(prompts, responses)
        masks = None
        counts = responses.lengths
        if batch.action_mask is not None:
            masks = np.split(batch.action_mask, responses.lengths.cumsum()[:-1])
            counts = np.array([mask.sum() for mask in masks])
        returns = np.split(batch.returns, counts.cumsum()[:-1])
        calls = [
            handle.token_update.remote(
                prompts.pick(own),
                responses.pick(own),
                np.concatenate([returns[index] for index in own]) if own else np.empty(0, np.float32),
                len(batch.returns),
                None if masks is None else np.concatenate([np.empty(0, bool), *(masks[i] for i in own)]),
            )
            for handle, own in zip(self._ranks.handles, shards, strict=True)
        ]
        self._version += 1
        return (await self._ranks.gather("a critic update", calls))[0]

    def _in_turn(self, rows: int) -> list[list[int]]:
        count = len(self._ranks.handles)
        return [list(range(rank, rows, count)) for rank in range(count)]

    def _deal(self, prompts: TokenRows, responses: TokenRows) -> list[list[int]]:
        return deal((prompts.lengths + responses.lengths).tolist(), len(self._ranks.handles))

    async def memory(self) -> Mapping[str, int]:
        return await self._ranks.memory()

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        await self._ranks.watch(settings)

    @property
    def version(self) -> int:
        return self._version

    def restore_version(self, version: int) -> None:
        self._version = version

    async def hold(self, wanted: Holds) -> None:
        await self._ranks.hold(wanted)

    async def save(self, directory: Path) -> Mapping[str, FileDigest]:
        return await self._ranks.save(directory)

    async def load(self, directory: Path) -> None:
        await self._ranks.all("loading its checkpoint", "load", str(directory))

    async def export(self, directory: Path) -> None:
        await self._ranks.all("exporting the critic", "export", str(directory), self._tokenizer_path)

    async def close(self) -> None:
        await self._ranks.close()


def _in_order(shards: Sequence[Sequence[int]], answers: Sequence[Iterable[T]]) -> list[T]:
    """Return the ranks' answers in the order of the samples."""
    found = {
        index: row
        for own, rows in zip(shards, answers, strict=True)
        for index, row in zip(own, rows, strict=True)
    }
    return [found[index] for index in range(len(found))]
