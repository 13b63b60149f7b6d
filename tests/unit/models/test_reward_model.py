"""Scores equal those of a plain Transformers forward, and what is no reward model is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from sppo_ray.config import ModelReward
from sppo_ray.errors import UserError
from sppo_ray.models.reward_model import QueuedRewardModel, RewardModel, batches
from sppo_ray.models.tiny import character_tokenizer
from sppo_ray.planning.preflight import check_reward_model
from tests.training_data import _SHAPE, save_llama

TEXTS = ["a7b5=", "12", "a", "a7b5c9d2e1="]


def conversation(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


CONVERSATIONS = [conversation(prompt, response) for prompt in TEXTS for response in ("42", "a+7=07;b+5=12;")]


def save(directory: Path, **changes: Any) -> Path:
    tokenizer = character_tokenizer()
    config = LlamaConfig(**(_SHAPE | {"num_labels": 1, "vocab_size": len(tokenizer)} | changes))
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def settings(directory: Path, **changes: Any) -> ModelReward:
    return ModelReward(model=str(directory), **changes)


def plain_scores(directory: Path) -> list[float]:
    """One conversation at a time, so that nothing is padded."""
    tokenizer = character_tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        return [
            model(
                input_ids=torch.tensor(
                    [
                        tokenizer(
                            tokenizer.apply_chat_template(one, tokenize=False), add_special_tokens=False
                        )["input_ids"]
                    ]
                )
            ).logits.item()
            for one in CONVERSATIONS
        ]


@pytest.mark.parametrize("pad", [0, None])
def test_scores_are_those_of_a_plain_forward(pad: int | None, tmp_path: Path) -> None:
    directory = save(tmp_path, pad_token_id=pad)
    model = RewardModel(directory, settings(directory, max_tokens_per_microbatch=50))
    expected = plain_scores(directory)
    assert model.score(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1
    assert model.score([]) == []


def test_an_encoder_is_read_by_its_own_forward(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert RewardModel(tmp_path, settings(tmp_path)).score(CONVERSATIONS) == pytest.approx(
        plain_scores(tmp_path), abs=1e-5
    )


def test_what_is_too_long_has_a_reason(tmp_path: Path) -> None:
    directory = save(tmp_path)
    model = RewardModel(directory, settings(directory, max_tokens_per_microbatch=20))
    short, long = model.score([conversation("a", "b"), conversation("a", "b" * 20)])
    # <bos>, the prompt and 20 tokens
    assert isinstance(short, float) and long == "22 tokens, and the reward model reads at most 20"


def test_special_tokens_in_a_response_are_removed(tmp_path: Path) -> None:
    model = RewardModel(save(tmp_path), settings(tmp_path))
    hidden, plain = model.score([conversation("a", "b<e<eos>os>c<bos>"), conversation("a", "bc")])
    assert hidden == plain


def test_rows_of_similar_length_are_batched() -> None:
    # 3 x 10 and 2 x 4 tokens fit into 30; 31 is alone
    assert batches({0: 4, 1: 10, 2: 31, 3: 10, 4: 4, 5: 10}, 30) == [[2], [1, 3, 5], [0, 4]]


def test_what_waits_is_scored_together(tmp_path: Path) -> None:
    model = RewardModel(save(tmp_path), settings(tmp_path))
    queued = QueuedRewardModel(model)
    sizes: list[int] = []
    forward = model.score
    model.score = lambda rows: (sizes.append(len(rows)), forward(rows))[1]  # type: ignore[method-assign]

    async def score() -> list[list[Any]]:
        return await asyncio.gather(*(queued.score([one]) for one in CONVERSATIONS))

    scores = [score for (score,) in asyncio.run(score())]
    assert scores == pytest.approx(plain_scores(tmp_path), abs=1e-5)
    assert sizes == [len(CONVERSATIONS)] and queued.scored == len(CONVERSATIONS)


def test_a_causal_language_model_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path)
    with pytest.raises(UserError, match="LlamaForCausalLM, which has no classification head"):
        check_reward_model(tmp_path, "mine")
    tree = json.loads((tmp_path / "config.json").read_text()) | {"num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"weights are missing from it \(score.weight\)"):
        RewardModel(tmp_path, settings(tmp_path))


def test_two_outputs_and_a_missing_template_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "two", num_labels=2)
    with pytest.raises(UserError, match="its head has 2 outputs, and a score is one"):
        check_reward_model(tmp_path / "two", "mine")
    with pytest.raises(UserError, match="it has 2 outputs"):
        RewardModel(tmp_path / "two", settings(tmp_path / "two"))
    directory = save(tmp_path / "plain")
    check_reward_model(directory, "mine")
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="reward model mine: its tokenizer has no chat template"):
        check_reward_model(directory, "mine")
    with pytest.raises(UserError, match="its chat template is missing"):
        RewardModel(directory, settings(directory))
