"""The sections `recovery`, `logging` and `cluster`: what keeps a run going, what is seen of it, and the machines it is on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sppo_ray.settings import PositiveInt, Settings


class RecoverySettings(Settings):
    """What happens when a rank of the learner or the critic, the reference, the verifier or the last engine is lost: the run goes
    back to its newest whole checkpoint by itself, with training processes made anew."""

    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often in a row, without a step further than before; then the run ends with exit code 3. 0 = at the first one."""
    backoff_s: Annotated[float, Field(ge=0)] = 1.0
    """Before the first restart in a row; doubled before each further one, up to a minute."""
    probe_every_s: Annotated[float, Field(gt=0)] = 5.0
    """Each process of these is asked for a sign of life so often, whatever it does (engines: rollout.probe_every_s)."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """One that answers no probe for so long (frozen, swapped out, cut off) is taken for dead; while it reads or writes a
    checkpoint, twice as long."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """A rank that answers probes but works on one micro-batch for so long is taken for dead."""


class LoggingSettings(Settings):
    tensorboard: bool = True
    trajectories: bool = True
    progress: Literal["auto", "live", "plain", "off"] = "auto"

    @field_validator("progress", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: Any) -> Any:
        return "off" if given is False else given  # YAML reads an unquoted off as false


class ClusterSettings(Settings):
    address: str | None = None
    """A Ray cluster to join ("auto" or host:port). null = $RAY_ADDRESS when set (a Ray job), else a local one."""
    local_cpus: PositiveInt | None = None
    """Logical CPUs of the local cluster; null = all of the machine."""
    placement: Literal["pack", "spread"] = "pack"
    """pack: the actors on as few nodes as they fit on; ranks of a group exchange gradients. spread: on as many as there are, the
    largest first, e.g. one engine a node."""
    ready_timeout_s: Annotated[float, Field(gt=0)] = 600.0
