"""The phases of roles that share GPUs (`cluster.layout: colocated`), as a pure state machine.

    REST --> GENERATE --> POLICY --> CRITIC --> PUBLISH --> GENERATE ...
                             '------------------^

    phase      engines   learner   critic
    REST       -         -         -          nothing is resident: before a role starts, after a loss
    GENERATE   ALL       -         -          engines start, load a version, generate, evaluate
    POLICY     -         ALL       -          the learner starts, loads a checkpoint, updates
    CRITIC     -         -         ALL        the same for the critic
    PUBLISH    -         WEIGHTS   -          the learner publishes a version

Any fault leads to REST from any phase. A role that reads may bring its WEIGHTS in any phase: the
critic values prompts while the engines generate, the learner sends a version by `ipc`, and both
export at the end. Checkpoints are written from host memory, in GENERATE.

Two invariants hold in every phase and between any two moves: no KV cache is awake while optimizer
states are resident, and those of learner and critic are not resident at the same time.
"""  # noqa: W505 (a table)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Literal

from sppo_ray.protocols import Holds

Tenant = Literal["engines", "learner", "critic"]


class Phase(StrEnum):
    REST = "rest"
    GENERATE = "generate"
    POLICY = "policy"
    CRITIC = "critic"
    PUBLISH = "publish"


_TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.REST: frozenset({Phase.GENERATE, Phase.POLICY, Phase.CRITIC, Phase.PUBLISH}),
    Phase.GENERATE: frozenset({Phase.POLICY, Phase.REST}),
    Phase.POLICY: frozenset({Phase.CRITIC, Phase.PUBLISH, Phase.REST}),
    Phase.CRITIC: frozenset({Phase.PUBLISH, Phase.REST}),
    Phase.PUBLISH: frozenset({Phase.GENERATE, Phase.REST}),
}


class IllegalPhase(Exception):
    """A phase that must not follow the present one. It is a bug of the caller."""


@dataclass(frozen=True, slots=True)
class Residency:
    """The most that each tenant holds on a GPU."""

    engines: Holds = Holds.NOTHING
    learner: Holds = Holds.NOTHING
    critic: Holds = Holds.NOTHING

    @property
    def is_legal(self) -> bool:
        optimizers = (self.learner is Holds.ALL) + (self.critic is Holds.ALL)
        return optimizers == 0 or (optimizers == 1 and self.engines is not Holds.ALL)


NEEDS: dict[Phase, Residency] = {
    Phase.REST: Residency(),
    Phase.GENERATE: Residency(engines=Holds.ALL),
    Phase.POLICY: Residency(learner=Holds.ALL),
    Phase.CRITIC: Residency(critic=Holds.ALL),
    Phase.PUBLISH: Residency(learner=Holds.WEIGHTS),
}


@dataclass(frozen=True, slots=True)
class Move:
    """A tenant leaves the GPU or returns to it, as far as `to`."""

    tenant: Tenant
    to: Holds


def moves(before: Phase, after: Phase) -> tuple[Move, ...]:
    """Return the moves from one phase to the next: first those that free memory. Raises
    IllegalPhase.
    """
    if after not in _TRANSITIONS[before]:
        raise IllegalPhase(f"{after} after {before}")
    changes = _changes(NEEDS[before], NEEDS[after])
    return tuple(sorted(changes, key=lambda move: move.to - _held(before, move)))


def applied(residency: Residency, move: Move) -> Residency:
    return replace(residency, **{move.tenant: move.to})


def _changes(before: Residency, after: Residency) -> Iterator[Move]:
    for field in fields(Residency):
        if getattr(before, field.name) is not getattr(after, field.name):
            yield Move(field.name, getattr(after, field.name))  # type: ignore[arg-type]


def _held(phase: Phase, move: Move) -> Holds:
    return getattr(NEEDS[phase], move.tenant)
