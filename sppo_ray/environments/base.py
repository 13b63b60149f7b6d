"""An environment answers the policy's actions.

    Environment(row, seed)                     an episode begins; equal arguments, equal episode
    reset(seed) -> first messages              optional: what the policy reads first
    step(action) -> Observation                what the policy reads next, a part of the reward,
                                               whether the episode ends

One object is one episode. It runs in a process that is killed at the deadline, and an episode whose
process ended is repeated in another one from its seeds and its actions. So an environment depends
on nothing else, and a tool with effects outside must bear being called again.

Without `reset` the messages of the data row are the first ones. The seed of `reset` belongs to the
row, that of the episode to the sample: all samples of a row begin alike, because the critic values
their common prompt, and group algorithms compare them.

A task of a single turn needs no environment: its reward function scores the response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sppo_ray.seeding import derive_seed
from sppo_ray.types import Example, Prompt

Messages = Sequence[Mapping[str, str]]
"""Chat messages, each {"role", "content"}."""


@dataclass(frozen=True, slots=True)
class Row:
    """What an environment knows of its episode's data row."""

    # as the policy reads it, chat template applied; with `reset` the text of the row's own messages
    prompt: str
    ground_truth: str
    source: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""  # "<source name>/<row>"
    messages: tuple[Mapping[str, str], ...] = ()  # the prompt's, that of the system included

    @classmethod
    def of(cls, prompt: Prompt) -> Row:
        text = prompt.text if prompt.row_text is None else prompt.row_text
        return cls(text, prompt.ground_truth, prompt.source, prompt.extra, prompt.id, prompt.messages)

    @classmethod
    def before_reset(cls, example: Example) -> Row:
        """The row of an example whose first messages are to be made."""
        return cls(
            text_of(example.messages), example.ground_truth, example.source, example.extra, example.id
        )

    @property
    def reset_seed(self) -> int:
        """The seed of `reset`, [0, 2**63)."""
        return derive_seed("reset", self.id)


def text_of(messages: Messages) -> str:
    return "\n\n".join(message["content"] for message in messages)


@dataclass(frozen=True, slots=True)
class Observation:
    """The environment's answer to an action."""

    text: str = ""  # what the policy reads next; not used when the episode ends
    reward: float = 0.0  # this action's part of the episode's reward
    done: bool = False
    reason: str = ""  # a word for logs, e.g. "found"
    role: str = "user"  # of the message: "user" or "tool"


class Environment(Protocol):
    """One episode."""

    def step(self, action: str) -> Observation | Awaitable[Observation]:
        """Answer the policy's text, without special tokens. A coroutine function waits without
        blocking other episodes; a plain function runs in a thread.
        """
        ...


class ResettableEnvironment(Environment, Protocol):
    """One episode that makes its first messages itself."""

    def reset(self, seed: int) -> str | Messages | Awaitable[str | Messages]:
        """Return what the policy reads first: the text of a user message, or chat messages. Called
        once, before the first step, and once when the row is read; `row` and `seed` alone determine
        the result.
        """
        ...


MakeEnvironment = Callable[[Row, int], Environment]
"""(row, seed) -> a new episode."""


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A step of an episode, with all that is needed to repeat it from the start."""

    episode: str  # unique while it lasts
    row: Row
    seed: int  # [0, 2**63)
    # all of the episode; the last one is to be answered. () = only begin it
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The environment's answer, or why there is none."""

    observation: Observation
    seconds: float
    error: str = ""
    messages: tuple[Mapping[str, str], ...] = ()  # of `reset`, if the request has no action
