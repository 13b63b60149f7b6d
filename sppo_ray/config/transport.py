"""Chooses the transport of weights, and refuses one that cannot work on the GPUs of a run."""

from __future__ import annotations

from typing import Literal

from sppo_ray.config.models import LearnerSettings
from sppo_ray.config.rollout import RolloutSettings, WeightSyncSettings

Transport = Literal["flat", "nccl", "ipc"]


def choose_transport(
    sync: WeightSyncSettings, *, rollout: RolloutSettings, learner: LearnerSettings, in_turns: bool = False
) -> Transport:
    """Return the transport of a run, with `auto` resolved. `in_turns`: layout colocated."""
    if sync.transport != "auto":
        return sync.transport
    if rollout.gpus_per_worker == 0:
        return "flat"
    if in_turns or _may_share(rollout, learner):
        return "ipc"
    return "nccl" if _are_apart(rollout, learner) else "flat"


def check_transport(
    sync: WeightSyncSettings, *, rollout: RolloutSettings, learner: LearnerSettings, in_turns: bool = False
) -> None:
    """Check that the transport fits layout and GPU shares. Raises ValueError with the remedy."""
    if in_turns and sync.transport == "nccl":
        raise ValueError(
            "weight_sync.transport is nccl, which refuses two processes on one GPU, and in "
            "cluster.layout colocated learner and engines share them: set the transport to auto"
        )
    if in_turns or rollout.gpus_per_worker == 0:
        return
    if sync.transport == "nccl" and not _are_apart(rollout, learner):
        raise ValueError(
            f"weight_sync.transport is nccl, which refuses two processes on one GPU, and with "
            f"rollout.gpus_per_worker {rollout.gpus_per_worker:g} and learner.gpus_per_rank "
            f"{learner.gpus_per_rank:g} they could share one: set the transport to auto, or "
            "rollout.gpus_per_worker to 1"
        )
    if sync.transport == "ipc" and not _may_share(rollout, learner):
        raise ValueError(
            f"weight_sync.transport is ipc, which works on one GPU, and with rollout.gpus_per_worker "
            f"{rollout.gpus_per_worker:g} and learner.gpus_per_rank {learner.gpus_per_rank:g} learner and "
            "engines have GPUs of their own: set the transport to auto"
        )


def _may_share(rollout: RolloutSettings, learner: LearnerSettings) -> bool:
    """Whether an engine and a learner rank can be on one GPU: Ray shares it by fractions only."""
    return rollout.gpus_per_worker < 1 and learner.gpus_per_rank < 1


def _are_apart(rollout: RolloutSettings, learner: LearnerSettings) -> bool:
    """Whether no two of learner and engines can be on one GPU."""
    return rollout.gpus_per_worker >= 1 or (learner.gpus_per_rank >= 1 and rollout.workers == 1)
