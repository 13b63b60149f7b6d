"""Where the actors of a run lie on a described cluster, as Ray packs a placement group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sppo_ray.planning.devices import Cluster
from sppo_ray.planning.resources import EPSILON, Bundle


@dataclass(frozen=True, slots=True)
class Place:
    """The node of an actor and the GPUs of the node that it uses."""

    role: str  # rollout-0, learner-1, ...
    node: int
    gpus: tuple[int, ...]


def place(bundles: Sequence[Bundle], cluster: Cluster) -> tuple[tuple[Place, ...], tuple[Bundle, ...]]:
    """Return the places, and the bundles for which no node has room.

    The bundles of a role stay together where possible: each bundle goes to the first node with
    room. Whole GPUs are an actor's own; a fraction goes to the first GPU with room.
    """
    cpus = [node.cpus for node in cluster.nodes]
    free = [[1.0] * node.gpus for node in cluster.nodes]
    places, left = [], []
    for bundle in sorted(bundles, key=lambda bundle: -bundle.gpus):
        for number, gpus in enumerate(free):
            taken = _take(gpus, bundle.gpus)
            if taken is None or bundle.cpus > cpus[number] + EPSILON:
                continue
            cpus[number] -= bundle.cpus
            for gpu in taken:
                gpus[gpu] -= min(1.0, bundle.gpus)
            places += [Place(actor.role, number, taken) for actor in bundle.actors]
            break
        else:
            left.append(bundle)
    roles = [actor.role for bundle in bundles for actor in bundle.actors]
    order = {role: position for position, role in enumerate(roles)}
    return tuple(sorted(places, key=lambda found: order[found.role])), tuple(left)


def _take(free: Sequence[float], wanted: float) -> tuple[int, ...] | None:
    """Return the GPUs for `wanted`; None when there are not enough."""
    if wanted < 1:
        fits = [gpu for gpu, share in enumerate(free) if share >= wanted - EPSILON]
        return (fits[0],) if fits and wanted > 0 else () if wanted == 0 else None
    whole = [gpu for gpu, share in enumerate(free) if share >= 1 - EPSILON]
    return tuple(whole[: int(wanted)]) if len(whole) >= wanted else None
