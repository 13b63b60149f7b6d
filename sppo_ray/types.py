"""The life of one sample: a frozen type for each stage, complete when it exists.

    Example --encode--> Prompt --dispatch--> RolloutRequest --generate--> Trajectory --score--> Verdict
                          |                                                  |                     |
                          '--critic--> PromptValue --------------------------+---------------------+--> TrainingSample
                                                                                                            |
                                                                               Minibatch <--- pack
                                                                               ---------'

This module imports neither Ray nor torch. Its types cross process boundaries and are stored in
Parquet. Token ids are int32 arrays. Log-probs are float32 arrays with one entry per action token:
the natural log of the sampled token's probability under the sampling distribution (temperature
included).

A response is everything after the prompt. Its action tokens are those that the policy sampled: all
of them, or with an environment those of its turns, between which stand the tokens of observations.
Log-probs, advantages, values and returns exist for action tokens only, so an observation has no
place in a loss.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

NO_TOKENS = np.empty(0)
"""[0] float64: the token values and returns of a sample without a token critic."""

FinishReason = Literal["stop", "length", "turns", "context", "timeout", "error"]
"""stop: the policy or the environment ended it. length: an action was cut at its token limit. Of
episodes only: the last allowed turn, no room for a further turn, their time is up, the environment
failed.
"""


class Comparable:
    """Compares frozen dataclasses that hold arrays, field by field."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))  # type: ignore[arg-type]
        return all(
            np.array_equal(mine, theirs)
            if isinstance(mine, np.ndarray) or isinstance(theirs, np.ndarray)
            else mine == theirs
            for mine, theirs in pairs
        )


def token_array(token_ids: Sequence[int]) -> np.ndarray:
    """Convert token ids to an int32 array."""
    return np.asarray(token_ids, dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows(Comparable):
    """R rows of tokens, concatenated."""

    token_ids: np.ndarray  # [T] int32
    lengths: np.ndarray  # [R] int32, tokens of each row; their sum is T

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> TokenRows:
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        lengths = np.array([len(row) for row in arrays], dtype=np.int32)
        return cls(np.concatenate(arrays) if arrays else np.empty(0, np.int32), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Iterate over the rows, as views."""
        return iter(np.split(self.token_ids, self.lengths.cumsum()[:-1]) if len(self) else ())

    def pick(self, indices: Sequence[int]) -> TokenRows:
        """Return the rows at `indices`, in that order."""
        ends = self.lengths.cumsum()
        starts = ends - self.lengths
        return TokenRows.of([self.token_ids[starts[index] : ends[index]] for index in indices])


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data source, before tokenization."""

    id: str  # "<source name>/<row>"; the same on every run, unique in a source
    source: str  # the row's `data_source`; metrics are broken down by it
    messages: tuple[Mapping[str, str], ...]  # chat messages, each {"role", "content"}
    ground_truth: str  # what the verifier compares with
    # `extra_info` of the row, passed to the verifier
    extra: Mapping[str, Any] = field(default_factory=dict)
    # text of the row's own messages, where an environment made `messages` from it; else None
    row_text: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prompt(Comparable):
    """An example, tokenized for the policy and for the critic."""

    id: str
    source: str
    text: str  # the policy's chat template applied, generation prompt included
    token_ids: np.ndarray  # [T] int32 of `text`, policy tokenizer; T in [1, max_prompt_tokens]
    # [T'] int32: the same messages by the critic's tokenizer, which may be another one
    critic_token_ids: np.ndarray
    ground_truth: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    # what `text` was rendered from; reward models and judges read it
    messages: tuple[Mapping[str, str], ...] = ()
    row_text: str | None = None  # of the example

    def __post_init__(self) -> None:
        shared = self.critic_token_ids is self.token_ids
        object.__setattr__(self, "token_ids", token_array(self.token_ids))
        critic_ids = self.token_ids if shared else token_array(self.critic_token_ids)
        object.__setattr__(self, "critic_token_ids", critic_ids)


@dataclass(frozen=True, slots=True)
class RequestId:
    """Identifies one response of a run. Files and engines use its text, "step-3/17/0"."""

    purpose: str  # "step-3", "step-3.1" (a further draw), "step-3-greedy" or "evaluation"
    index: int  # position of the prompt among the prompts of this purpose
    sample: int  # number of the sample within its prompt

    @classmethod
    def parse(cls, text: str) -> RequestId:
        purpose, index, sample = text.rsplit("/", 2)
        return cls(purpose, int(index), int(sample))

    def __str__(self) -> str:
        return f"{self.group}/{self.sample}"

    @property
    def group(self) -> str:
        """The text without the sample number; equal for all samples of one prompt."""
        return f"{self.purpose}/{self.index}"


@dataclass(frozen=True, slots=True, eq=False)
class RolloutRequest(Comparable):
    """A request for one response. `seed` alone determines its random numbers, on any worker."""

    request_id: RequestId  # unique in a run
    prompt_id: str
    token_ids: np.ndarray  # [T] int32
    seed: int  # [0, 2**63)
    # the worker that has most of these tokens in its prefix cache; "" = none in particular
    prefers: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", token_array(self.token_ids))


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling from softmax(logits / temperature), without top-p or top-k truncation."""

    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Turns(Comparable):
    """The K turns of an episode. Its response is action, observation, action, ..., action."""

    # tokens of each action and of the observation after it; the last observation has none
    lengths: np.ndarray  # [K, 2] int32
    versions: np.ndarray  # [K, 2] int64: policy version of each action's first and last token
    rewards: np.ndarray  # [K] float64: the environment's part of the reward for each action
    reason: str  # the environment's last word: "found", ..., or "error: <what happened>"
    seconds: float  # in the environment
    # action, observation, ..., action as text, [2 K - 1]; empty in files of older releases
    texts: tuple[str, ...] = ()
    role: str = "user"  # of the observations: "user" or "tool"

    @property
    def action_mask(self) -> np.ndarray:
        """Whether the policy sampled each response token, [R] bool."""
        return np.repeat(np.tile([True, False], len(self.lengths)), self.lengths.reshape(-1))

    @property
    def messages(self) -> tuple[Mapping[str, str], ...]:
        """What comes before the last action, as chat messages: actions and observations in turn."""
        roles = itertools.cycle(("assistant", self.role))
        said = zip(roles, self.texts[:-1], strict=False)
        return tuple({"role": role, "content": text} for role, text in said)


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory(Comparable):
    """A finished response of R tokens; A of them are actions."""

    request_id: RequestId
    prompt_id: str
    response_ids: np.ndarray  # [R] int32, stop token included when finish_reason == "stop"
    response_logprobs: np.ndarray  # [A] float32, from the engine, after temperature
    finish_reason: FinishReason
    policy_version: int  # weights that sampled the first token; staleness is measured from it
    # weights that sampled the last token; differs after a weight sync during generation
    policy_version_end: int
    worker: str  # of an episode: the engine of the last turn
    seconds: float  # from submission to the engine until the last token
    turns: Turns | None = None  # None without an environment: all tokens are actions

    def __post_init__(self) -> None:
        object.__setattr__(self, "response_ids", token_array(self.response_ids))
        logprobs = np.asarray(self.response_logprobs, dtype=np.float32)
        object.__setattr__(self, "response_logprobs", logprobs)

    @property
    def action_mask(self) -> np.ndarray | None:
        """Whether the policy sampled each response token, [R] bool; None = all of them."""
        return None if self.turns is None else self.turns.action_mask

    @property
    def num_actions(self) -> int:
        """The number of action tokens, A."""
        return len(self.response_ids) if self.turns is None else int(self.turns.lengths[:, 0].sum())

    @property
    def is_truncated(self) -> bool:
        """Whether it was cut off for its length: of an episode, also where the next turn has no
        room.
        """
        return self.finish_reason in ("length", "context")


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryBlock(Comparable):
    """B responses with N tokens that an engine finished at about the same time, as columns."""

    worker: str
    request_ids: tuple[str, ...]  # [B] texts of RequestId
    responses: TokenRows  # B rows
    logprobs: np.ndarray  # [N] float32
    is_stopped: np.ndarray  # [B] bool: finish reason "stop" (true) or "length" (false)
    versions: np.ndarray  # [B, 2] int64: policy version of the first and of the last token
    seconds: np.ndarray  # [B] float64

    def trajectories(self, prompt_ids: Mapping[str, str]) -> list[Trajectory]:
        """Return one Trajectory per response, with views of the columns.

        `prompt_ids` maps request id to prompt id.
        """
        logprobs = np.split(self.logprobs, self.responses.lengths.cumsum()[:-1])
        rows = zip(
            self.request_ids,
            self.responses,
            logprobs,
            self.is_stopped.tolist(),
            self.versions.tolist(),
            self.seconds.tolist(),
            strict=True,
        )
        return [
            Trajectory(
                request_id=RequestId.parse(request_id),
                prompt_id=prompt_ids[request_id],
                response_ids=response_ids,
                response_logprobs=response_logprobs,
                finish_reason="stop" if is_stopped else "length",
                policy_version=first,
                policy_version_end=last,
                worker=self.worker,
                seconds=seconds,
            )
            for request_id, response_ids, response_logprobs, is_stopped, (first, last), seconds in rows
        ]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The verifier's input for one response."""

    response: str
    ground_truth: str
    source: str
    prompt: str
    # `Example.extra`; reasoning-gym tasks and user functions read it
    extra: Mapping[str, Any]
    messages: tuple[Mapping[str, str], ...] = ()  # of the prompt
    # of an episode: the actions and observations before the last action, which is the response
    turns: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def of(cls, prompt: Prompt, response: str, turns: Turns | None = None) -> ScoreRequest:
        row = (prompt.ground_truth, prompt.source, prompt.text, prompt.extra, prompt.messages)
        return cls(response, *row, () if turns is None else turns.messages)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's result for one response.

    `reward is None` means that the verifier failed, hung or crashed. The sample is then counted as
    a reward error and left out of the update. It is never scored 0.
    """

    # in the reward function's declared range, which is [0, 1] for all built-in functions
    reward: float | None
    reason: str  # "correct", "wrong", "no_answer", ... or "error: <what happened>"
    seconds: float
    # the answer that the verifier extracted; maj@k votes on it; None = no answer found
    answer: str | None = None
    # what the reward consists of, by name: a reward model's "score", the parts of a combination
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_error(self) -> bool:
        return self.reward is None


@dataclass(frozen=True, slots=True)
class PromptValue:
    """The critic's value of one prompt.

    A prompt critic computes it when the prompt is dispatched, a token critic when it values the
    prompt's samples.
    """

    value_logit: float  # the head's output
    # sigmoid(value_logit): predicted probability that the policy solves the prompt; for a critic
    # trained by squared error, the head's output itself
    value: float
    critic_version: int


@dataclass(frozen=True, slots=True)
class GreedyBaseline:
    """The reward and length of the greedy response to a prompt (ReMax)."""

    reward: float
    response_tokens: int


@dataclass(frozen=True, slots=True)
class PromptHistory:
    """What the past rewards of a prompt say of it (`algorithms.tracker`)."""

    rate: float  # estimated success rate, in [0, 1]
    weight: float  # number of rewards that the rate is worth; 0 = the prompt has none yet
    share: float  # weight of the rate in the baseline, in [0, 1]; the rest is the critic's value


@dataclass(frozen=True, slots=True)
class ScoredTrajectory:
    """A trajectory with all inputs of the advantage."""

    prompt: Prompt
    trajectory: Trajectory
    response_text: str
    reward: float  # from the verifier; checked against the reward function's declared range
    reason: str
    reward_seconds: float
    value: PromptValue | None  # None without a critic
    baseline: GreedyBaseline | None = None
    # of the prompt before the step; None without a tracker
    history: PromptHistory | None = None
    parts: Mapping[str, float] = field(default_factory=dict)  # `Verdict.parts`

    @property
    def group(self) -> str:
        """Equal for all samples of one prompt in one step."""
        return self.trajectory.request_id.group


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSample(Comparable):
    """A scored trajectory of A action tokens with its advantage; input of learner, critic and
    trajectory log.
    """

    scored: ScoredTrajectory
    # one number per response (SPPO: reward - value), or one per action token (PPO), [A] float64
    advantage: float | np.ndarray
    # the reward used for advantage and critic; equals `scored.reward` without overlong shaping
    shaped_reward: float
    # token critic: value before each action token, [A] float64; else empty
    token_values: np.ndarray = field(default_factory=lambda: NO_TOKENS)
    # token critic: target of the value before each action token, [A] float64; else empty
    returns: np.ndarray = field(default_factory=lambda: NO_TOKENS)

    @property
    def token_advantages(self) -> np.ndarray:
        """The advantage of each action token, [A] float64."""
        if isinstance(self.advantage, np.ndarray):
            return self.advantage
        return np.full(self.scored.trajectory.num_actions, self.advantage)

    @property
    def mean_advantage(self) -> float:
        """The mean advantage of the action tokens, from their exact sum."""
        if isinstance(self.advantage, np.ndarray):
            return math.fsum(self.advantage.data) / len(self.advantage)
        return self.advantage


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch(Comparable):
    """The samples of one forward pass on one rank: B rows with T tokens, concatenated.

    The [N] arrays have one entry per action token, row after row. A filler row has weight 0. It
    only keeps the number of forward passes equal on all ranks.
    """

    token_ids: np.ndarray  # [T] int32, prompt and response of each row
    prompt_lengths: np.ndarray  # [B] int32, >= 1
    response_lengths: np.ndarray  # [B] int32, >= 1
    # log pi_old: from the engine, or from the learner before the step's first update
    old_logprobs: np.ndarray  # [N] float32
    rollout_logprobs: np.ndarray  # [N] float32, always from the engine
    advantages: np.ndarray  # [N] float32
    weights: np.ndarray  # [B] float32, 1 or 0
    # from the frozen starting policy; None without a KL penalty
    reference_logprobs: np.ndarray | None = None  # [N] float32
    # [sum of response_lengths] bool: which response tokens are actions; None = all
    action_mask: np.ndarray | None = None

    @property
    def action_ids(self) -> np.ndarray:
        """The action tokens, row after row, [N] int32."""
        return self.token_ids[self.action_positions]

    @property
    def action_lengths(self) -> np.ndarray:
        """The number of action tokens of each row, [B] int32."""
        if self.action_mask is None:
            return self.response_lengths
        starts = self.response_lengths.cumsum() - self.response_lengths
        return np.add.reduceat(self.action_mask, starts, dtype=np.int32)

    @property
    def action_positions(self) -> np.ndarray:
        """The positions of the action tokens in `token_ids`, [N] int64."""
        lengths = self.response_lengths.astype(np.int64)
        ends = (self.prompt_lengths + lengths).cumsum()
        first = np.repeat(ends - lengths - (lengths.cumsum() - lengths), lengths)
        positions = first + np.arange(len(first))
        return positions if self.action_mask is None else positions[self.action_mask]


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The samples of one optimizer step, sharded over the learner's ranks.

    The loss is divided by the global counts, so it does not depend on the sharding.
    """

    ranks: tuple[tuple[MicroBatch, ...], ...]  # [rank][micro-batch], equally many per rank
    num_global_tokens: int  # action tokens with weight 1, over all ranks
    num_global_samples: int  # rows with weight 1, over all ranks


@dataclass(frozen=True, slots=True, eq=False)
class CriticBatch(Comparable):
    """The data of one update of a prompt critic, over all ranks."""

    prompts: TokenRows  # R rows, critic's tokenizer
    rewards: np.ndarray  # [R] float32, in [0, 1]


@dataclass(frozen=True, slots=True, eq=False)
class TokenCriticBatch(Comparable):
    """The data of one update of a token critic, over all ranks."""

    prompts: TokenRows  # R rows, policy's tokenizer
    responses: TokenRows  # R rows
    returns: np.ndarray  # [N] float32, target of the value before each of the N action tokens
    # [tokens of responses] bool: which response tokens are actions; None = all
    action_mask: np.ndarray | None = None
