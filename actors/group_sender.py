"""The learner's ranks as the sender of a broadcast, for the loop: `protocols.WeightSender`.

    announce(version)         every rank: digest of its chunks, probe --> PublishedWeights
    open_group(epoch, ...)    places of all devices --> seats --> stores --> all join together
    send(version, epoch)      every rank; the engines receive at the same time
    flat(version)             the same version as one buffer, for engines that it did not reach
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from actors.handles import Ranks, publish_flat
from actors.remote_calls import answer
from sppo_ray.protocols import Invitation, PublishedWeights, RolloutWorker, Seat, TransferFailed
from sppo_ray.rollout.seats import Assigned, broadcast_seats, group_sizes, shared_seats


class GroupSender:
    """`transport` is "nccl" or "ipc"; `timeout_s` limits forming a group and each transfer."""

    def __init__(self, ranks: Ranks, *, transport: str, chunk_bytes: int, timeout_s: float) -> None:
        self._ranks = ranks
        self._transport = transport
        self._chunk_bytes = chunk_bytes
        self._timeout_s = timeout_s

    async def announce(self, version: int) -> PublishedWeights:
        calls = [handle.announce.remote(version, self._chunk_bytes) for handle in self._ranks.handles]
        answers = await self._ranks.gather(f"publishing policy version {version}", calls)
        manifest, (probe_ids, probe_logprobs) = answers[0]
        return PublishedWeights(manifest, None, tuple(probe_ids), tuple(probe_logprobs), sender=self)

    async def open_group(self, epoch: int, workers: Sequence[RolloutWorker]) -> None:
        found = await asyncio.gather(*(worker.places() for worker in workers))
        places = {worker.name: list(devices) for worker, devices in zip(workers, found, strict=True)}
        if self._transport == "ipc":
            own = await self._ranks.all("naming its device", "transfer_place")
            seats = shared_seats(places, own)
        else:
            seats = broadcast_seats(places)
        sizes = group_sizes(seats)
        stores = {sender: await self._store(sender) for sender in sizes}
        joining: list[Awaitable[Any]] = [self._join(sender, epoch, size) for sender, size in sizes.items()]
        for worker in workers:
            own_seats = tuple(_seat(one, stores, sizes) for one in seats[worker.name])
            joining.append(worker.join_group(self._invitation(epoch, own_seats)))
        results = await asyncio.gather(*joining, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        # a lost process is the cause of the others' failures
        for failure in sorted(failures, key=lambda one: isinstance(one, TransferFailed)):
            raise failure

    async def send(self, version: int, epoch: int) -> None:
        calls = [
            handle.send_weights.remote(version, epoch, self._timeout_s) for handle in self._ranks.handles
        ]
        causes = await self._ranks.gather(f"sending policy version {version}", calls)
        if failed := [cause for cause in causes if cause]:
            raise TransferFailed(f"learner: {failed[0]}")

    async def flat(self, version: int) -> PublishedWeights | None:
        return await publish_flat(self._ranks, version, "flat_again")

    async def _store(self, sender: int) -> tuple[str, int]:
        handle = self._ranks.handles[sender]
        opening = handle.open_store.remote(self._timeout_s)
        return await answer(f"learner-{sender}", "opening a store", opening, self._timeout_s)

    async def _join(self, sender: int, epoch: int, size: int) -> None:
        handle, patience = self._ranks.handles[sender], 2 * self._timeout_s
        joining = handle.join_group.remote(epoch, self._transport, size, self._timeout_s)
        if failure := await answer(f"learner-{sender}", "forming a group for weights", joining, patience):
            raise TransferFailed(f"learner-{sender}: {failure}")

    def _invitation(self, epoch: int, seats: tuple[Seat, ...]) -> Invitation:
        return Invitation(epoch, self._transport, self._chunk_bytes, self._timeout_s, seats)


def _seat(assigned: Assigned, stores: dict[int, tuple[str, int]], sizes: dict[int, int]) -> Seat:
    host, port = stores[assigned.sender]
    return Seat(host, port, assigned.rank, sizes[assigned.sender])
