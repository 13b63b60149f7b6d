"""PPO's token critic on real DeepSpeed against a single-process reference, and through its
adapter.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from actors.critic import CriticRank, TokenCriticRank
from actors.handles import CriticGroup, Ranks
from sppo_ray.config import CriticSettings, OptimizerSettings
from sppo_ray.errors import UserError
from sppo_ray.types import TokenCriticBatch, TokenRows
from tests.ray.rank_groups import Group
from tests.reference_ppo import TokenCritic, update_token_critic
from tests.training_data import flat, save_llama

# eps: see test_learner.py. No weight decay and clipping at 1, as in the reference.
ADAM = {"lr": 1e-3, "eps": 1e-5, "betas": (0.9, 0.95)}
PROMPTS = TokenRows.of([(5, 6, 7), (9,), (10, 11, 12, 13)])
RESPONSES = TokenRows.of([(20, 21), (22, 23, 24, 25), (26,)])
RETURNS = flat([(0.5, 1.0), (0.0, 0.0, 0.25, 0.25), (1.0,)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def arguments(model: Path, loss: str = "mse", **settings: Any) -> dict[str, Any]:
    settings = {"optimizer": OptimizerSettings(**ADAM), "max_tokens_per_microbatch": 40} | settings
    critic = CriticSettings(model=str(model), **settings)
    return {"settings": critic, "critic_loss": loss, "model_path": str(model), "total_updates": 10, "seed": 1}


def started(model: Path, loss: str = "mse", **settings: Any) -> TokenCriticRank:
    critic = TokenCriticRank(0, 1, **arguments(model, loss, **settings))
    critic.setup(*critic.address())
    return critic


@pytest.fixture
def critic(llama: Path) -> Iterator[TokenCriticRank]:
    rank = started(llama)
    yield rank
    rank.close()


def batch(count: int, seed: int) -> TokenCriticBatch:
    draw = random.Random(seed)

    def rows(most: int) -> TokenRows:
        lengths = [draw.randint(1, most) for _ in range(count)]
        return TokenRows.of([[draw.randrange(4, 45) for _ in range(length)] for length in lengths])

    prompts, responses = rows(8), rows(16)
    returns = np.array([draw.random() for _ in responses.token_ids], dtype=np.float32)
    return TokenCriticBatch(prompts, responses, returns)


def rows_of(data: TokenCriticBatch) -> list[tuple[Sequence[int], Sequence[int], Sequence[float]]]:
    returns = np.split(data.returns, data.responses.lengths.cumsum()[:-1])
    columns = ([row.tolist() for row in rows] for rows in (data.prompts, data.responses, returns))
    return list(zip(*columns, strict=True))


# ---------------------------------------------------------------------------------- numbers by hand


def test_a_fresh_critic_by_squared_error_says_0(critic: TokenCriticRank) -> None:
    assert critic.token_values(PROMPTS, RESPONSES).tolist() == [0.0] * 7
    metrics = critic.token_update(PROMPTS, RESPONSES, RETURNS, 7)
    # squares of the returns: 0.25 + 1 + 2 * 0.0625 + 1 = 2.375, over 7 tokens; the loss is half of
    # that. Their sum is 3.
    assert metrics["brier"] == pytest.approx(2.375 / 7)
    assert metrics["loss"] == pytest.approx(2.375 / 14)
    assert (metrics["value_mean"], metrics["reward_mean"]) == (0.0, pytest.approx(3.0 / 7))
    assert metrics["skipped"] == 0.0 and metrics["lr"] == 1e-3


def test_a_fresh_critic_by_cross_entropy_says_one_half(llama: Path) -> None:
    critic = started(llama, "bce")
    assert critic.token_values(PROMPTS, RESPONSES).tolist() == [0.5] * 7
    # -G log 0.5 - (1 - G) log 0.5 = log 2 for any G
    assert critic.token_update(PROMPTS, RESPONSES, RETURNS, 7)["loss"] == pytest.approx(math.log(2.0))
    with pytest.raises(UserError, match=r"1.5 of token 1 lies outside \[0, 1\]"):
        critic.token_update(PROMPTS.pick([0]), RESPONSES.pick([0]), np.float32([0.0, 1.5]), 2)
    critic.close()


def test_it_learns_values_that_change_within_a_response(llama: Path) -> None:
    critic = started(llama, optimizer=OptimizerSettings(lr=1e-2))
    for _ in range(60):
        metrics = critic.token_update(PROMPTS, RESPONSES, RETURNS, 7)
    assert metrics["explained_variance"] > 0.9
    assert critic.token_values(PROMPTS, RESPONSES) == pytest.approx(RETURNS, abs=0.15)
    critic.close()


def test_wrong_lengths_are_refused_before_anything_changes(critic: TokenCriticRank) -> None:
    with pytest.raises(ValueError, match="returns and actions differ in length"):
        critic.token_update(PROMPTS, RESPONSES, RETURNS[1:], 7)
    with pytest.raises(ValueError, match="at least one response token"):
        critic.token_values(TokenRows.of([(5, 6)]), TokenRows.of([()]))


# -------------------------------------------------------------------------------------- invariances


def test_neither_company_nor_the_last_token_changes_a_value(llama: Path) -> None:
    wide, narrow = (
        started(llama, max_tokens_per_microbatch=4096),
        started(llama, max_tokens_per_microbatch=24),
    )
    data = batch(9, seed=0)
    for critic in (wide, narrow):
        critic.token_update(data.prompts, data.responses, data.returns, len(data.returns))
    together = wide.token_values(data.prompts, data.responses)
    assert narrow.token_values(data.prompts, data.responses) == pytest.approx(together, abs=1e-5)
    of_each = np.split(together, data.responses.lengths.cumsum()[:-1])
    for row, values in enumerate(of_each):
        prompt, response = data.prompts.pick([row]), data.responses.pick([row])
        assert wide.token_values(prompt, response) == pytest.approx(values, abs=1e-6)
        other_end = TokenRows.of([(*response.token_ids[:-1], 3)])
        assert wide.token_values(prompt, other_end) == pytest.approx(values, abs=1e-6)
        # the value before the first response token is that of the prompt
        assert wide.values(prompt) == pytest.approx(values[:1], abs=1e-6)
    wide.close()
    narrow.close()


# --------------------------------------------------------------------- the reference, and the ranks


@pytest.mark.parametrize(("ranks", "stage", "loss"), [(1, 0, "bce"), (2, 0, "mse"), (2, 3, "bce")])
def test_it_goes_where_the_references_does(
    ray_cluster: Any, hosts: Any, llama: Path, ranks: int, stage: int, loss: str
) -> None:
    handles = hosts[ranks]
    group = Group(ray_cluster, handles, TokenCriticRank, arguments(llama, loss, zero_stage=stage))
    critic = CriticGroup(Ranks("critic", handles, timeout_s=120), tokenizer_path=str(llama), critic_loss=loss)
    reference = TokenCritic(str(llama))
    optimizer = torch.optim.AdamW(reference.parameters(), **ADAM, weight_decay=0.0)
    for seed in range(2):
        data = batch(7, seed)
        metrics = asyncio.run(critic.token_update(data))
        assert metrics["loss"] == pytest.approx(
            update_token_critic(reference, optimizer, rows_of(data), loss), rel=1e-5
        )
    assert critic.version == 2

    data = batch(6, seed=9)
    with torch.no_grad():
        outputs = [reference(prompt, response) for prompt, response, _ in rows_of(data)]
    expected = [output if loss == "mse" else output.sigmoid() for output in outputs]
    values = asyncio.run(critic.token_values(data.prompts, data.responses))
    for found, wanted in zip(values, expected, strict=True):
        assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    of_prompts = asyncio.run(critic.values(data.prompts))
    assert [value.value_logit for value in of_prompts] == pytest.approx(
        [float(row[0]) for row in outputs], abs=1e-5
    )
    assert [value.value for value in of_prompts] == pytest.approx(
        [float(row[0]) for row in expected], abs=1e-5
    )
    assert {value.critic_version for value in of_prompts} == {2}
    group.all("close")


def test_a_rank_without_samples_takes_part(ray_cluster: Any, hosts: Any, llama: Path) -> None:
    group = Group(ray_cluster, hosts[2], TokenCriticRank, arguments(llama, zero_stage=3))
    critic = CriticGroup(
        Ranks("critic", hosts[2], timeout_s=120), tokenizer_path=str(llama), critic_loss="mse"
    )
    one = TokenCriticBatch(TokenRows.of([(5, 6)]), TokenRows.of([(7, 8)]), np.float32([1.0, 1.0]))
    (values,) = asyncio.run(critic.token_values(one.prompts, one.responses))
    assert values.tolist() == [0.0, 0.0]
    assert asyncio.run(critic.token_update(one))["loss"] == pytest.approx(0.5)
    assert asyncio.run(critic.values(TokenRows.of([]))) == []
    memory = asyncio.run(critic.memory())
    assert list(memory) == ["critic-0", "critic-1"]
    # a process with torch in it
    assert all(100 * 2**20 < peak < 64 * 2**30 for peak in memory.values())
    group.all("close")


# -------------------------------------------------------------------------- export and what follows


def test_an_export_says_what_it_is_and_starts_the_next_run(
    critic: TokenCriticRank, llama: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        critic.token_update(PROMPTS, RESPONSES, RETURNS, 7)
    critic.export(tmp_path / "critic", llama)
    config = json.loads((tmp_path / "critic" / "config.json").read_text())
    assert (config["critic_loss"], config["critic_reads"]) == ("mse", "prompt and response")

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    with torch.no_grad():
        logits = [plain(torch.tensor(ids)[None]).logits.item() for ids in PROMPTS]
    assert critic.values(PROMPTS) == pytest.approx(logits, abs=1e-5)
    warm = started(tmp_path / "critic")
    assert warm.token_values(PROMPTS, RESPONSES) == pytest.approx(
        critic.token_values(PROMPTS, RESPONSES), abs=1e-6
    )
    warm.close()

    settings = CriticSettings(model=str(tmp_path / "critic"))
    prompt_critic = CriticRank(0, 1, settings, model_path=settings.model, total_updates=1, seed=1)
    with pytest.raises(UserError, match="trained by critic_loss mse, this run trains by bce"):
        prompt_critic.setup(*prompt_critic.address())


def test_a_resumed_critic_equals_the_uninterrupted_one_bit_for_bit(
    critic: TokenCriticRank, llama: Path, tmp_path: Path
) -> None:
    critic.token_update(PROMPTS, RESPONSES, RETURNS, 7)
    critic.save(tmp_path)
    uninterrupted = critic.token_update(PROMPTS, RESPONSES, RETURNS, 7) | {"seconds": 0}
    fresh = started(llama)
    fresh.load(tmp_path)
    assert fresh.token_update(PROMPTS, RESPONSES, RETURNS, 7) | {"seconds": 0} == uninterrupted
    assert fresh.token_values(PROMPTS, RESPONSES).tolist() == critic.token_values(PROMPTS, RESPONSES).tolist()
    fresh.close()


# ----------------------------------------------------------------------------------- frozen weights


def trained_weights(rank: TokenCriticRank) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in rank.engine.parameters()}


def test_frozen_parameters_stay_and_the_others_resume_exactly(llama: Path, tmp_path: Path) -> None:
    first, second = batch(6, seed=1), batch(6, seed=2)
    rank = started(llama, frozen_parameters="self_attn")
    before = trained_weights(rank)

    def update(one: TokenCriticRank, data: TokenCriticBatch) -> dict[str, float]:
        return one.token_update(data.prompts, data.responses, data.returns, len(data.returns))

    update(rank, first)
    update(rank, first)  # the head starts at zero, so the first update moves only the head
    rank.save(tmp_path / "state")
    metrics = update(rank, second)
    after = trained_weights(rank)
    frozen = {name for name in after if "self_attn" in name}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert all(not torch.equal(before[name], after[name]) for name in after.keys() - frozen)
    rank.close()

    again = started(llama, frozen_parameters="self_attn")
    again.load(tmp_path / "state")
    assert {k: v for k, v in update(again, second).items() if k != "seconds"} == {
        k: v for k, v in metrics.items() if k != "seconds"
    }
    assert all(torch.equal(tensor, after[name]) for name, tensor in trained_weights(again).items())
    again.close()

    other = started(save_llama(tmp_path / "other", seed=9), frozen_parameters="self_attn")
    with pytest.raises(UserError, match="its weights were trained on other weights than those in"):
        other.load(tmp_path / "state")
    other.close()


def test_a_pattern_without_a_parameter_names_some(llama: Path) -> None:
    told = r"frozen_parameters 'experts' matches none of its parameters \(.*embed"
    with pytest.raises(UserError, match=told):
        started(llama, frozen_parameters="experts")
