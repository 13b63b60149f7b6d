"""How `weight_sync.transport: auto` is resolved, and what cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from sppo_ray.config import LearnerSettings, RolloutSettings, WeightSyncSettings
from sppo_ray.config.transport import check_transport, choose_transport


def shares(engine: float, rank: float, **rollout: Any) -> dict[str, Any]:
    return {
        "rollout": RolloutSettings(gpus_per_worker=engine, **rollout),
        "learner": LearnerSettings(model="m", gpus_per_rank=rank),
    }


@pytest.mark.parametrize(
    ("engine", "rank", "rollout", "chosen"),
    [
        (0, 0, {}, "flat"),
        (1, 1, {"workers": 4}, "nccl"),
        (2, 1, {"tensor_parallel_size": 2}, "nccl"),
        (1, 0.5, {}, "nccl"),  # a whole GPU is shared with nobody
        (0.5, 1, {}, "nccl"),
        (0.5, 1, {"workers": 2}, "flat"),  # two engines could meet on a GPU
        (0.5, 0.4, {}, "ipc"),
    ],
)
def test_auto_follows_the_gpu_shares(
    engine: float, rank: float, rollout: dict[str, Any], chosen: str
) -> None:
    assert choose_transport(WeightSyncSettings(), **shares(engine, rank, **rollout)) == chosen


def test_roles_in_turns_are_on_one_gpu() -> None:
    for engine, chosen in ((1, "ipc"), (0, "flat")):
        assert choose_transport(WeightSyncSettings(), **shares(engine, engine), in_turns=True) == chosen
    check_transport(WeightSyncSettings(transport="ipc"), **shares(1, 1), in_turns=True)
    with pytest.raises(ValueError, match="in cluster.layout colocated learner and engines share them"):
        check_transport(WeightSyncSettings(transport="nccl"), **shares(1, 1), in_turns=True)


def test_a_given_transport_wins_where_it_can_work() -> None:
    for name in ("flat", "nccl", "ipc"):
        on_cpus = shares(0, 0)
        assert choose_transport(WeightSyncSettings(transport=name), **on_cpus) == name
        check_transport(WeightSyncSettings(transport=name), **on_cpus)
    check_transport(WeightSyncSettings(transport="flat"), **shares(0.5, 0.4))


@pytest.mark.parametrize(
    ("transport", "engine", "rank", "message"),
    [
        ("nccl", 0.5, 0.4, "refuses two processes on one GPU.*set the transport to auto"),
        ("ipc", 1, 1, "have GPUs of their own: set the transport to auto"),
    ],
)
def test_a_transport_that_cannot_work_is_refused(
    transport: str, engine: float, rank: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_transport(WeightSyncSettings(transport=transport), **shares(engine, rank))
