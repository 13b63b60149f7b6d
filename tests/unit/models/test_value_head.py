from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.errors import UserError
from sppo_ray.models.critic_output import prompt_value
from sppo_ray.models.tiny import character_tokenizer
from sppo_ray.models.value_head import ValueModel, choose_pad_token, load_value_model
from sppo_ray.types import PromptValue, TokenRows
from tests.reference_sppo import PromptCritic
from tests.training_data import save_llama, save_qwen

PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 0], [12, 13, 14, 15, 16, 17, 18]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def critic(llama: Path) -> ValueModel:
    """With a head that is not zero, so that different hidden states give different logits."""
    model = load_value_model(llama, dtype="float32")
    with torch.no_grad():
        model.model.score.weight.copy_(torch.linspace(-1.0, 1.0, 32)[None])
    return model


@torch.no_grad()
def logits(model: ValueModel, prompts: list[list[int]]) -> torch.Tensor:
    rows = TokenRows.of(prompts)
    return model.read(rows, np.ones_like(rows.lengths), device="cpu")


@pytest.mark.parametrize("save", [save_llama, save_qwen])
def test_a_fresh_critic_gives_every_prompt_one_half(save, tmp_path: Path) -> None:
    model = load_value_model(save(tmp_path), dtype="float32")
    assert logits(model, PROMPTS).sigmoid().tolist() == [0.5] * 4


def test_the_logit_is_read_at_the_last_prompt_token(critic: ValueModel) -> None:
    hidden = critic.model.base_model(torch.tensor([PROMPTS[0]])).last_hidden_state
    torch.testing.assert_close(logits(critic, PROMPTS[:1]), critic.model.score(hidden[:, 3]).squeeze(-1))


def test_it_is_the_references(critic: ValueModel, llama: Path) -> None:
    reference = PromptCritic(str(llama))
    reference.head.weight.data.copy_(critic.model.score.weight)
    torch.testing.assert_close(logits(critic, PROMPTS), reference(PROMPTS), rtol=1e-5, atol=1e-5)


def test_several_positions_are_the_outputs_of_the_prefixes(critic: ValueModel) -> None:
    # rows of 4, 1 and 3 tokens; the last 3, 1 and 2 positions of them have read 2, 3, 4; 1; and 2,
    # 3 tokens
    rows, counts = PROMPTS[:3], np.array([3, 1, 2])
    with torch.no_grad():
        found = critic.read(TokenRows.of(rows), counts, device="cpu")
    prefixes = [rows[0][:2], rows[0][:3], rows[0], rows[1], rows[2][:2], rows[2]]
    torch.testing.assert_close(
        found, torch.cat([logits(critic, [prefix]) for prefix in prefixes]), rtol=1e-4, atol=1e-5
    )


def test_a_critic_of_another_loss_is_refused(critic: ValueModel, tmp_path: Path) -> None:
    critic.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"critic_loss": "mse"}))
    assert load_value_model(tmp_path, dtype="float32").critic_loss == "mse"
    assert load_value_model(tmp_path, dtype="float32", critic_loss="mse").critic_loss == "mse"
    with pytest.raises(
        UserError, match="trained by critic_loss mse, this run trains by bce.*start from a causal LM"
    ):
        load_value_model(tmp_path, dtype="float32", critic_loss="bce")


def test_what_the_head_says_as_a_value() -> None:
    assert prompt_value(0.25, "mse", 3) == PromptValue(0.25, 0.25, 3)
    assert prompt_value(0.0, "bce", 3) == PromptValue(0.0, 0.5, 3)
    # 1 / (1 + e^800) is 0 in float64, and nothing overflows on the way
    assert [prompt_value(logit, "bce", 0).value for logit in (-800.0, 800.0)] == [0.0, 1.0]


prompts = st.lists(st.lists(st.integers(0, 44), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(rows=prompts)
def test_values_do_not_depend_on_other_rows(critic: ValueModel, rows: list[list[int]]) -> None:
    alone = torch.cat([logits(critic, [row]) for row in rows])
    torch.testing.assert_close(logits(critic, rows), alone, rtol=1e-4, atol=1e-5)


def test_an_exported_head_is_kept(critic: ValueModel, tmp_path: Path) -> None:
    critic.model.save_pretrained(tmp_path)
    again = load_value_model(tmp_path, dtype="float32")
    assert torch.equal(again.model.score.weight, critic.model.score.weight)


def test_no_prompt_ends_in_the_exports_pad_token() -> None:
    tokenizer = character_tokenizer()
    pad, bos, unknown = (tokenizer.convert_tokens_to_ids(token) for token in ("<pad>", "<bos>", "<unk>"))
    assert choose_pad_token(tokenizer, {7, 8}) == pad
    assert choose_pad_token(tokenizer, {pad}) == unknown == tokenizer.pad_token_id
    everything_special = set(tokenizer.all_special_ids)
    assert choose_pad_token(tokenizer, everything_special) == len(tokenizer) - 1
    assert bos in everything_special
