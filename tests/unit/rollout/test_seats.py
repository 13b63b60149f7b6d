"""Which learner rank sends to which device of which engine, and the device's rank in the group."""

from __future__ import annotations

import pytest

from sppo_ray.protocols import TransferFailed
from sppo_ray.rollout.seats import Assigned, broadcast_seats, group_sizes, shared_seats


def test_all_devices_of_all_engines_have_their_own_rank() -> None:
    # learner-0 is rank 0; engine 0 has two devices, so engine 1 starts at 1 + 2
    seats = broadcast_seats({"rollout-0": ["g0", "g1"], "rollout-1": ["g2", "g3"], "rollout-2": ["g4"]})
    assert seats == {
        "rollout-0": [Assigned(0, 1), Assigned(0, 2)],
        "rollout-1": [Assigned(0, 3), Assigned(0, 4)],
        "rollout-2": [Assigned(0, 5)],
    }
    assert group_sizes(seats) == {0: 6}


def test_each_device_belongs_to_the_learner_rank_on_its_gpu() -> None:
    seats = shared_seats({"rollout-0": ["g1", "g0"], "rollout-1": ["g1"]}, ["g0", "g1"])
    assert seats == {"rollout-0": [Assigned(1, 1), Assigned(0, 1)], "rollout-1": [Assigned(1, 2)]}
    assert group_sizes(seats) == {0: 2, 1: 3}


def test_a_device_without_a_learner_rank_gets_no_seat() -> None:
    with pytest.raises(TransferFailed, match="rollout-1 shares no GPU"):
        shared_seats({"rollout-0": ["g0"], "rollout-1": ["g7"]}, ["g0", "g1"])
