"""What `device: auto` means on a cluster is told, not guessed."""

from __future__ import annotations

import socket

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.launch.cluster import idle_gpus, require_reachable
from sppo_ray.planning.resources import Resources

GPUS, NONE = [Resources(8, 4), Resources(8, 4)], [Resources(8, 0)]


def test_a_run_that_leaves_gpus_idle_says_so() -> None:
    note = idle_gpus(load_config("quickstart", ["--device=auto"]), GPUS)
    assert note is not None and note.startswith("the cluster has 8 GPU(s), but no role asks for one")
    assert "set rollout.gpus_per_worker" in note


@pytest.mark.parametrize(
    ("overrides", "nodes"),
    [
        (["--device=cpu"], GPUS),  # asked for
        (["--device=auto"], NONE),
        (["--device=auto", "--rollout.gpus_per_worker=1"], GPUS),
    ],
)
def test_other_runs_say_nothing(overrides: list[str], nodes: list[Resources]) -> None:
    assert idle_gpus(load_config("quickstart", overrides), nodes) is None


def test_a_dead_cluster_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = f"127.0.0.1:{server.getsockname()[1]}"
        require_reachable(alive)
    with pytest.raises(UserError, match=f"no Ray cluster answers at {alive} .*refused"):
        require_reachable(alive)
    for address in ("auto", "ray://head:10001"):  # Ray's own to find
        require_reachable(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://head:8265", "is a Ray job server, which takes jobs: .*sppo-ray submit.*HOST:6379"),
        ("head", "'head' is not an address of a Ray cluster: give HOST:PORT"),
        ("head:http", "is not an address of a Ray cluster"),
        ("no-such-host.invalid:6379", "no Ray cluster answers at no-such-host.invalid:6379"),
    ],
)
def test_an_address_that_cannot_be_joined_is_explained(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_reachable(address)
