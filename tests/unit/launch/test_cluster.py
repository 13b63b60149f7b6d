"""What `device: auto` means on a cluster is told, not guessed."""

from __future__ import annotations

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.launch.cluster import idle_gpus
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
