"""The single-file reference against hand-computed numbers."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sppo_ray.environments import running_sum
from sppo_ray.models import tiny
from tests import reference_sppo as reference

PROMPTS = ["a7b5=", "c1d2e3f4=", "x9="]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.character_tokenizer()


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny.new_model(tiny.RUNNING_SUM_SHAPE, tokenizer, seed=0).eval()


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("checkpoint")
    tiny.new_model(tiny.RUNNING_SUM_SHAPE, tokenizer, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def prompt_ids(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return tokenizer([tiny.BOS + prompt for prompt in PROMPTS])["input_ids"]


@pytest.fixture
def response_ids(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return tokenizer([running_sum.solution(prompt, random.Random(0)) + tiny.EOS for prompt in PROMPTS])[
        "input_ids"
    ]


# ------------------------------------------------------------------------------------------- losses


def two_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ratios 1.5, 1, 0.5 with advantage 0.5; ratio 0.5 (and two paddings) with advantage -0.4."""
    old = torch.full((2, 3), 0.2).log()
    logprobs = torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.9, 0.9]]).log().requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    return logprobs, old, torch.tensor([0.5, -0.4]), mask


def test_policy_loss_on_paper() -> None:
    logprobs, old, advantages, mask = two_rows()
    # row 1: min(1.5, 1.2) 0.5 + 1 * 0.5 + min(0.5 * 0.5, 0.8 * 0.5) = 0.60 + 0.50 + 0.25 = 1.35
    # row 2: min(0.5 * -0.4, 0.8 * -0.4) = -0.32;     - (1.35 - 0.32) / 4 tokens = -0.2575
    assert reference.policy_loss(logprobs, old, advantages, mask, 0.2, 0.2).item() == pytest.approx(
        -0.2575, abs=1e-6
    )
    # clip_high 0.6 lets 1.5 pass: row 1 is 0.75 + 0.50 + 0.25 = 1.50;     - (1.50 - 0.32) / 4 =
    # -0.295
    assert reference.policy_loss(logprobs, old, advantages, mask, 0.2, 0.6).item() == pytest.approx(
        -0.295, abs=1e-6
    )


def test_clipped_and_padding_tokens_have_no_gradient() -> None:
    logprobs, old, advantages, mask = two_rows()
    reference.policy_loss(logprobs, old, advantages, mask, 0.2, 0.2).backward()
    # dL/dlogp = - ratio * A / 4 where the ratio is not clipped: -1 * 0.5 / 4 and -0.5 * 0.5 / 4
    expected = torch.tensor([[0.0, -0.125, -0.0625], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(logprobs.grad, expected)


def test_critic_loss_on_paper() -> None:
    # value 0.5, reward 1: ln 2; value 0.75 (logit ln 3), reward 0: ln 4; value 0.5, reward 0.5: ln
    # 2. Mean 4/3 ln 2
    loss = reference.critic_loss(torch.tensor([0.0, math.log(3), 0.0]), torch.tensor([1.0, 0.0, 0.5]))
    assert loss.item() == pytest.approx(4 / 3 * math.log(2), abs=1e-6)


def test_the_advantage_is_reward_minus_value_and_nothing_else() -> None:
    sample = reference.Sample(prompt_ids=[1], response_ids=[2], old_logprobs=[0.0], reward=1.0, value=0.25)
    assert sample.advantage == 0.75


# ---------------------------------------------------------------------------------------- log-probs


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_of_a_padded_batch_are_those_of_each_row_alone(
    model: LlamaForCausalLM, prompt_ids: list[list[int]], response_ids: list[list[int]], temperature: float
) -> None:
    with torch.no_grad():
        logprobs, mask = reference.sequence_logprobs(model, prompt_ids, response_ids, temperature)
        for row, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0] / temperature
            for t, token in enumerate(response):
                expected = logits[len(prompt) + t - 1].log_softmax(-1)[token]
                assert logprobs[row, t].item() == pytest.approx(expected.item(), abs=1e-5)
            assert mask[row].tolist() == [1] * len(response) + [0] * (mask.shape[1] - len(response))


def test_samples_follow_the_models_distribution_and_stop_at_eos(
    model: LlamaForCausalLM, prompt_ids: list[list[int]]
) -> None:
    torch.manual_seed(0)
    many = reference.sample_responses(
        model, [prompt_ids[0], *[prompt_ids[1]] * 999], max_tokens=1, temperature=1.0
    )[1:]
    probabilities = model(input_ids=torch.tensor([prompt_ids[1]])).logits[0, -1].softmax(-1)
    token = int(probabilities.argmax())
    share = sum(response == [token] for response in many) / len(many)
    # binomial: four standard deviations of sqrt(p (1 - p) / 999)
    p = probabilities[token].item()
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 999))
    eos = model.config.eos_token_id
    for response in reference.sample_responses(model, prompt_ids * 10, max_tokens=60, temperature=1.0):
        assert eos not in response[:-1]
        assert response[-1] == eos or len(response) == 60


# ------------------------------------------------------------------------------------------- critic


def test_a_fresh_critic_says_one_half_and_ignores_what_pads(
    checkpoint: str, prompt_ids: list[list[int]]
) -> None:
    critic = reference.PromptCritic(checkpoint)
    assert critic(prompt_ids).sigmoid().tolist() == [0.5, 0.5, 0.5]
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    together = critic(prompt_ids)
    alone = torch.cat([critic([ids]) for ids in prompt_ids])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together.std() > 0.01  # it does tell prompts apart


def test_the_critic_learns_which_prompts_are_solved(checkpoint: str, prompt_ids: list[list[int]]) -> None:
    critic = reference.PromptCritic(checkpoint)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-3, weight_decay=0.0)
    losses = [reference.update_critic(critic, optimizer, prompt_ids, [1.0, 0.0, 1.0]) for _ in range(25)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # value 0.5 everywhere
    assert losses[-1] < 0.1


# ------------------------------------------------------------------------------------------- policy


def samples_of(
    model: LlamaForCausalLM, prompt_ids: list[list[int]], response_ids: list[list[int]], values: list[float]
) -> list[reference.Sample]:
    """All of them rewarded with 0.5, so that the advantages are 0.5 - value."""
    with torch.no_grad():
        logprobs, _ = reference.sequence_logprobs(model, prompt_ids, response_ids, 1.0)
    old = [row[: len(ids)] for row, ids in zip(logprobs.tolist(), response_ids, strict=True)]
    fields = zip(prompt_ids, response_ids, old, values, strict=True)
    return [
        reference.Sample(prompt, response, logprob, 0.5, value) for prompt, response, logprob, value in fields
    ]


def test_the_first_loss_is_minus_the_token_weighted_advantage(
    model: LlamaForCausalLM, prompt_ids: list[list[int]], response_ids: list[list[int]]
) -> None:
    samples = samples_of(model, prompt_ids, response_ids, [0.0, 0.75, 0.25])
    loss = reference.update_policy(model, torch.optim.SGD(model.parameters(), lr=0.0), samples)
    # every ratio is 1; responses are 7 tokens a step and 5 for \boxed{..} and EOS: 2, 4 and 1 steps
    # = 19, 33 and 12 tokens - (0.5 * 19 - 0.25 * 33 + 0.25 * 12) / 64 = -4.25 / 64
    assert loss == pytest.approx(-4.25 / 64, abs=1e-6)


def test_an_update_follows_the_advantages_sign(
    model: LlamaForCausalLM, prompt_ids: list[list[int]], response_ids: list[list[int]]
) -> None:
    samples = samples_of(model, prompt_ids, response_ids, [0.0, 1.0, 0.5])
    before = [sum(sample.old_logprobs) for sample in samples]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    reference.update_policy(model, optimizer, samples[:1])
    with torch.no_grad():
        raised = reference.sequence_logprobs(model, prompt_ids[:1], response_ids[:1], 1.0)[0].sum().item()
    assert raised > before[0]  # advantage +0.5
    samples = samples_of(model, prompt_ids, response_ids, [0.0, 1.0, 0.5])
    before = [sum(sample.old_logprobs) for sample in samples]
    reference.update_policy(model, optimizer, samples[1:2])
    with torch.no_grad():
        lowered = reference.sequence_logprobs(model, prompt_ids[1:2], response_ids[1:2], 1.0)[0].sum().item()
    assert lowered < before[1]  # advantage -0.5


def test_zero_advantages_change_nothing(
    model: LlamaForCausalLM, prompt_ids: list[list[int]], response_ids: list[list[int]]
) -> None:
    before = [parameter.clone() for parameter in model.parameters()]
    samples = samples_of(model, prompt_ids, response_ids, [0.5, 0.5, 0.5])
    reference.update_policy(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0), samples)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


# --------------------------------------------------------------------------------------------- task


def test_rewards_are_one_for_the_exact_answer_only(checkpoint: str, response_ids: list[list[int]]) -> None:
    task = reference.RunningSum(checkpoint, seed=0)
    # a7b5 = 12, c1d2e3f4 = 10, x9 = 9
    assert task.rewards(response_ids, ["12", "10", "9"]) == [1.0, 1.0, 1.0]
    assert task.rewards(response_ids, ["2", "10", "19"]) == [0.0, 1.0, 0.0]


def test_a_rollout_keeps_its_parts_together(checkpoint: str, model: LlamaForCausalLM) -> None:
    torch.manual_seed(0)
    task = reference.RunningSum(checkpoint, seed=0)
    samples = reference.rollout(model, reference.PromptCritic(checkpoint), task, range(5), max_tokens=30)
    assert [sample.prompt_ids for sample in samples] == task.draw(range(5))[0]
    assert all(len(sample.old_logprobs) == len(sample.response_ids) <= 30 for sample in samples)
    assert all(max(sample.old_logprobs) <= 0 and sample.value == 0.5 for sample in samples)
