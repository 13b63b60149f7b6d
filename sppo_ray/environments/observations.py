"""The tokens of an observation, which are appended to the tokens of an episode.

    <|im_start|>assistant\n | 12*34 <|im_end|> | \n<|im_start|>user\n 408 <|im_end|>\n<|im_start|>assistant\n | ...
         prompt             | sampled          |       before        text                after              | sampled

The history is never tokenized again: the tokens of an action are the ones that the engine sampled.
What stands around an observation is read once from the chat template, by rendering a conversation
with and without it. A template that writes earlier messages in another way when later ones follow
(for example, one that removes the thinking of earlier turns) has no such text, and is refused.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError

from sppo_ray.config.environment import EnvironmentSettings, ObservationFormat
from sppo_ray.errors import UserError
from sppo_ray.types import token_array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER, _TEXT, _LATER = "Zq7", "Zb8", "Zk9", "Zx5"
"""Contents that no template contains."""
_THINKING = "<think>\nZt4\n</think>\n\n"


class ObservationEncoder:
    """Encodes observations for a policy."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, formats: Mapping[str, ObservationFormat]) -> None:
        """`formats` by role, from `observation_formats`."""
        self._tokenizer = tokenizer
        self._parts = {
            role: (self._tokens(form.before), self._tokens(form.after)) for role, form in formats.items()
        }

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def encode(self, text: str, role: str) -> np.ndarray:
        """Return the tokens between an action and the next, [T] int32. A special token's name in
        `text` is plain text, so a tool's output cannot end a message or begin one.
        """
        before, after = self._parts[role]
        return token_array([*before, *self._tokens(text, split_special_tokens=True), *after])

    def _tokens(self, text: str, **how: Any) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, **how)["input_ids"] if text else []


def observation_formats(
    tokenizer: PreTrainedTokenizerBase, settings: EnvironmentSettings, stop_token_ids: Sequence[int]
) -> dict[str, ObservationFormat]:
    """Return the text around an observation, by role: the setting, or what the chat template says.
    Raises UserError when the template has none.
    """
    if settings.observation_format is not None:
        return dict.fromkeys(settings.roles, settings.observation_format)
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(
            "environment: the policy has no chat template that says how an observation follows an action: "
            "set environment.observation_format, e.g. to {before: '', after: ''}"
        )
    stops = tokenizer.convert_ids_to_tokens(list(stop_token_ids))
    return {role: _of_template(tokenizer, role, stops) for role in settings.roles}


def _of_template(tokenizer: PreTrainedTokenizerBase, role: str, stops: Sequence[str]) -> ObservationFormat:
    first = _render(tokenizer, role, [_said("user", _QUESTION)])
    answer = _THINKING + _ANSWER if "think" in tokenizer.chat_template else _ANSWER
    turn = [_said("user", _QUESTION), _said("assistant", answer), _said(role, _TEXT)]
    second = _render(tokenizer, role, turn)
    third = _render(tokenizer, role, [*turn, _said("assistant", answer), _said(role, _LATER)])
    # The prompt may itself open the thinking, which the policy then continues.
    opened = next((part for part in ("<think>\n", "<think>") if first.endswith(part)), "")
    history = first + answer.removeprefix(opened)
    if not second.startswith(history) or not third.startswith(second + answer.removeprefix(opened)):
        raise UserError(
            "environment: the policy's chat template writes earlier messages in another way when later "
            "ones follow (it removes their thinking, for example), and the policy is trained on the tokens "
            "that it sampled: set environment.observation_format to the text around an observation, or "
            "change the checkpoint's chat_template"
        )
    parts = second[len(history) :].split(_TEXT)
    if len(parts) != 2:
        raise UserError(
            f"environment: the policy's chat template changes the text of a message of role {role!r}: set "
            "environment.observation_format"
        )
    before, after = parts
    ended = next((stop for stop in stops if before.startswith(stop)), "")  # the policy samples it
    return ObservationFormat(before=before.removeprefix(ended), after=after)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: PreTrainedTokenizerBase, role: str, messages: list[dict[str, str]]) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(
            f"environment: the policy's chat template refuses a message of role {role!r} after the "
            f"assistant's ({error}): set environment.observation_format, or another format of tools"
        ) from None
