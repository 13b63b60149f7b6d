"""Infeasible resources are refused before any actor exists."""

from __future__ import annotations

import pytest

from sppo_ray.config.loading import load_config, parse_config
from sppo_ray.errors import UserError
from sppo_ray.planning.devices import parse_gpus
from sppo_ray.planning.placement import place
from sppo_ray.planning.resources import (
    Resources,
    bundles_of,
    fitted_cpus,
    learning_bundles_of,
    require_feasible,
    resolve_device,
)

COLOCATED = ("--cluster.layout=colocated", "--rollout.kv_cache_gib=24", "--data.minibatch_size=128")


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
    with pytest.raises(UserError, match=r"needs 3.85 logical CPUs, the Ray cluster has 2 ") as caught:
        require_feasible(config, [Resources(2, 0)])
    assert "--cluster.local_cpus=4 lets them share its cores" in str(caught.value)
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


@pytest.mark.parametrize("gpus", [1, 8, 32])
def test_colocated_roles_share_the_gpu_of_their_number(gpus: int) -> None:
    """Engine i, learner rank i and critic rank i are one bundle of one GPU."""
    counts = [f"--{key}={gpus}" for key in ("rollout.workers", "learner.ranks", "critic.ranks")]
    config = load_config("paper-1.5b", [*COLOCATED, *counts])
    bundles = bundles_of(config)
    assert [bundle.role for bundle in bundles] == [*(f"gpu-{i}" for i in range(gpus)), "reward"]
    for i, bundle in enumerate(bundles[:-1]):
        assert [actor.role for actor in bundle.actors] == [f"rollout-{i}", f"learner-{i}", f"critic-{i}"]
        assert bundle.gpus == 1
        assert [actor.gpus for actor in bundle.actors] == [0.33] * 3
        assert bundle.as_ray() == {"CPU": sum(actor.cpus for actor in bundle.actors), "GPU": 1}
    assert bundles[-1].actors == (bundles[-1],)
    places, left = place(bundles, parse_gpus(f"{gpus}xH100", cpus=200))
    assert not left
    where = {found.role: (found.node, found.gpus) for found in places}
    for i in range(gpus):
        assert where[f"rollout-{i}"] == where[f"learner-{i}"] == where[f"critic-{i}"] == (i // 8, (i % 8,))


def test_a_smaller_critic_is_in_the_first_bundles() -> None:
    counts = ["--rollout.workers=2", "--learner.ranks=2", "--critic.ranks=1"]
    first, second, _ = bundles_of(load_config("paper-1.5b", [*COLOCATED, *counts]))
    assert [actor.gpus for actor in first.actors] == [0.33] * 3
    assert [(actor.role, actor.gpus) for actor in second.actors] == [("rollout-1", 0.5), ("learner-1", 0.5)]
    learner_and_critic, learner = learning_bundles_of(load_config("paper-1.5b", [*COLOCATED, *counts]))
    assert [actor.gpus for actor in learner_and_critic.actors] == [0.5, 0.5]  # a replay
    assert (learner_and_critic.gpus, learner.gpus) == (1, 1)


MINIMAL = {
    "data": {"train": [{"type": "running-sum"}], "prompts_per_step": 8, "minibatch_size": 8},
    "learner": {"model": "m"},
    "critic": {"model": "m"},
    "rollout": {"max_response_tokens": 80},
}


def test_shares_that_nobody_set_are_fitted_to_the_machine() -> None:
    config = parse_config(MINIMAL)
    assert config.logical_cpus() == 4  # engine, learner, critic and reward, a CPU each
    fitted = fitted_cpus(config, 2)
    assert fitted.logical_cpus() == 2 and fitted.critic.cpus_per_rank == 0.5
    assert fitted_cpus(config, 4) is config
    # what is set stays: 1.5 + 3 x 0.16 (0.5 / 3, rounded down)
    set_ = parse_config(MINIMAL | {"rollout": {"max_response_tokens": 80, "cpus_per_worker": 1.5}})
    fitted = fitted_cpus(set_, 2)
    assert (fitted.rollout.cpus_per_worker, fitted.learner.cpus_per_rank) == (1.5, 0.16)
    assert fitted.logical_cpus() == 1.98
    # nothing left for the others: refused as before
    all_ = parse_config(MINIMAL | {"rollout": {"max_response_tokens": 80, "cpus_per_worker": 2}})
    assert fitted_cpus(all_, 2) is all_
def test_each_replica_of_a_reward_model_has_its_bundle() -> None:
    model = "{type: model, model: m, transform: {type: sigmoid}, replicas: 2, cpus_per_replica: 0.25}"
    config = load_config("quickstart", [f"--reward.function={model}"])
    bundles = bundles_of(config)
    assert [b.role for b in bundles[3:]] == ["reward-model-0-0", "reward-model-0-1", "reward"]
    # 0.5 + 0.5 + 0.25 + 2 * 0.25 + 0.1
    assert sum(b.cpus for b in bundles) == pytest.approx(1.85) == config.logical_cpus()
    on_gpu = f"--reward.function={model.replace('replicas: 2', 'replicas: 2, gpus_per_replica: 1')}"
    assert load_config("colocated-4gpu", [on_gpu]).logical_gpus() == 4 + 2
