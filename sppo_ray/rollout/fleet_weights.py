"""Loads a version of the weights into every engine of a fleet and verifies it.

    sync(published) --> every living member: pull --receipt--> verify --> SYNCED
    catch_up(member) --> the same for a member that started later

The order within one engine is in `weight_sync.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sppo_ray.protocols import PublishedWeights, WeightReceipt, WorkerFailure
from sppo_ray.rollout.health import Event, Health
from sppo_ray.rollout.member import Member, OnLost
from sppo_ray.rollout.roster import Roster
from sppo_ray.rollout.views import FleetSync
from sppo_ray.rollout.weight_sync import ProbeTolerance, verify_receipt


class FleetWeights:
    """`tolerance`: None = receipts are not verified. `on_lost` is called for a worker that
    fails.
    """

    def __init__(
        self, roster: Roster, on_lost: OnLost, *, tolerance: ProbeTolerance | None, clock: Callable[[], float]
    ) -> None:
        self._roster = roster
        self._on_lost = on_lost
        self._tolerance = tolerance
        self._clock = clock
        self._published: PublishedWeights | None = None
        self._lock = asyncio.Lock()

    async def sync(self, published: PublishedWeights) -> FleetSync:
        """Load and verify a version on every living worker."""
        async with self._lock:
            self._published = published
            pulls = [self._pull_or_lose(member, published) for member in self._roster.living()]
            results = await asyncio.gather(*pulls)
        proofs = [result for result in results if result is not None]
        return FleetSync(
            tuple(receipt for receipt, _ in proofs),
            max((difference for _, difference in proofs), default=0.0),
        )

    async def catch_up(self, member: Member) -> None:
        """Load the published version into a STALE member. Raises WorkerFailure."""
        async with self._lock:
            if member.health.state is Health.STALE and self._published is not None:
                await self._pull(member, self._published)

    def forget(self) -> None:
        """Drop the published version. The results of pulls in progress are ignored."""
        self._published = None

    async def _pull_or_lose(
        self, member: Member, published: PublishedWeights
    ) -> tuple[WeightReceipt, float] | None:
        incarnation = member.incarnation
        try:
            return await self._pull(member, published)
        except WorkerFailure as failure:
            self._on_lost(member, failure, incarnation)
            return None

    async def _pull(self, member: Member, published: PublishedWeights) -> tuple[WeightReceipt, float]:
        """Load a version and verify the receipt. Raises WorkerFailure when that fails or the worker
        is lost.
        """
        assert member.worker is not None
        incarnation = member.incarnation
        member.verified.clear()
        try:
            receipt = await member.unless_lost(member.worker.pull_weights(published))
            difference = verify_receipt(published, receipt, self._tolerance) if self._tolerance else 0.0
            if member.incarnation != incarnation or member.health.is_gone:
                # A receipt of one incarnation must not verify the next one.
                raise WorkerFailure(
                    member.name, f"was lost while it pulled policy version {published.manifest.version}"
                )
            # else the version was abandoned meanwhile, and the worker stays STALE
            if published is self._published:
                member.health = member.health.after(Event.SYNCED, version=receipt.version)
        finally:
            member.verified.set()  # the waiting tasks check the state next
        member.vitals.progressed(self._clock())
        return receipt, difference
