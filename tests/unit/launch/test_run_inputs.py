from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppo_ray.config import CustomReward, JudgeReward, ModelReward, RewardSettings, SigmoidTransform
from sppo_ray.config.environment import ToolsEnvironment
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.launch.run_inputs import check_reward_models, decoder, load_tokenizers, try_rewards
from sppo_ray.models.tiny import byte_tokenizer
from sppo_ray.types import ScoreRequest
from tests.training_data import save_llama
from tests.unit.models.test_reward_model import character_tokenizer, save

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ROW = ScoreRequest("", "42", "own", "The sum of 20 and 22?", {})


class FakeTokenizer:
    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
        assert isinstance(ids, np.ndarray), "Transformers walks a list token by token"
        return " ".join(map(str, ids.tolist()))


def test_responses_are_decoded_as_arrays() -> None:
    rows = [np.array([1, 2], dtype=np.int32), np.empty(0, np.int32)]
    assert decoder(FakeTokenizer())(rows) == ["1 2", ""]


def test_a_reward_function_that_fails_on_the_first_row_is_told_before_an_actor_starts() -> None:
    def trial(name: str, **more: float) -> None:
        function = CustomReward(function=f"tests.unit.rewards.reward_conventions:{name}")
        try_rewards(RewardSettings(function=function, **more), ROW, "own/0", max_tokens=100)

    trial("openrlhf")
    message = r"fails on prompt own/0 .* ground truth .*: ZeroDivisionError"
    with pytest.raises(UserError, match=message) as told:
        trial("raises")
    assert re.search(r"\(reward_conventions\.py, line \d+\): let it return a number", str(told.value))
    message = r"with the response 'I do not know\.', with an empty one: ValueError: .* line \d+\): let it"
    with pytest.raises(UserError, match=message):
        trial("reads_only_numbers")
    trial("reads_only_numbers", max_error_rate=1.0)
    trial("fails_on_empty_responses")
    with pytest.raises(UserError, match=r"with a response of 390 characters: ValueError: too long"):
        trial("fails_on_long_responses")
    trial("fails_on_long_responses", max_error_rate=1.0)
    with pytest.raises(UserError, match="returned str where a number"):
        trial("returns_text")
    with pytest.raises(UserError, match="outside its declared range"):
        trial("returns_seven")


@pytest.mark.parametrize(("algorithm", "is_critics_own"), [("ppo", False), ("sao", False), ("sppo", True)])
def test_a_token_critic_reads_prompts_as_the_policy_does(
    algorithm: str, is_critics_own: bool, tmp_path: Path
) -> None:
    """An instruct model with its base model as critic: one vocabulary, two chat templates."""
    paths = [tmp_path / "policy", tmp_path / "critic"]
    for path, template in zip(paths, (CHAT, "{{ messages[0].content }}"), strict=True):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(path)
    config = load_config("quickstart", [f"--algorithm.type={algorithm}"])
    policy, critic = load_tokenizers(config, *paths)
    assert policy.chat_template == CHAT
    assert (critic.chat_template != CHAT) is is_critics_own


def test_judges_and_reward_models_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        judge = JudgeReward(url=url, model="m", rubric="{response}")
        with pytest.raises(UserError, match=f"judge {url}: cannot be reached"):
            check_reward_models(RewardSettings(function=judge), lambda line: None)
    model = ModelReward(model=str(save_llama(tmp_path)), transform=SigmoidTransform())
    with pytest.raises(UserError, match="it is a LlamaForCausalLM, which has no classification head"):
        check_reward_models(RewardSettings(function=model), lambda line: None)
    with pytest.raises(UserError, match="nowhere.*no such directory"):
        check_reward_models(RewardSettings(function=ModelReward(model="nowhere")), lambda line: None)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHAT, None),
        (
            CHAT + "{% if messages[2].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}",
            r"refuses messages of role tool \(no tools\)",
        ),
        (CHAT.replace("messages %}", "messages if m.role != 'tool' %}"), "leaves out messages of role tool"),
    ],
)
def test_a_reward_model_has_to_read_what_tools_say(template: str, said: str | None, tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(save(tmp_path))
    reward = RewardSettings(function=ModelReward(model=str(tmp_path), transform=SigmoidTransform()))
    turns = ToolsEnvironment(tools=[{"type": "calculator"}], format="hermes", max_turn_tokens=8)
    check_reward_models(reward, lambda line: None)  # for responses of one turn each will do
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        check_reward_models(reward, lambda line: None, turns)
