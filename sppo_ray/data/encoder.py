"""Converts examples to prompts: applies the chat template and tokenizes, for policy and critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError

from sppo_ray.config import DataSettings
from sppo_ray.data.critic_suffix import filled
from sppo_ray.data.render_guard import (
    GROWTH_BYTES,
    LONGEST_TEXT,
    RENDER_S,
    RenderTooLarge,
    bounded_rendering,
    problem_of,
)
from sppo_ray.errors import UserError
from sppo_ray.types import Example, Prompt, token_array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sppo_ray.data.sources import Reset

Messages = list[dict[str, str]]
ToolList = str | Sequence[Mapping[str, Any]]
"""Tools as a chat template takes them, or their description for a system message."""


class PromptEncoder:
    """Applies `system_prompt`, `prompt_suffix` and each model's chat template, and tokenizes.

    Prompts are never truncated. `prompt_suffix` is appended without a space, and after it, for the
    critic alone, `critic_suffix`. Without a chat template, the text of a prompt is the content of
    its messages, joined by two line breaks.
    """

    def __init__(
        self,
        policy_tokenizer: PreTrainedTokenizerBase,
        critic_tokenizer: PreTrainedTokenizerBase,
        settings: DataSettings,
        *,
        tools: ToolList | None = None,
        reset: Reset | None = None,
    ) -> None:
        """`tools`: what the prompts say of an environment's tools; None = nothing. `reset`: of an
        environment that makes the first messages; sources that the encoder reads are opened with
        it.
        """
        self._settings = settings
        self.reset = reset
        self._described = tools if isinstance(tools, str) else None
        listed = None if isinstance(tools, str) else tools
        self._policy = _Reader(policy_tokenizer, "policy", listed)
        shared = settings.critic_suffix is None and _read_alike(policy_tokenizer, critic_tokenizer)
        self._critic = self._policy if shared else _Reader(critic_tokenizer, "critic", listed)

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Return the prompts of `examples`. The caller checks their length with `longest`.

        Raises UserError naming the prompt when a chat template refuses its messages, or when at
        least half of its tokens are unknown to a tokenizer.
        """
        conversations = [self._messages(example) for example in examples]
        ids = [example.id for example in examples]
        texts, policy_ids = self._policy.read(conversations, ids)
        if self._critic is self._policy:
            critic_ids = policy_ids
        else:
            critic_ids = self._critic.read(self._for_critic(conversations, examples), ids)[1]
        return [
            Prompt(
                example.id,
                example.source,
                text,
                policy,
                critic,
                example.ground_truth,
                example.extra,
                tuple(messages),
                example.row_text,
            )
            for example, messages, text, policy, critic in zip(
                examples, conversations, texts, policy_ids, critic_ids, strict=True
            )
        ]

    def _messages(self, example: Example) -> Messages:
        messages = [dict(message) for message in example.messages]
        system, suffix = self._settings.system_prompt, self._settings.prompt_suffix
        if suffix:
            _append(messages, suffix, example, "data.prompt_suffix")
        if system and all(message["role"] != "system" for message in messages):
            messages.insert(0, {"role": "system", "content": system})
        if self._described and messages[0]["role"] == "system":
            messages[0]["content"] += f"\n\n{self._described}"
        elif self._described:
            messages.insert(0, {"role": "system", "content": self._described})
        return messages

    def _for_critic(
        self, conversations: Sequence[Messages], examples: Sequence[Example]
    ) -> Sequence[Messages]:
        suffix = self._settings.critic_suffix
        if suffix is None:
            return conversations
        own = [[dict(message) for message in messages] for messages in conversations]
        for messages, example in zip(own, examples, strict=True):
            _append(messages, filled(suffix, example), example, "data.critic_suffix")
        return own


def _append(messages: Messages, text: str, example: Example, setting: str) -> None:
    """Append `text` to the last user message. Raises UserError when there is none."""
    from_user = [message for message in messages if message["role"] == "user"]
    if not from_user:
        raise UserError(
            f"prompt {example.id}: has no user message for {setting}: remove the row or the setting"
        )
    from_user[-1]["content"] += text


def longest(prompt: Prompt) -> int:
    """Return the larger of the prompt's token counts for policy and critic.

    `max_prompt_tokens` limits this number.
    """
    return max(len(prompt.token_ids), len(prompt.critic_token_ids))


class _Reader:
    """A tokenizer with its chat template, if it has one."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: str,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template_keys = {} if tools is None else {"tools": list(tools)}
        self._model = model  # "policy" or "critic", for messages
        problem = problem_of(tokenizer.chat_template) if isinstance(tokenizer.chat_template, str) else None
        if problem is not None:
            raise UserError(
                f"the {model}'s chat template {problem}: use another checkpoint, or fix its chat_template"
            )
        # A chat template writes the special tokens itself. The tokenizer would add a second BOS.
        self._bos = [] if tokenizer.chat_template else _own_bos(tokenizer)

    def read(
        self, conversations: Sequence[Messages], ids: Sequence[str]
    ) -> tuple[list[str], list[np.ndarray]]:
        """Return text and token ids ([T] int32) of each conversation with generation prompt."""
        texts = self._rendered(conversations, ids)
        if not texts:
            return [], []
        read = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        for tokens, of in zip(read, ids, strict=True):
            self._check_known(tokens, of)
        return texts, [token_array(self._bos + tokens) for tokens in read]

    def _rendered(self, conversations: Sequence[Messages], ids: Sequence[str]) -> list[str]:
        if not self._tokenizer.chat_template or not conversations:
            return [self._render(messages, of) for messages, of in zip(conversations, ids, strict=True)]
        texts: list[str] = []
        try:
            with bounded_rendering(len(conversations)):
                for messages, of in zip(conversations, ids, strict=True):
                    texts.append(self._render(messages, of))
                    self._check_length(texts[-1], of)
        except (RenderTooLarge, MemoryError):
            raise UserError(
                f"prompt {ids[min(len(texts), len(ids) - 1)]}: the {self._model}'s chat template takes more "
                "than "
                f"{RENDER_S:g} s or {GROWTH_BYTES >> 30} GiB to render it: use another checkpoint, or fix "
                "its chat_template"
            ) from None
        return texts

    def _check_length(self, text: str, of: str) -> None:
        if len(text) > LONGEST_TEXT:
            raise UserError(
                f"prompt {of}: the {self._model}'s chat template makes {len(text)} characters of it: no "
                "prompt has more than "
                f"{LONGEST_TEXT}; use another checkpoint, or fix its chat_template"
            )

    def _check_known(self, tokens: list[int], of: str) -> None:
        # A few unknown tokens are acceptable. Mostly unknown tokens mean that the model cannot read
        # the language of the data.
        unknown = tokens.count(self._tokenizer.unk_token_id)
        if 2 * unknown >= len(tokens):
            raise UserError(
                f"prompt {of}: the {self._model}'s tokenizer knows {len(tokens) - unknown} of its "
                f"{len(tokens)} tokens: "
                "use a model that reads this text"
            )

    def _render(self, messages: Messages, of: str) -> str:
        if not self._tokenizer.chat_template:
            return "\n\n".join(message["content"] for message in messages)
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._template_keys
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"prompt {of}: the {self._model}'s chat template refuses its messages ({error}; roles: "
                f"{roles}): change the "
                "messages, or unset data.system_prompt if the template takes no system message"
            ) from None


def _own_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return [BOS] if the tokenizer adds it to plain text, else []. EOS is not part of a prompt."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _read_alike(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers give equal ids for equal messages; then one pass is enough."""
    if a is b:
        return True
    backends: list[Mapping | str] = [
        t.backend_tokenizer.to_str() if t.is_fast else f"slow {id(t)}" for t in (a, b)
    ]
    return (
        backends[0] == backends[1]
        and a.chat_template == b.chat_template
        and a.special_tokens_map == b.special_tokens_map
    )
