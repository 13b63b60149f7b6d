"""The life of one sample: a frozen type for each stage, complete when it exists.

    Example --encode--> Prompt --dispatch--> RolloutRequest --generate--> Trajectory --score--> Verdict
                          |                                                  |                     |
                          '--critic--> PromptValue --------------------------+---------------------+--> TrainingSample
                                                                                                            |
                                                                               Minibatch <--- pack ---------'

No Ray, no torch: these cross process boundaries as plain Python and land in Parquet as they are.
Token lists are tuples of int, log-probs natural-log floats of the SAMPLED tokens under the distribution that was
sampled from (temperature included), one a response token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data source, before any tokenizer has seen it."""

    id: str  # "<source name>/<row>"; the same on every run, unique in a source
    source: str  # `data_source` of the field's format; metrics are broken down by it
    messages: tuple[Mapping[str, str], ...]  # chat messages, each {"role", "content"}
    ground_truth: str  # what the verifier compares with
    extra: Mapping[str, Any] = field(default_factory=dict)  # `extra_info` of the row, handed to the verifier


@dataclass(frozen=True, slots=True)
class Prompt:
    """An example as the policy and the critic read it."""

    id: str
    source: str
    text: str  # the policy's chat template applied, generation prompt included
    token_ids: tuple[int, ...]  # of `text`, policy tokenizer; [1, max_prompt_tokens]
    critic_token_ids: tuple[int, ...]  # the same messages by the CRITIC's tokenizer (may be another family)
    ground_truth: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One response asked of an engine. `seed` alone decides its random numbers, whichever worker serves it."""

    request_id: str  # unique in a run: "<step>/<index in cohort>/<sample>"
    prompt_id: str
    token_ids: tuple[int, ...]
    seed: int  # [0, 2**63)


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """What an engine samples from: softmax(logits / temperature), never truncated by top-p or top-k in training."""

    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A finished response."""

    request_id: str
    prompt_id: str
    response_ids: tuple[int, ...]  # stop token included when finish_reason == "stop"
    response_logprobs: tuple[float, ...]  # len == len(response_ids); engine's, after temperature
    finish_reason: FinishReason  # "length" = truncated at max_tokens
    policy_version: int  # weights that sampled the FIRST token; staleness counts from here
    policy_version_end: int  # weights that sampled the last one; differs when a sync came in between
    worker: str
    seconds: float  # from submission to the engine until finished


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What the verifier needs of one response."""

    response: str
    ground_truth: str
    source: str
    prompt: str
    extra: Mapping[str, Any]  # of the example; what a reasoning-gym task or a function of the user's own reads


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier said of one response.

    `reward is None` means that it could not decide (it failed, hung or crashed): the sample is counted as a reward
    error and left out of the update, never scored 0.
    """

    reward: float | None  # in the reward function's declared range, [0, 1] for all of the package's own
    reason: str  # "correct", "wrong", "no_answer", ... or "error: <what happened>"
    seconds: float
    answer: str | None = None  # what the response answers, as this verifier reads it (maj@k votes on it); None = nothing

    @property
    def is_error(self) -> bool:
        return self.reward is None


@dataclass(frozen=True, slots=True)
class PromptValue:
    """The critic's view of one prompt, taken when the prompt was dispatched (token critic: when its samples were valued)."""

    value_logit: float  # the head's output; a critic trained by squared error has no logit, and this is its value
    value: float  # sigmoid(value_logit): predicted probability that the policy solves it; squared error: the output
    critic_version: int


@dataclass(frozen=True, slots=True)
class GreedyBaseline:
    """What the greedy response to a prompt earned (ReMax)."""

    reward: float
    response_tokens: int


@dataclass(frozen=True, slots=True)
class ScoredTrajectory:
    """A trajectory with everything the advantage needs."""

    prompt: Prompt
    trajectory: Trajectory
    response_text: str
    reward: float  # the verifier's; in the reward function's declared range, checked
    reason: str
    reward_seconds: float
    value: PromptValue | None  # None without a critic
    baseline: GreedyBaseline | None = None

    @property
    def group(self) -> str:
        """The same for all samples of one prompt in one step: the request id without the number of the sample."""
        return self.trajectory.request_id.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A scored trajectory with its advantage: what the buffer hands to learner, critic and the trajectory log."""

    scored: ScoredTrajectory
    advantage: float | tuple[float, ...]  # one number a response (SPPO: reward - value), or one a response token (PPO)
    shaped_reward: float  # what advantage and critic were told; the verifier's reward unless overlong shaping is on
    token_values: tuple[float, ...] = ()  # token critic: before each response token
    returns: tuple[float, ...] = ()  # token critic: its target at each response token

    @property
    def token_advantages(self) -> tuple[float, ...]:
        """One number a response token."""
        if isinstance(self.advantage, tuple):
            return self.advantage
        return (self.advantage,) * len(self.scored.trajectory.response_ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward's worth of samples on one rank, as nested lists (the rank makes the tensors).

    Every list has one entry a sample. `weight` is 1.0, or 0.0 for a filler sample that only keeps the number of
    forwards equal on all ranks.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    response_ids: tuple[tuple[int, ...], ...]
    old_logprobs: tuple[tuple[float, ...], ...]  # of pi_old: the engine's, or the learner's before the step's first update
    rollout_logprobs: tuple[tuple[float, ...], ...]  # the engine's, always
    advantages: tuple[tuple[float, ...], ...]  # one a response token
    weights: tuple[float, ...]
    reference_logprobs: tuple[tuple[float, ...], ...] = ()  # of the frozen starting policy; () without a KL penalty


@dataclass(frozen=True, slots=True)
class Minibatch:
    """One optimizer step's worth of samples, sharded: `ranks[r]` is rank r's micro-batches, equally many on each.

    The loss is normalised by the global counts, so that it does not depend on the sharding.
    """

    ranks: tuple[tuple[MicroBatch, ...], ...]
    num_global_tokens: int  # response tokens with weight 1 over all ranks
    num_global_samples: int


@dataclass(frozen=True, slots=True)
class CriticBatch:
    """One update of a prompt critic: prompt tokens (critic's tokenizer) and the rewards they earned, both over all ranks."""

    token_ids: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]  # in [0, 1]


@dataclass(frozen=True, slots=True)
class TokenCriticBatch:
    """One update of a token critic: each sample's prompt, response, and the returns at its response tokens, over all ranks."""

    prompt_ids: tuple[tuple[int, ...], ...]  # policy's tokenizer
    response_ids: tuple[tuple[int, ...], ...]
    returns: tuple[tuple[float, ...], ...]  # target of the value BEFORE each response token; len == len(response_ids)
