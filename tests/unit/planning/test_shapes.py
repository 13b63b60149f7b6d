"""Shapes: the parameter counts of known models, config.json, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sppo_ray.errors import UserError
from sppo_ray.planning.shapes import KNOWN, find_shape, read_shape

QWEN_7B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


def test_parameters_as_their_model_cards_say() -> None:
    cards = {
        "smollm2-135m": 134_515_008,
        "qwen2.5-math-1.5b": 1_543_714_304,
        "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
        "qwen2.5-math-7b": 7_615_616_512,
        "llama-3.1-8b": 8_030_261_248,
        "qwen2.5-32b": 32_763_876_352,
    }
    assert {name: KNOWN[name].parameters for name in cards} == cards


def test_a_critic_has_a_head_of_one_output() -> None:
    # 7.6e9 without the head of 152,064 x 3,584, with one of 1 x 3,584
    assert KNOWN["qwen2.5-7b"].critic_parameters == 7_615_616_512 - 152_064 * 3584 + 3584


def test_built_in_models() -> None:
    sums = ("running-sum", "running-sum-long", "register-machine")
    names = (*sums, "byte-critic", "tiny-critic", "smollm2-135m")
    counts = [find_shape(f"builtin:{name}").parameters for name in names]
    assert counts == [129_088, 129_088, 129_088, 361_600, 18_656, 134_515_008]


def test_a_name_may_have_an_owner_and_a_kind() -> None:
    assert find_shape("Qwen/Qwen2.5-7B-Instruct") == find_shape("models/DeepSeek-R1-Distill-Qwen-7B")
    assert find_shape("meta-llama/Meta-Llama-3.1-8B") == KNOWN["llama-3.1-8b"]


def test_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    assert find_shape(str(tmp_path)) == KNOWN["qwen2.5-7b"]


def test_an_unknown_model_names_the_remedy() -> None:
    with pytest.raises(UserError, match=r"'some/model' is not known: .*qwen2.5-math-7b.*--model-config PATH"):
        find_shape("some/model")
    with pytest.raises(UserError, match="builtin:nothing: no such built-in model"):
        find_shape("builtin:nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "cannot be read as a model's config.json"),
        ("[]", "not a mapping"),
        (json.dumps(QWEN_7B | {"model_type": "mixtral"}), "model_type is 'mixtral'"),
        (json.dumps({k: v for k, v in QWEN_7B.items() if k != "vocab_size"}), "vocab_size"),
        (json.dumps(QWEN_7B | {"hidden_size": "wide"}), "has it wrong"),
    ],
)
def test_a_bad_config_json(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_shape(tmp_path / "config.json")
