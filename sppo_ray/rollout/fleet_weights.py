"""Loads a version of the weights into every engine of a fleet and verifies it.

    sync(published)  a buffer:   every living member: pull --receipt--> verify --> SYNCED
                     broadcast:  other members than last time --> form a group, with a new epoch
                                 the learner sends, every living member receives at the same time
                                 the learner has sent --> serve --receipt--> verify --> SYNCED
                                 not reached --> pulls the same version as a buffer
    catch_up(member) a member that started later pulls a buffer of the published version. If the
                     learner's weights are newer, it waits for the next version.

The order within one engine is in `weight_sync.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sppo_ray.protocols import (
    PublishedWeights,
    RolloutWorker,
    TransferFailed,
    WeightReceipt,
    WeightSender,
    WorkerFailure,
)
from sppo_ray.rollout.health import Event, Health
from sppo_ray.rollout.member import Member, OnLost
from sppo_ray.rollout.roster import Roster
from sppo_ray.rollout.tasks import drop_task
from sppo_ray.rollout.views import FleetSync
from sppo_ray.rollout.weight_sync import ProbeTolerance, verify_receipt

MAX_ATTEMPTS = 2
"""Groups of the same members that may fail one after another; later versions then go by flat."""
Proof = tuple[WeightReceipt, float]


@dataclass(slots=True)
class Group:
    """The members that versions are broadcast to."""

    sender: WeightSender
    members: tuple[tuple[str, int], ...]  # (name, incarnation)
    epoch: int = 0
    is_open: bool = False
    broken_epoch: int = 0
    failures: int = 0  # in a row


class FleetWeights:
    """`tolerance`: None = receipts are not verified. `on_lost` is called for a worker that
    fails, `on_notice` with a text when a broadcast fails.
    """

    def __init__(
        self,
        roster: Roster,
        on_lost: OnLost,
        *,
        tolerance: ProbeTolerance | None,
        on_notice: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._roster = roster
        self._on_lost = on_lost
        self._tolerance = tolerance
        self._on_notice = on_notice
        self._clock = clock
        self._published: PublishedWeights | None = None
        self._lock = asyncio.Lock()
        self._group: Group | None = None
        self._epoch = 0

    async def sync(self, published: PublishedWeights) -> FleetSync:
        """Load and verify a version on every living worker."""
        async with self._lock:
            self._published = published
            members = self._roster.living()
            if published.sender is None:
                proofs = await self._pull_all(members, published)
            else:
                proofs = await self._broadcast(published.sender, members, published)
        return FleetSync(
            tuple(receipt for receipt, _ in proofs),
            max((difference for _, difference in proofs), default=0.0),
        )

    async def catch_up(self, member: Member) -> None:
        """Load the published version into a STALE member, or make it wait for the next version.
        Raises WorkerFailure of the member.
        """
        async with self._lock:
            published = self._published
            if member.health.state is not Health.STALE or published is None:
                return
            buffer, why = await self._buffer_or_reason(published)
            if buffer is None:
                member.waits_for_version = True
                self._on_notice(f"{member.name} waits for the next version: {why}")
            else:
                await self._pull(member, buffer)

    def forget(self) -> None:
        """Drop the published version. The results of pulls in progress are ignored."""
        self._published = None

    async def _broadcast(
        self, sender: WeightSender, members: Sequence[Member], published: PublishedWeights
    ) -> list[Proof]:
        incarnations = {member.name: member.incarnation for member in members}
        group = await self._open_group(sender, members) if members else None
        proofs: list[Proof] = []
        if group is not None:
            sending = asyncio.ensure_future(sender.send(published.manifest.version, group.epoch))
            try:
                receiving = [
                    self._receive_or_lose(member, published, group, sending) for member in members
                ]
                results = await asyncio.gather(*receiving)
                await self._sent(sending, group)
            finally:
                drop_task(sending)
            proofs = [result for result in results if result is not None]
        reached = {receipt.worker for receipt, _ in proofs}
        missed = [
            member
            for member in members
            if member.name not in reached
            and member.health.holds_weights
            and member.incarnation == incarnations[member.name]
        ]
        if missed and (buffer := await self._as_buffer(published)) is not None:
            proofs += await self._pull_all(missed, buffer)
        return proofs

    async def _open_group(self, sender: WeightSender, members: Sequence[Member]) -> Group | None:
        """Return the group of exactly these members, formed again when others were in it. None = it
        did not form.
        """
        named = tuple((member.name, member.incarnation) for member in members)
        if self._group is None or (self._group.sender, self._group.members) != (sender, named):
            self._group = Group(sender, named)
        group = self._group
        if group.is_open or group.failures >= MAX_ATTEMPTS:
            return group if group.is_open else None
        self._epoch += 1
        group.epoch = self._epoch
        workers = [member.worker for member in members if member.worker is not None]
        try:
            await sender.open_group(group.epoch, workers)
        except TransferFailed as failure:
            self._broke(group, failure)
        except WorkerFailure as failure:
            lost = [member for member in members if member.name == failure.worker]
            if not lost:
                raise
            self._on_lost(lost[0], failure, dict(named)[failure.worker])
        else:
            group.is_open = True
        return group if group.is_open else None

    async def _receive_or_lose(
        self, member: Member, published: PublishedWeights, group: Group, sending: asyncio.Future[None]
    ) -> Proof | None:
        assert member.worker is not None
        receiving = _received(member.worker, published, group.epoch, sending)
        try:
            return await self._load_or_lose(member, published, receiving)
        except TransferFailed as failure:
            self._broke(group, failure)
            return None

    async def _sent(self, sending: Awaitable[None], group: Group) -> None:
        try:
            await sending
        except TransferFailed as failure:
            self._broke(group, failure)
        else:
            group.failures = 0 if group.is_open else group.failures

    def _broke(self, group: Group, failure: TransferFailed) -> None:
        """Note the first failure of an epoch; the others follow from it."""
        if group.broken_epoch != group.epoch:
            group.broken_epoch = group.epoch
            group.failures += 1
            self._on_notice(f"weights go by flat: {failure}")
        group.is_open = False

    async def _as_buffer(self, published: PublishedWeights) -> PublishedWeights | None:
        """Return the version as a buffer; None = the learner's weights are newer."""
        if published.sender is None:
            return published
        return await published.sender.flat(published.manifest.version)

    async def _buffer_or_reason(self, published: PublishedWeights) -> tuple[PublishedWeights | None, str]:
        """Return the version as a buffer, or why there is none. The loop finds a lost learner by
        itself; the engine is not lost.
        """
        try:
            buffer = await self._as_buffer(published)
        except WorkerFailure as failure:
            return None, str(failure)
        return buffer, f"the learner's weights are newer than policy version {published.manifest.version}"

    async def _pull_all(self, members: Sequence[Member], published: PublishedWeights) -> list[Proof]:
        pulls = [self._pull_or_lose(member, published) for member in members]
        return [proof for proof in await asyncio.gather(*pulls) if proof is not None]

    async def _pull_or_lose(self, member: Member, published: PublishedWeights) -> Proof | None:
        assert member.worker is not None
        return await self._load_or_lose(member, published, member.worker.pull_weights(published))

    async def _load_or_lose(
        self, member: Member, published: PublishedWeights, work: Awaitable[WeightReceipt]
    ) -> Proof | None:
        incarnation = member.incarnation
        try:
            return await self._load(member, published, work)
        except WorkerFailure as failure:
            self._on_lost(member, failure, incarnation)
            return None

    async def _pull(self, member: Member, published: PublishedWeights) -> Proof:
        assert member.worker is not None
        return await self._load(member, published, member.worker.pull_weights(published))

    async def _load(
        self, member: Member, published: PublishedWeights, work: Awaitable[WeightReceipt]
    ) -> Proof:
        """Wait until a member has loaded a version, and verify the receipt. Raises WorkerFailure
        when that fails or the worker is lost, and TransferFailed.
        """
        incarnation = member.incarnation
        member.verified.clear()
        try:
            receipt = await member.unless_lost(work)
            difference = verify_receipt(published, receipt, self._tolerance) if self._tolerance else 0.0
            if member.incarnation != incarnation or member.health.is_gone:
                # A receipt of one incarnation must not verify the next one.
                raise WorkerFailure(
                    member.name, f"was lost while it pulled policy version {published.manifest.version}"
                )
            # else the version was abandoned meanwhile, and the worker stays STALE
            if self._published is not None:
                member.health = member.health.after(Event.SYNCED, version=receipt.version)
                member.waits_for_version = False
        finally:
            member.verified.set()  # the waiting tasks check the state next
        member.vitals.progressed(self._clock())
        return receipt, difference


async def _received(
    worker: RolloutWorker, published: PublishedWeights, epoch: int, sending: asyncio.Future[None]
) -> WeightReceipt:
    """Receive a version, and serve it when the learner has sent it to all. In layout colocated the
    learner has then left the GPU, and there is room for the engine's KV cache.
    """
    await worker.receive_weights(published, epoch)
    await asyncio.wait({sending})  # its failure is not this engine's
    return await worker.serve_received(published)
