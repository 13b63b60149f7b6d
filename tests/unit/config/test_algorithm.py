"""Refused settings of algorithms: the message names the field, the algorithm and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from sppo_ray.algorithms import ALGORITHMS
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError

GROUPS = ["data.samples_per_prompt=8", "data.prompts_per_step=32"]


def quickstart(*overrides: str) -> RunConfig:
    return load_config("quickstart", list(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        quickstart(*overrides)
    return str(caught.value)


# ----------------------------------------------------------------------------------------- accepted


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_is_chosen_by_its_type(name: str) -> None:
    spec = ALGORITHMS[name]
    config = quickstart(f"algorithm.type={name}", *(GROUPS if spec.needs == "group" else []))
    assert type(config.algorithm) is spec.settings
    assert config.spec is spec
    assert spec.settings.model_fields["type"].default == name


@pytest.mark.parametrize(
    ("name", "needs", "critic", "greedy"),
    [
        ("sppo", "sample", "prompt", False),
        ("ppo", "step", "token", False),
        ("sao", "step", "token", False),
        ("spo", "step", "none", False),
        ("grpo", "group", "none", False),
        ("rloo", "group", "none", False),
        ("remax", "sample", "none", True),
        ("reinforce", "step", "none", False),
        ("reinforce++", "step", "none", False),
    ],
)
def test_what_each_algorithm_asks_for(name: str, needs: str, critic: str, greedy: bool) -> None:
    spec = ALGORITHMS[name]
    assert (spec.needs, spec.critic, spec.greedy_baseline) == (needs, critic, greedy)
    assert (spec.returns is not None) == (critic == "token")


def test_the_shared_settings_belong_to_every_algorithm() -> None:
    shared = [
        "algorithm.loss_aggregation=constant",
        "algorithm.kl.coefficient=0.01",
        "algorithm.kl.estimator=k2",
        "algorithm.entropy_coefficient=0.001",
        "algorithm.overlong.buffer_tokens=20",
        "algorithm.loss=null",
        "algorithm.clip_high=0.28",
    ]
    for name, spec in ALGORITHMS.items():
        # what a critic says of each token would be lost, and a loss form has no ratio to clip
        ratio = "token" if spec.critic == "token" else "sequence"
        own = [
            f"algorithm.type={name}",
            f"algorithm.ratio={ratio}",
            *(GROUPS if spec.needs == "group" else []),
        ]
        algorithm: Any = quickstart(*own, *shared).algorithm
        assert (algorithm.ratio, algorithm.loss_aggregation, algorithm.clip_high) == (ratio, "constant", 0.28)
        assert (algorithm.kl.coefficient, algorithm.kl.estimator, algorithm.overlong.buffer_tokens) == (
            0.01,
            "k2",
            20,
        )


def test_a_step_of_a_dynamic_method_may_take_several_draws() -> None:
    assert quickstart("algorithm.type=grpo", *GROUPS).prompt_rounds == 1
    assert (
        quickstart("algorithm.type=grpo", "algorithm.dynamic_sampling.max_rounds=4", *GROUPS).prompt_rounds
        == 4
    )


# ------------------------------------------------------------------------------------------ refused


def test_an_unknown_algorithm() -> None:
    told = refusal("algorithm.type=gpro")
    assert "algorithm.type: there is no 'gpro'" in told and "grpo" in told
    assert all(name in told for name in ALGORITHMS)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["algorithm.type=sppo", "algorithm.lam=0.95"], ["algorithm", "lam", "ppo"]),
        (["algorithm.type=ppo", "algorithm.alpha=1.5"], ["algorithm", "alpha", "sao"]),
        (["algorithm.type=grpo", "algorithm.tracker.rho=0.9", *GROUPS], ["tracker", "sppo and spo"]),
        (["algorithm.type=grpo", "algorithm.critic_loss=bce", *GROUPS], ["algorithm", "critic_loss", "ppo"]),
        (
            ["algorithm.type=reinforce", "algorithm.normalize_std=true"],
            ["algorithm", "normalize_std", "grpo"],
        ),
        (
            ["algorithm.type=remax", "algorithm.dynamic_sampling.max_rounds=2"],
            ["algorithm", "dynamic_sampling", "grpo", "rloo"],
        ),
    ],
)
def test_a_setting_of_another_algorithm_names_its_owner(overrides: list[str], told: list[str]) -> None:
    message = refusal(*overrides)
    assert all(part in message for part in told), message


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_one_sample_for_a_group_method(name: str) -> None:
    message = refusal(f"algorithm.type={name}")
    assert "data.samples_per_prompt is 1" in message and name in message and "set it to 2 or more" in message


def test_an_evaluation_of_several_greedy_samples() -> None:
    message = refusal("eval.temperature=0", "eval.samples_per_prompt=4")
    assert "eval: at temperature 0 the 4 samples of a prompt are one and the same response" in message


def test_a_minibatch_that_cuts_groups_apart() -> None:
    message = refusal(
        "algorithm.type=grpo",
        "data.samples_per_prompt=8",
        "data.prompts_per_step=32",
        "data.minibatch_size=4",
    )
    assert (
        "data.minibatch_size 4 cuts groups of data.samples_per_prompt 8 apart: make it a multiple" in message
    )


@pytest.mark.parametrize("name", ["sppo", "ppo", "remax", "reinforce"])
def test_methods_with_a_baseline_of_their_own_take_any_number_of_samples(name: str) -> None:
    """One is what they are for; several is the ablation."""
    assert quickstart(f"algorithm.type={name}", *GROUPS).data.samples_per_prompt == 8


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["algorithm.type=grpo", *GROUPS], "needs whole groups"),
        (["algorithm.type=ppo"], "needs all samples of a step"),
        (["algorithm.type=reinforce"], "needs all samples of a step"),
        (["algorithm.type=spo"], "needs all samples of a step"),
    ],
)
def test_finishing_order_for_a_method_that_waits(overrides: list[str], why: str) -> None:
    message = refusal("loop.minibatch_order=finish", *overrides)
    assert "loop.minibatch_order finish" in message and why in message and "set it to dispatch" in message
    assert quickstart("loop.minibatch_order=finish", "algorithm.type=remax").loop.minibatch_order == "finish"


@pytest.mark.parametrize(
    "overrides", [["algorithm.type=sppo"], ["algorithm.type=ppo", "algorithm.critic_loss=bce"]]
)
def test_a_reward_range_that_cross_entropy_cannot_take(overrides: list[str]) -> None:
    reward = "reward.function={type: custom, function: 'my.module:f', range: [-1, 1]}"
    message = refusal(*overrides, reward)
    assert "reward.function.range is [-1, 1]" in message and "rescale" in message
    assert "tracker of spo keeps rates" in refusal("algorithm.type=spo", reward)
    assert quickstart("algorithm.type=ppo", reward).reward.range == (-1.0, 1.0)
    assert quickstart("algorithm.type=reinforce", reward).reward.range == (-1.0, 1.0)


def test_a_step_of_one_sample_for_reinforce() -> None:
    one = ["data.prompts_per_step=1", "data.minibatch_size=1", "data.samples_per_prompt=1"]
    message = refusal("algorithm.type=reinforce", *one)
    assert "a step of one sample is its own mean" in message and "raise data.prompts_per_step" in message
    assert quickstart("algorithm.type=sppo", *one).data.samples_per_step == 1
    # spo subtracts the mean of the step when it scales
    assert "or set normalize to false" in refusal("algorithm.type=spo", *one)
    assert "or set center to false" in refusal("algorithm.center=true", *one)
    assert "or set center to false" in refusal("algorithm.center=negative", *one)
    assert "negative" in refusal("algorithm.center=positive")
    assert "and sppo needs all samples" in refusal("algorithm.center=true", "loop.minibatch_order=finish")
    raw = quickstart("algorithm.type=spo", "algorithm.normalize=false", *one)
    assert raw.data.samples_per_step == 1


def test_an_overlong_buffer_beyond_the_response() -> None:
    message = refusal("algorithm.overlong.buffer_tokens=81")
    assert "algorithm.overlong.buffer_tokens 81 exceeds rollout.max_response_tokens 80: lower it" in message


def test_a_curriculum_without_a_prompt_critic() -> None:
    message = refusal("algorithm.type=reinforce", "data.curriculum.candidates=4")
    assert (
        "data.curriculum" in message
        and "reinforce has none" in message
        and "set algorithm.type to sppo or spo" in message
    )
    assert quickstart("algorithm.type=spo", "data.curriculum.candidates=4").prompt_rounds == 4


def test_a_critic_suffix_needs_a_prompt_critic_and_a_field_of_the_row() -> None:
    assert quickstart("data.critic_suffix='={ground_truth}'").data.critic_suffix == "={ground_truth}"
    message = refusal("algorithm.type=grpo", "data.critic_suffix='={ground_truth}'", *GROUPS)
    assert "data.critic_suffix" in message and "grpo has none" in message and "sppo" in message
    message = refusal("data.critic_suffix='the answer is {x}'")
    assert "names no field of the row: write {ground_truth} or {extra.NAME}" in message


def test_frozen_parameters_of_the_critic() -> None:
    assert quickstart("critic.frozen_parameters=self_attn").critic.frozen_parameters == "self_attn"
    message = refusal("critic.frozen_parameters='(attn'")
    assert "critic.frozen_parameters" in message and "is not a regular expression" in message
    message = refusal("critic.frozen_parameters=attn", "critic.lora.rank=4")
    assert "lora already freezes the whole model" in message and "frozen_parameters to null" in message


@pytest.mark.parametrize(
    "form", ["algorithm.type=sao", "algorithm.loss.type=dis", "algorithm.loss.type=cispo"]
)
def test_a_clip_range_beside_a_loss_form(form: str) -> None:
    told = refusal(form, "algorithm.clip_high=0.28")
    assert "clip_high belongs to PPO's clip" in told and "set clip_high to 0.2, or loss to null" in told
    assert quickstart(form, "algorithm.clip_low=0.2", "algorithm.clip_high=0.2").algorithm.loss is not None


def test_an_importance_cap_without_the_learners_log_probs() -> None:
    assert "set old_logprobs to learner" in refusal("algorithm.importance_cap=2")


@pytest.mark.parametrize(
    "override",
    [
        "algorithm.clip_low=1",
        "algorithm.clip_high=0",
        "algorithm.kl.coefficient=-0.1",
        "algorithm.kl.estimator=k4",
        "algorithm.ratio=word",
        "algorithm.loss_aggregation=sum",
        "algorithm.entropy_coefficient=-1",
        "algorithm.overlong.buffer_tokens=0",
        "algorithm.overlong={buffer_tokens: 4, penalty: 0}",
    ],
)
def test_a_value_out_of_range_names_its_setting(override: str) -> None:
    assert override.split("=")[0].split(".")[-1] in refusal(override)


@pytest.mark.parametrize(
    "override", ["algorithm.gamma=1.1", "algorithm.lam=-0.1", "algorithm.critic_loss=huber"]
)
def test_ppos_own_settings_have_ranges_too(override: str) -> None:
    assert override.split("=")[0] in refusal("algorithm.type=ppo", override).replace(
        "algorithm.ppo.", "algorithm."
    )


def test_dynamic_sampling_of_one_draw_is_none() -> None:
    assert "max_rounds" in refusal("algorithm.type=grpo", "algorithm.dynamic_sampling.max_rounds=1", *GROUPS)
