"""The value of prompts, by an exported critic."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sppo_ray.config import DataSettings
from sppo_ray.data.encoder import PromptEncoder
from sppo_ray.evaluation.critic_card import settings_of_card, tools_of_card
from sppo_ray.models.exported_critic import ExportedCritic, check_value_head
from sppo_ray.types import Example


def values_of(directory: Path, prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> list[float]:
    """Return the value of each prompt, [0, 1], read as the critic learned it (its card's system
    prompt, suffix and tools). Raises UserError for a directory without a prompt critic, and for a
    prompt that it cannot read.
    """
    check_value_head(directory, required=True)
    learned = settings_of_card(directory)["data"] or {"max_prompt_tokens": sys.maxsize}
    data = DataSettings.model_validate(learned | {"train": [{"type": "running-sum"}]})  # needs a source
    critic = ExportedCritic(directory)
    encoder = PromptEncoder(critic.tokenizer, critic.tokenizer, data, tools=tools_of_card(directory))
    examples = [
        Example(id=f"prompts/{row}", source="prompts", messages=_messages(prompt), ground_truth="", extra={})
        for row, prompt in enumerate(prompts)
    ]
    read = encoder.encode(examples)
    return [one.value for one in critic.values([prompt.critic_token_ids for prompt in read])]


def _messages(prompt: str | Sequence[Mapping[str, str]]) -> tuple[dict[str, str], ...]:
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},)
    return tuple(dict(message) for message in prompt)
