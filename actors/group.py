"""Ray handles as the workers that the loop knows: one adapter a role, deadlines and failures translated at this edge.

    Protocol call --> rank calls in parallel (asyncio) --> WorkerDied / WorkerTimeout with the worker's name

A group of ranks is one learner, critic or reference: a minibatch is already sharded, a critic batch is sharded here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.flat_layout import WeightsRefused
from actors.liveness import ask_beside
from sppo_ray.config import RecoverySettings
from sppo_ray.data.batching import deal
from sppo_ray.errors import UserError
from sppo_ray.models.critic_output import CriticLoss, prompt_value
from sppo_ray.trainer.interfaces import (
    PublishedWeights,
    ScoreRequest,
    WeightReceipt,
    WorkerDied,
    WorkerFailure,
    WorkerTimeout,
)
from sppo_ray.trainer.vigil import Kind, Vigil
from sppo_ray.types import (
    CriticBatch,
    Minibatch,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    TokenCriticBatch,
    Trajectory,
    Verdict,
)

T = TypeVar("T")
TokenIds = Sequence[tuple[int, ...]]
PING_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
SCORER_SLACK_S = 60.0
PROCESS_RESTART_S = 30.0  # replacing a killed verifier process
CULPRIT_GRACE_S = 3.0  # a rank whose partner died hears of it from its socket, maybe before Ray reports the death


async def answer(worker: str, doing: str, reference: Awaitable[Any], timeout_s: float) -> Any:
    """Await a remote call. Raises WorkerTimeout after `timeout_s`, and what `_translated` raises."""
    with _translated(worker, doing):
        try:
            return await asyncio.wait_for(_awaited(reference), timeout_s)
        except RayTaskError:
            raise  # a remote TimeoutError is one of these too, and no missed deadline
        except (TimeoutError, GetTimeoutError):
            raise WorkerTimeout(worker, f"gave no answer to {doing} in {timeout_s:.0f} s") from None


@contextmanager
def _translated(worker: str, doing: str) -> Iterator[None]:
    """Ray's errors as the trainer knows them: WorkerDied, or WorkerFailure with the remote error's text.

    A remote UserError comes through as itself, a WeightsRefused as one: not the engine but what the learner published is
    wrong then, and a new engine would not help.
    """
    try:
        yield
    except (RayActorError, ActorUnavailableError) as error:
        raise WorkerDied(worker, f"died while {doing}: {_reason(error)}") from None
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, WeightsRefused)):
            named = str(error.cause) if worker in str(error.cause) else f"{worker}: {error.cause}"
            raise UserError(named) from None
        raise WorkerFailure(worker, f"failed at {doing}: {error}") from None
    except RayError as error:  # an object or its owner lost with a node, an environment that cannot be made, ...
        raise WorkerFailure(worker, f"lost to Ray during {doing}: {type(error).__name__}: {_first_line(error)}") from None


async def _awaited(reference: Awaitable[Any]) -> Any:
    return await reference


def _reason(error: BaseException) -> str:
    """Of an actor that could not be made Ray's first line tells who, and the last line of the traceback tells why."""
    lines = str(error).strip().splitlines()
    return lines[-1] if len(lines) > 1 and "creation task" in lines[0] else _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def kill(handle: ActorHandle) -> None:
    ray.kill(handle, no_restart=True)


class RayRolloutWorker:
    """One RolloutActor."""

    def __init__(self, name: str, handle: ActorHandle, *, pull_timeout_s: float) -> None:
        self.name = name
        self._handle = handle
        self._pull_timeout_s = pull_timeout_s

    async def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingSettings) -> AsyncIterator[Trajectory]:
        # No deadline here: the fleet watches the stream's progress.
        stream = self._handle.generate_bursts.options(num_returns="streaming").remote(list(requests), sampling)
        with _translated(self.name, "generating"):
            async for reference in stream:
                for trajectory in await reference:
                    yield trajectory

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        pulling = self._handle.pull_weights.remote(published.manifest, published.handle, published.probe_ids)
        return await answer(self.name, f"pulling policy version {published.manifest.version}", pulling, self._pull_timeout_s)

    async def ping(self) -> Mapping[str, Any]:
        return await answer(self.name, "a ping", self._handle.ping.remote(), PING_TIMEOUT_S)

    async def memory(self) -> Mapping[str, int]:
        return {self.name: await answer(self.name, "telling its memory", self._handle.memory.remote(), PING_TIMEOUT_S)}

    async def abort(self) -> None:
        """Drop every unfinished request: their streams end. Raises WorkerFailure."""
        await answer(self.name, "dropping its requests", self._handle.abort_all.remote(), PING_TIMEOUT_S)

    async def close(self) -> None:
        kill(self._handle)


class Ranks:
    """The ranks of one role, called together."""

    def __init__(self, role: str, handles: Sequence[ActorHandle], *, timeout_s: float) -> None:
        self.role = role
        self.handles = list(handles)
        self._timeout_s = timeout_s
        pings = {f"{role}-{rank}": partial(_ping, f"{role}-{rank}", handle) for rank, handle in enumerate(self.handles)}
        self._vigil = Vigil(pings)

    async def setup(self, timeout_s: float) -> list[dict[str, Any]]:
        """Form the process group at rank 0's address."""
        address, port = await answer(f"{self.role}-0", "start-up", self.handles[0].address.remote(), timeout_s)
        joining = [handle.setup.remote(address, port) for handle in self.handles]
        return await self.gather("joining its group", joining, timeout_s, kind="opaque")

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        """Until it is cancelled. Raises WorkerFailure when a rank is lost, also while nobody waits for it."""
        await self._vigil.watch(settings)

    async def all(self, doing: str, method: str, *arguments: Any) -> list[Any]:
        """The same of every rank: reading and writing files, mostly."""
        return await self.gather(doing, [getattr(handle, method).remote(*arguments) for handle in self.handles], kind="opaque")

    async def gather(
        self, doing: str, references: Sequence[Awaitable[Any]], timeout_s: float | None = None, *, kind: Kind = "steady"
    ) -> list[Any]:
        """The ranks' answers. Raises WorkerFailure with the name of the rank that is to blame."""
        names = [f"{self.role}-{rank}" for rank in range(len(references))]
        waits = [
            asyncio.ensure_future(answer(name, doing, reference, timeout_s or self._timeout_s))
            for name, reference in zip(names, references, strict=True)
        ]
        try:
            with self._vigil.call(kind):
                return await asyncio.gather(*waits)
        except WorkerFailure as failure:
            raise await _culprit(failure, waits) from None
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def memory(self) -> dict[str, int]:
        answers = await self.all("telling its memory", "memory")
        return {f"{self.role}-{rank}": peak for rank, peak in enumerate(answers)}

    async def close(self) -> None:
        closing = [asyncio.wait_for(_awaited(handle.close.remote()), CLOSE_TIMEOUT_S) for handle in self.handles]
        await asyncio.gather(*closing, return_exceptions=True)
        self.kill()

    def kill(self) -> None:
        """At once. Ray sends SIGKILL to a process that does not go by itself within 5 s, a frozen one included."""
        for handle in self.handles:
            kill(handle)


async def _ping(worker: str, handle: ActorHandle) -> Mapping[str, Any]:
    return await answer(worker, "a ping", ask_beside(handle), PING_TIMEOUT_S)


async def _culprit(failure: WorkerFailure, waits: Sequence[asyncio.Future[Any]]) -> WorkerFailure:
    """The rank that died, where `failure` is only what it did to another one."""
    if isinstance(failure, (WorkerDied, WorkerTimeout)) or len(waits) == 1:
        return failure
    await asyncio.wait(waits, timeout=CULPRIT_GRACE_S)
    found = [wait.exception() for wait in waits if wait.done() and not wait.cancelled()]
    return next((error for error in found if isinstance(error, WorkerDied)), failure)


class LearnerGroup:
    """The learner's ranks."""

    def __init__(self, ranks: Ranks, *, tokenizer_path: str) -> None:
        self._ranks = ranks
        self._tokenizer_path = tokenizer_path

    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        calls = [
            handle.update.remote(shard, minibatch.num_global_tokens, minibatch.num_global_samples)
            for handle, shard in zip(self._ranks.handles, minibatch.ranks, strict=True)
        ]
        return (await self._ranks.gather("a policy update", calls))[0]

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        """The minibatch with pi_old taken from the learner's present weights; the engine's stay in rollout_logprobs."""
        return await _with_logprobs(self._ranks, minibatch, "old_logprobs")

    async def memory(self) -> Mapping[str, int]:
        return await self._ranks.memory()

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        await self._ranks.watch(settings)

    async def publish(self, version: int) -> PublishedWeights:
        # Every rank takes part (a ZeRO-3 gather is collective); the buffer becomes an object of its own, so that
        # engines on a node map one copy and the driver never holds it.
        calls = [handle.flat_weights.options(num_returns=3).remote(version) for handle in self._ranks.handles]
        manifests = self._ranks.gather(f"publishing policy version {version}", [call[0] for call in calls])
        manifest = (await manifests)[0]
        probe_ids, probe_logprobs = await answer("learner-0", "probing its weights", calls[0][2], PING_TIMEOUT_S)
        return PublishedWeights(manifest, calls[0][1], tuple(probe_ids), tuple(probe_logprobs))

    async def save(self, directory: Path) -> None:
        await self._ranks.all("saving its checkpoint", "save", str(directory))

    async def load(self, directory: Path) -> None:
        await self._ranks.all("loading its checkpoint", "load", str(directory))

    async def export(self, directory: Path) -> None:
        await self._ranks.all("exporting the policy", "export", str(directory), self._tokenizer_path)

    async def close(self) -> None:
        await self._ranks.close()


class ReferenceGroup:
    """The frozen starting policy: copy r serves the share of learner rank r."""

    def __init__(self, handles: Sequence[ActorHandle], *, timeout_s: float) -> None:
        self._ranks = Ranks("reference", handles, timeout_s=timeout_s)

    async def ready(self, timeout_s: float) -> None:
        """Load the policy on each copy. Raises UserError when it does not load."""
        await self._ranks.gather("start-up", [h.setup.remote() for h in self._ranks.handles], timeout_s, kind="opaque")

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


async def _with_logprobs(ranks: Ranks, minibatch: Minibatch, whose: Literal["old_logprobs", "reference_logprobs"]) -> Minibatch:
    """The minibatch with the ranks' log-probs as `whose`, fillers included."""
    calls = [handle.logprobs.remote(shard) for handle, shard in zip(ranks.handles, minibatch.ranks, strict=True)]
    answers = await ranks.gather(f"computing {whose}", calls)
    shards = tuple(
        tuple(replace(micro, **{whose: tuple(rows)}) for micro, rows in zip(shard, per_micro, strict=True))
        for shard, per_micro in zip(minibatch.ranks, answers, strict=True)
    )
    return replace(minibatch, ranks=shards)


class CriticGroup:
    """The critic's ranks. Prompts are dealt to ranks in turn, which balances any order of lengths; whole responses by length.

    `critic_loss` is what the ranks were made with: it says what their outputs mean.
    """

    def __init__(self, ranks: Ranks, *, tokenizer_path: str, critic_loss: CriticLoss = "bce") -> None:
        self._ranks = ranks
        self._tokenizer_path = tokenizer_path
        self._critic_loss = critic_loss
        self._version = 0

    async def values(self, token_ids: TokenIds) -> list[PromptValue]:
        version, count = self._version, len(self._ranks.handles)
        shards = [range(rank, len(token_ids), count) for rank in range(count)]
        calls = [handle.values.remote(_picked(token_ids, own)) for handle, own in zip(self._ranks.handles, shards, strict=True)]
        outputs = _in_order(shards, await self._ranks.gather("valuing prompts", calls))
        return [prompt_value(output, self._critic_loss, version) for output in outputs]

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        count = len(self._ranks.handles)
        calls = [
            handle.update.remote(list(batch.token_ids[rank::count]), list(batch.rewards[rank::count]), len(batch.rewards))
            for rank, handle in enumerate(self._ranks.handles)
        ]
        # Counted when it is submitted: the ranks work in the order of submission, so values asked for from here on see it.
        self._version += 1
        return (await self._ranks.gather("a critic update", calls))[0]

    async def token_values(self, prompt_ids: TokenIds, response_ids: TokenIds) -> list[tuple[float, ...]]:
        shards = self._deal(prompt_ids, response_ids)
        calls = [
            handle.token_values.remote(_picked(prompt_ids, own), _picked(response_ids, own))
            for handle, own in zip(self._ranks.handles, shards, strict=True)
        ]
        return _in_order(shards, await self._ranks.gather("valuing response tokens", calls))

    async def token_update(self, batch: TokenCriticBatch) -> Mapping[str, float]:
        prompts, responses, returns = batch.prompt_ids, batch.response_ids, batch.returns
        count = sum(len(ids) for ids in responses)
        calls = [
            handle.token_update.remote(_picked(prompts, own), _picked(responses, own), _picked(returns, own), count)
            for handle, own in zip(self._ranks.handles, self._deal(prompts, responses), strict=True)
        ]
        self._version += 1
        return (await self._ranks.gather("a critic update", calls))[0]

    def _deal(self, prompt_ids: TokenIds, response_ids: TokenIds) -> list[list[int]]:
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
        return deal(lengths, len(self._ranks.handles))

    async def memory(self) -> Mapping[str, int]:
        return await self._ranks.memory()

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        await self._ranks.watch(settings)

    @property
    def version(self) -> int:
        return self._version

    def restore_version(self, version: int) -> None:
        self._version = version

    async def save(self, directory: Path) -> None:
        await self._ranks.all("saving its checkpoint", "save", str(directory))

    async def load(self, directory: Path) -> None:
        await self._ranks.all("loading its checkpoint", "load", str(directory))

    async def export(self, directory: Path) -> None:
        await self._ranks.all("exporting the critic", "export", str(directory), self._tokenizer_path)

    async def close(self) -> None:
        await self._ranks.close()


class RayScorer:
    """One RewardActor; requests that come in in the same turn of the event loop travel together.

    The pool behind it owns the deadline a sample. The one here only finds an actor that is frozen, and so leaves room
    for everything that is outstanding to time out one after another.
    """

    def __init__(self, handle: ActorHandle, *, deadline_s: float) -> None:
        self._handle = handle
        self._vigil = Vigil({"reward": self._ping})
        self._deadline_s = deadline_s
        self._outstanding = 0
        self._waiting: list[tuple[ScoreRequest, asyncio.Future[Verdict]]] = []
        self._flushing: set[asyncio.Task[None]] = set()

    async def ready(self, timeout_s: float) -> None:
        """Wait until a verifier runs. Raises UserError when the reward function cannot be used."""
        await answer("reward", "start-up", self._handle.ping.remote(), timeout_s)

    async def score(self, request: ScoreRequest) -> Verdict:
        result: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            task = asyncio.ensure_future(self._flush())
            self._flushing.add(task)
            task.add_done_callback(self._flushing.discard)
        self._waiting.append((request, result))
        return await result

    async def _flush(self) -> None:
        await asyncio.sleep(0)  # let everything that arrived in this turn of the event loop join
        batch, self._waiting = self._waiting, []
        self._outstanding += len(batch)
        timeout_s = SCORER_SLACK_S + self._outstanding * (self._deadline_s + PROCESS_RESTART_S)
        try:
            call = self._handle.score_batch.remote([request for request, _ in batch])
            verdicts = await answer("reward", f"scoring {len(batch)} responses", call, timeout_s)
        except Exception as failure:  # boundary: whoever waits for a verdict gets the failure, whatever it is
            for _, result in batch:
                if not result.done():
                    result.set_exception(failure)
            return
        finally:
            self._outstanding -= len(batch)
        for (_, result), verdict in zip(batch, verdicts, strict=True):
            if not result.done():
                result.set_result(verdict)

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        """Until it is cancelled. Raises WorkerFailure when the actor is lost; its verifier processes are its own business."""
        await self._vigil.watch(settings)

    async def _ping(self) -> Mapping[str, Any]:
        counters = await answer("reward", "a ping", self._handle.ping.remote(), PING_TIMEOUT_S)
        return {"progress": counters["scored"]}

    async def memory(self) -> Mapping[str, int]:
        return {"reward": await answer("reward", "telling its memory", self._handle.memory.remote(), PING_TIMEOUT_S)}

    def kill(self) -> None:
        kill(self._handle)

    async def close(self) -> None:
        self.kill()


def _in_order(shards: Sequence[Sequence[int]], answers: Sequence[Sequence[T]]) -> list[T]:
    """The ranks' answers in the order of the samples that were dealt to them."""
    found = {index: row for own, rows in zip(shards, answers, strict=True) for index, row in zip(own, rows, strict=True)}
    return [found[index] for index in range(len(found))]


def _picked(rows: Sequence[T], indices: Iterable[int]) -> list[T]:
    return [rows[index] for index in indices]
