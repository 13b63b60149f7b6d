"""Assigns the devices of engines to the learner ranks that send weights to them.

    nccl:  learner-0 = rank 0; engine i's device d = rank 1 + sum of the devices of engines < i, + d
    ipc:   each device belongs to the learner rank on the same GPU, which is rank 0 of their group
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sppo_ray.protocols import TransferFailed


@dataclass(frozen=True, slots=True)
class Assigned:
    """Learner rank that sends to a device, and the device's rank in its group."""

    sender: int
    rank: int


def broadcast_seats(places: Mapping[str, Sequence[str]]) -> dict[str, list[Assigned]]:
    """Assign every device to learner rank 0. `places` are the devices of each engine."""
    seats: dict[str, list[Assigned]] = {}
    taken = 0
    for name, devices in places.items():
        seats[name] = [Assigned(0, 1 + taken + index) for index in range(len(devices))]
        taken += len(devices)
    return seats


def shared_seats(
    places: Mapping[str, Sequence[str]], learner_places: Sequence[str]
) -> dict[str, list[Assigned]]:
    """Assign each device to the first learner rank in the same place. Raises TransferFailed for a
    device without one.
    """
    taken: Counter[int] = Counter()
    seats: dict[str, list[Assigned]] = {}
    for name, devices in places.items():
        seats[name] = []
        for place in devices:
            if place not in learner_places:
                raise TransferFailed(f"{name} shares no GPU and no host with a learner rank")
            sender = learner_places.index(place)
            taken[sender] += 1
            seats[name].append(Assigned(sender, taken[sender]))
    return seats


def group_sizes(seats: Mapping[str, Sequence[Assigned]]) -> dict[int, int]:
    """Return the number of processes of each sender's group, the sender included."""
    counts = Counter(seat.sender for devices in seats.values() for seat in devices)
    return {sender: 1 + count for sender, count in counts.items()}
