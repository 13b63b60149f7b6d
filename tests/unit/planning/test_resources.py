"""Infeasible resources are refused before any actor exists."""

from __future__ import annotations

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.planning.resources import Resources, bundles_of, require_feasible, resolve_device


def test_bundles_add_up_to_the_derived_numbers() -> None:
    config = load_config("quickstart", ["--rollout.workers=2", "--learner.ranks=2"])
    bundles = bundles_of(config)
    assert [b.role for b in bundles] == [
        "rollout-0",
        "rollout-1",
        "learner-0",
        "learner-1",
        "critic-0",
        "reward",
    ]
    # 2 * 0.5 + 2 * 0.5 + 0.25 + 0.1
    assert sum(b.cpus for b in bundles) == pytest.approx(2.35) == config.logical_cpus()


def test_too_little_in_total_and_too_little_on_one_node_have_different_errors() -> None:
    # 3 + 0.5 + 0.25 + 0.1 = 3.85
    config = load_config("quickstart", ["--rollout.cpus_per_worker=3"])
    with pytest.raises(UserError, match=r"needs 3.85 logical CPUs, the Ray cluster has 2 "):
        require_feasible(config, [Resources(2, 0)])
    with pytest.raises(
        UserError,
        match=r"rollout-0 needs 3 CPUs and 0 GPUs on one node, and no node has them \(the largest: 2 and 0\)",
    ):
        require_feasible(config, [Resources(2, 0), Resources(2, 0)])
    require_feasible(config, [Resources(4, 0)])


def test_auto_is_cuda_only_where_the_run_wants_gpus_and_the_cluster_has_them() -> None:
    wants = load_config("quickstart", ["--device=auto", "--rollout.gpus_per_worker=1"])
    wants_none = load_config("quickstart", ["--device=auto"])
    gpus, none = [Resources(8, 1)], [Resources(8, 0)]
    assert [resolve_device(c, n) for c in (wants, wants_none) for n in (gpus, none)] == [
        "cuda",
        "cpu",
        "cpu",
        "cpu",
    ]
