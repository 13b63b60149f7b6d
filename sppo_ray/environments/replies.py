"""Checks what environments return. Both ends of an environment process check, because the process
runs code that others wrote.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sppo_ray.environments.base import Observation

MAX_TEXT_CHARS = 65_536
"""A longer observation, or longer first messages, are an error of the environment."""
ROLES = ("user", "tool")
_FIRST_ROLES = ("system", "user", "assistant")
_REASON_CHARS = 200


class BadReply(Exception):
    """The environment returned what is no observation, or no messages."""


def checked(given: Any) -> Observation:
    """Check an observation. Raises BadReply."""
    if not isinstance(given, Observation):
        raise BadReply(f"step returned {type(given).__name__}: return an Observation")
    if not isinstance(given.text, str):
        raise BadReply(f"the text of an observation is {type(given.text).__name__}: make it str")
    if len(given.text) > MAX_TEXT_CHARS:
        raise BadReply(f"an observation has {len(given.text)} characters: return at most {MAX_TEXT_CHARS}")
    if given.role not in ROLES:
        raise BadReply(f"the role of an observation is {given.role!r:.40}: make it user or tool")
    if isinstance(given.reward, bool) or not isinstance(given.reward, int | float):
        raise BadReply(f"the reward of an observation is {type(given.reward).__name__}: make it float")
    if not math.isfinite(given.reward):
        raise BadReply(f"the reward of an observation is {given.reward}")
    reason = given.reason if isinstance(given.reason, str) else ""
    return Observation(
        encodable(given.text),
        float(given.reward),
        bool(given.done),
        encodable(reason[:_REASON_CHARS]),
        given.role,
    )


def first_messages(given: Any) -> list[dict[str, str]]:
    """Check what `reset` returned: text of the user, or chat messages. Raises BadReply."""
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, Sequence) or isinstance(messages, bytes) or not messages:
        raise BadReply(f"reset returned {type(given).__name__}: return a text, or a list of messages")
    for message in messages:
        is_one = isinstance(message, Mapping) and message.get("role") in _FIRST_ROLES
        if not is_one or not isinstance(message.get("content"), str):
            raise BadReply(
                "reset returned a message that is no {role, content} of system, user or assistant with a text"
            )
    if sum(len(message["content"]) for message in messages) > MAX_TEXT_CHARS:
        raise BadReply(f"the messages of reset have more than {MAX_TEXT_CHARS} characters")
    return [{"role": one["role"], "content": encodable(one["content"])} for one in messages]


def begin_alike(messages: Sequence[Mapping[str, str]], prompt: Sequence[Mapping[str, str]]) -> bool:
    """Return whether `prompt` was made from `messages`: settings may have added a system message,
    and text at the end of a message.
    """
    added = len(prompt) - len(messages)
    return added in (0, 1) and all(
        read["role"] == one["role"] and read["content"].startswith(one["content"])
        for read, one in zip(prompt[added:], messages, strict=True)
    )


def encodable(text: str) -> str:
    """Replace lone surrogates by "?": no tokenizer and no file can hold them."""
    return text.encode(errors="replace").decode()
