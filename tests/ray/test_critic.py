"""One critic rank on real DeepSpeed, in this process. Two ranks, in Ray actors: test_parity.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.critic import CriticRank
from sppo_ray.config import CriticSettings, OptimizerSettings
from sppo_ray.errors import UserError
from sppo_ray.types import TokenRows
from tests.training_data import save_llama

PROMPTS = TokenRows.of([(5, 6, 7, 8), (9,), (10, 0, 11), (12, 13, 14, 15, 16, 17, 18), (19, 20)])
REWARDS = np.array([1.0, 0.0, 1.0, 0.5, 0.0], dtype=np.float32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def started(model: Path, **settings: Any) -> CriticRank:
    settings = {"optimizer": OptimizerSettings(lr=1e-2), "max_tokens_per_microbatch": 16} | settings
    critic = CriticRank(
        0, 1, CriticSettings(model=str(model), **settings), model_path=str(model), total_updates=10, seed=1
    )
    critic.setup(*critic.address())
    return critic


@pytest.fixture
def critic(llama: Path) -> Iterator[CriticRank]:
    rank = started(llama)
    yield rank
    rank.close()


def test_a_fresh_critic_says_one_half_and_its_loss_is_log_2(critic: CriticRank) -> None:
    assert critic.values(PROMPTS).tolist() == [0.0] * 5
    metrics = critic.update(PROMPTS, REWARDS, 5)
    # -R log 0.5 - (1 - R) log 0.5 = log 2 for any R; brier: ((1/2)^2 * 4 + 0) / 5; rewards' mean
    # 2.5 / 5
    assert metrics["loss"] == pytest.approx(math.log(2.0))
    assert metrics["brier"] == pytest.approx(0.2)
    assert (metrics["value_mean"], metrics["reward_mean"]) == (0.5, 0.5)
    assert metrics["explained_variance"] == pytest.approx(0.0, abs=1e-6)


def test_it_learns_to_tell_prompts_apart(critic: CriticRank) -> None:
    for _ in range(40):
        metrics = critic.update(PROMPTS, REWARDS, 5)
    values = torch.tensor(critic.values(PROMPTS)).sigmoid()
    torch.testing.assert_close(values, torch.tensor(REWARDS), atol=0.1, rtol=0)
    assert metrics["explained_variance"] > 0.9


def test_micro_batches_change_no_value(llama: Path) -> None:
    wide, narrow = started(llama, max_tokens_per_microbatch=4096), started(llama, max_tokens_per_microbatch=7)
    for critic in (wide, narrow):
        critic.update(PROMPTS, REWARDS, 5)
    assert narrow.values(PROMPTS) == pytest.approx(wide.values(PROMPTS), abs=1e-5)
    wide.close()
    narrow.close()


def test_a_reward_outside_the_unit_interval_stops_before_anything_changes(critic: CriticRank) -> None:
    with pytest.raises(UserError, match=r"reward -1.0 of sample 4 lies outside \[0, 1\]"):
        critic.update(PROMPTS, np.array([*REWARDS[:4], -1.0]), 5)
    assert critic.values(PROMPTS).tolist() == [0.0] * 5


def test_a_resumed_critic_equals_the_uninterrupted_one_bit_for_bit(
    critic: CriticRank, llama: Path, tmp_path: Path
) -> None:
    critic.update(PROMPTS, REWARDS, 5)
    critic.save(tmp_path)
    uninterrupted = [critic.update(PROMPTS, REWARDS, 5) | {"seconds": 0} for _ in range(2)]
    fresh = started(llama)
    fresh.load(tmp_path)
    assert [fresh.update(PROMPTS, REWARDS, 5) | {"seconds": 0} for _ in range(2)] == uninterrupted
    assert fresh.values(PROMPTS).tolist() == critic.values(PROMPTS).tolist()
    fresh.close()


def test_plain_transformers_gives_the_exports_logits(critic: CriticRank, llama: Path, tmp_path: Path) -> None:
    # One prompt ends in 0, the tokenizer's pad id: plain Transformers would look for the last token
    # before it.
    prompts = TokenRows.of([*PROMPTS, (21, 22, 0)])
    for _ in range(3):
        critic.update(prompts, np.append(REWARDS, np.float32(1.0)), 6)
    expected = critic.values(prompts)
    critic.export(tmp_path / "critic", llama)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "critic")
    assert model.config.pad_token_id == tokenizer.pad_token_id != 0
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": [ids.tolist() for ids in prompts]}, return_tensors="pt")
        with torch.no_grad():
            assert model(**batch).logits.squeeze(-1).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_run_can_start_from_an_exported_critic(critic: CriticRank, llama: Path, tmp_path: Path) -> None:
    for _ in range(3):
        critic.update(PROMPTS, REWARDS, 5)
    critic.export(tmp_path / "critic", llama)
    warm = started(tmp_path / "critic")
    assert warm.values(PROMPTS) == pytest.approx(critic.values(PROMPTS), abs=1e-6)
    warm.close()
