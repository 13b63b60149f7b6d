"""An environment answers the policy's actions.

    Environment(row, seed)                     an episode begins; equal arguments, equal episode
    step(action) -> Observation                what the policy reads next, a part of the reward,
                                               whether the episode ends

One object is one episode. It runs in a process that is killed at the deadline, and an episode whose
process ended is repeated in another one from its seed and its actions. So an environment depends on
nothing else, and a tool with effects outside must bear being called again.

A task of a single turn needs no environment: its reward function scores the response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sppo_ray.types import Prompt


@dataclass(frozen=True, slots=True)
class Row:
    """What an environment knows of its episode's data row."""

    prompt: str  # as the policy reads it, chat template applied
    ground_truth: str
    source: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Prompt) -> Row:
        return cls(prompt.text, prompt.ground_truth, prompt.source, prompt.extra)


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


MakeEnvironment = Callable[[Row, int], Environment]
"""(row, seed) -> a new episode."""


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A step of an episode, with all that is needed to repeat it from the start."""

    episode: str  # unique while it lasts
    row: Row
    seed: int  # [0, 2**63)
    actions: tuple[str, ...]  # all of the episode; the last one is to be answered


@dataclass(frozen=True, slots=True)
class StepResult:
    """The environment's answer, or why there is none."""

    observation: Observation
    seconds: float
    error: str = ""
