"""Examples to prompts: the chat template applied and tokenized, for the policy and for the critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from sppo_ray.config import DataSettings
from sppo_ray.errors import UserError
from sppo_ray.types import Example, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


class PromptEncoder:
    """Applies `system_prompt`, `prompt_suffix` and each model's own chat template, and tokenizes. Never cuts.

    `prompt_suffix` is appended as it is, without a space. A tokenizer without chat template reads the messages'
    plain text, two line breaks between them.
    """

    def __init__(
        self,
        policy_tokenizer: PreTrainedTokenizerBase,
        critic_tokenizer: PreTrainedTokenizerBase,
        settings: DataSettings,
    ) -> None:
        self._settings = settings
        self._policy = _Reader(policy_tokenizer, "policy")
        shared = _read_alike(policy_tokenizer, critic_tokenizer)
        self._critic = self._policy if shared else _Reader(critic_tokenizer, "critic")

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Prompts of any length: whether they fit is for the caller to judge (`longest`).

        Raises UserError naming the prompt when a chat template refuses its messages or a tokenizer does not know half of it.
        """
        conversations = [self._messages(example) for example in examples]
        ids = [example.id for example in examples]
        texts, policy_ids = self._policy.read(conversations, ids)
        critic_ids = policy_ids if self._critic is self._policy else self._critic.read(conversations, ids)[1]
        return [
            Prompt(example.id, example.source, text, policy, critic, example.ground_truth, example.extra)
            for example, text, policy, critic in zip(examples, texts, policy_ids, critic_ids, strict=True)
        ]

    def _messages(self, example: Example) -> Messages:
        messages = [dict(message) for message in example.messages]
        system, suffix = self._settings.system_prompt, self._settings.prompt_suffix
        if suffix:
            from_user = [message for message in messages if message["role"] == "user"]
            if not from_user:
                raise UserError(f"prompt {example.id}: has no user message for data.prompt_suffix: remove the row or the setting")
            from_user[-1]["content"] += suffix
        if system and all(message["role"] != "system" for message in messages):
            messages.insert(0, {"role": "system", "content": system})
        return messages


def longest(prompt: Prompt) -> int:
    """Tokens of the prompt for whichever model needs more; this is what `max_prompt_tokens` bounds."""
    return max(len(prompt.token_ids), len(prompt.critic_token_ids))


class _Reader:
    """One tokenizer with its chat template, if it has one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        self._tokenizer = tokenizer
        self._model = model  # "policy" or "critic", for messages
        # A chat template writes the special tokens itself; tokenizing its text with them would begin with BOS twice.
        self._bos = [] if tokenizer.chat_template else _own_bos(tokenizer)

    def read(self, conversations: Sequence[Messages], ids: Sequence[str]) -> tuple[list[str], list[tuple[int, ...]]]:
        """Text and token ids of each conversation, generation prompt included."""
        texts = [self._render(messages, of) for messages, of in zip(conversations, ids, strict=True)]
        if not texts:
            return [], []
        read = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for tokens, of in zip(read, ids, strict=True):
            self._check_known(tokens, of)
        return texts, [tuple(self._bos + tokens) for tokens in read]

    def _check_known(self, tokens: list[int], of: str) -> None:
        # A few unknown characters are for the model to bear; most of them means that data and model are not of a kind.
        unknown = tokens.count(self._tokenizer.unk_token_id)
        if 2 * unknown >= len(tokens):
            raise UserError(
                f"prompt {of}: the {self._model}'s tokenizer knows {len(tokens) - unknown} of its {len(tokens)} tokens: "
                "use a model that reads this text"
            )

    def _render(self, messages: Messages, of: str) -> str:
        if not self._tokenizer.chat_template:
            return "\n\n".join(message["content"] for message in messages)
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"prompt {of}: the {self._model}'s chat template refuses its messages ({error}; roles: {roles}): change the "
                "messages, or unset data.system_prompt if the template takes no system message"
            ) from None


def _own_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] when the tokenizer puts it in front of plain text by itself. What it may append (EOS) is no part of a prompt."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _read_alike(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for the same messages, so that one pass serves both."""
    if a is b:
        return True
    backends: list[Mapping | str] = [t.backend_tokenizer.to_str() if t.is_fast else f"slow {id(t)}" for t in (a, b)]
    return backends[0] == backends[1] and a.chat_template == b.chat_template and a.special_tokens_map == b.special_tokens_map
