"""Held-out figures from graded responses: avg@k, pass@k, maj@k with confidence intervals, lengths,
truncation, errors.

    GradedResponse* --group by prompt--> avg, pass, maj of each prompt --mean over prompts--> Scores per source
                                                                                              and
                                                                                              over
                                                                                              all:
                                                                                              EvalReport

Pure: no engine, no clock, no global random state. Every prompt has the same weight, however many of
its responses were graded. A response whose verifier failed (reward None) is counted as an error and
left out, never scored 0. A figure without data is NaN (null in JSON).
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sppo_ray.algorithms.shaping import Shaping, unshaped
from sppo_ray.evaluation.calibration import NOT_VALUED, CalibrationReport, ReliabilityBin, calibrate
from sppo_ray.intervals import Interval, bootstrap_interval
from sppo_ray.rundir.jsonlines import finite_json

BEST_REWARD = 1.0
"""Reward of a correct response where a reward function declares no range."""

ALL = "all"  # the name of the scores over all sources


@dataclass(frozen=True, slots=True)
class GradedResponse:
    """One sampled response to a held-out prompt, with its verdict."""

    prompt_id: str
    source: str
    sample_index: int  # [0, k) within its prompt
    # in the reward function's declared range; None = the verifier could not decide
    reward: float | None
    response_text: str
    num_tokens: int
    truncated: bool  # cut at max_response_tokens
    answer: str | None  # as the verifier reads it; maj@k votes on it
    parts: Mapping[str, float] = field(default_factory=dict)  # `Verdict.parts`


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures over a set of prompts; the module docstring explains the averages."""

    source: str
    num_prompts: int
    num_responses: int
    k: int  # responses per prompt; the minimum where prompts differ
    accuracy: float  # avg@k: mean reward
    accuracy_low: float  # 95 % interval of it, bootstrapped over prompts
    accuracy_high: float
    # pass@j for j = 1, 2, 4, ... and k, over the prompts with at least j graded responses
    pass_at: Mapping[int, float]
    pass_intervals: Mapping[int, Interval]
    majority: float  # maj@k
    majority_interval: Interval
    response_length_mean: float  # tokens
    response_length_max: int
    truncation_rate: float
    reward_errors: int
    reward_error_rate: float

    @property
    def is_share_solved(self) -> bool:
        """Whether `accuracy` is the share of solved responses: rewards are the lowest or the
        highest. Else partial rewards are in it.
        """
        solved = self.pass_at.get(1)
        return solved is None or math.isnan(self.accuracy) or math.isclose(solved, self.accuracy)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """One evaluation of one policy version."""

    step: int
    policy_version: int
    k: int  # responses a prompt
    overall: Scores
    by_source: tuple[Scores, ...]  # sorted by name
    # `calibration` of V(x) against a prompt's avg@k; {} = no values
    critic: Mapping[str, float] = field(default_factory=dict)
    critic_bins: tuple[ReliabilityBin, ...] = ()  # the table behind `critic`; () = no values
    seconds: float = 0.0
    # mean of each part of the reward with its 95 % interval, bootstrapped over prompts
    parts: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return self.overall.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: evaluations/*.json, summary, REST. NaN becomes null, pass_at's keys
        strings.
        """
        return finite_json(asdict(self))

    def metrics(self) -> dict[str, float]:
        """Flat names for metrics.jsonl: eval/accuracy, eval/pass@4, eval/<source>/accuracy,
        eval/value/pearson, ...
        """
        flat = dict(_score_metrics("eval", self.overall, self.k))
        for scores in self.by_source:
            flat |= _score_metrics(f"eval/{scores.source}", scores, self.k)
        flat |= {f"eval/value/{name}": figure for name, figure in self.critic.items()}
        for name, (mean, low, high) in self.parts.items():
            flat |= {f"eval/reward/{name}": mean}
            flat |= {f"eval/reward/{name}_low": low, f"eval/reward/{name}_high": high}
        return flat | {"eval/seconds": self.seconds}


def evaluate(
    responses: Sequence[GradedResponse],
    *,
    k: int,
    step: int,
    policy_version: int,
    pass_sizes: Sequence[int] = (),
    values: Mapping[str, float] | None = None,
    shaped: Shaping = unshaped,
    best_reward: float = BEST_REWARD,
    seconds: float = 0.0,
    seed: int = 0,
) -> EvalReport:
    """Compute the figures of an evaluation with `k` responses per prompt (the minimum where sources
    differ).

    `pass_sizes` are the j of pass@j; () = 1, 2, 4, ... and k; a source needs that many responses
    per prompt. With `values`, V(x) by prompt id, the report has the critic's calibration on
    held-out prompts, against `shaped` rewards, which the critic learns from. pass@j counts a
    response as correct when its reward is `best_reward`, the upper end of the range. `seed` draws
    the bootstrap. Raises ValueError when there are no responses or a prompt has the same sample
    twice.
    """
    prompts = _group(responses)
    sources = sorted({responses_of[0].source for responses_of in prompts.values()})
    by_source = []
    for source in sources:
        mine = [group for group in prompts.values() if group[0].source == source]
        by_source.append(_scores(source, mine, pass_sizes, best_reward, seed))
    overall = _scores(ALL, list(prompts.values()), pass_sizes, best_reward, seed)
    critic = _critic_calibration(prompts, values, shaped) if values else NOT_VALUED
    return EvalReport(
        step,
        policy_version,
        k,
        overall,
        tuple(by_source),
        critic.figures,
        critic.bins,
        seconds,
        _parts(list(prompts.values()), seed),
    )


def is_solved(reward: float, best_reward: float = BEST_REWARD) -> bool:
    """Whether a response is correct: it has the best possible reward. Partial credit does not
    count.
    """
    return reward >= best_reward - 1e-6


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k responses is correct, from c
    correct ones of n >= k (arXiv 2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k): one minus the share of k-subsets that hold no correct response.
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n: got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_reward(responses: Sequence[GradedResponse]) -> float:
    """Return the reward of the answer that most responses give.

    A tie goes to the answer that was given first (lowest sample index). A response without an
    answer abstains; when all abstain, the reward is 0. When responses with the same answer have
    different rewards (the verifier reads more than the answer), the first counts.
    """
    votes: dict[str, list[float]] = {}
    for response in sorted(responses, key=lambda r: r.sample_index):
        if response.answer is not None and response.reward is not None:
            votes.setdefault(response.answer, []).append(response.reward)
    if not votes:
        return 0.0
    # max keeps the first of equals, and dicts keep the order of insertion
    return max(votes.values(), key=len)[0]


# ------------------------------------------------------------------------------------------- inside

Group = list[GradedResponse]  # the responses to one prompt


def _group(responses: Sequence[GradedResponse]) -> dict[tuple[str, str], Group]:
    """Group responses by (source, prompt id) in a canonical order, so that figures do not depend on
    the order of finishing.
    """
    if not responses:
        raise ValueError("an evaluation without responses has no figures")
    prompts: dict[tuple[str, str], Group] = {}
    for response in sorted(responses, key=lambda r: (r.source, r.prompt_id, r.sample_index)):
        group = prompts.setdefault((response.source, response.prompt_id), [])
        if group and group[-1].sample_index == response.sample_index:
            raise ValueError(f"prompt {response.prompt_id}: sample {response.sample_index} was graded twice")
        group.append(response)
    return prompts


def _scores(
    source: str, groups: Sequence[Group], pass_sizes: Sequence[int], best: float, seed: int
) -> Scores:
    responses = [response for group in groups for response in group]
    graded = [group for group in groups if _rewards(group)]
    averages = [_mean(_rewards(group)) for group in graded]
    majorities = [majority_reward(group) for group in graded]
    k = min(len(group) for group in groups)
    passes = {j: _passes(graded, j, best) for j in pass_sizes or _pass_sizes(k) if j <= k}
    low, high = bootstrap_interval(averages, seed=seed)
    errors = sum(response.reward is None for response in responses)
    lengths = [response.num_tokens for response in responses]
    return Scores(
        source=source,
        num_prompts=len(groups),
        num_responses=len(responses),
        k=k,
        accuracy=_mean(averages),
        accuracy_low=low,
        accuracy_high=high,
        pass_at={j: _mean(chances) for j, chances in passes.items()},
        pass_intervals={j: bootstrap_interval(chances, seed=seed) for j, chances in passes.items()},
        majority=_mean(majorities),
        majority_interval=bootstrap_interval(majorities, seed=seed),
        response_length_mean=_mean(lengths),
        response_length_max=max(lengths),
        truncation_rate=_mean([float(response.truncated) for response in responses]),
        reward_errors=errors,
        reward_error_rate=errors / len(responses),
    )


def _parts(groups: Sequence[Group], seed: int) -> dict[str, tuple[float, float, float]]:
    names = sorted({name for group in groups for response in group for name in response.parts})
    found = {}
    for name in names:
        known = [[response.parts[name] for response in group if name in response.parts] for group in groups]
        means = [_mean(figures) for figures in known if figures]
        found[name] = (_mean(means), *bootstrap_interval(means, seed=seed))
    return found


def _rewards(group: Group) -> list[float]:
    return [response.reward for response in group if response.reward is not None]


def _passes(graded: Sequence[Group], k: int, best_reward: float) -> list[float]:
    """Return pass@k of each prompt with at least k graded responses; an error must not count as a
    failure.
    """
    enough = [rewards for group in graded if len(rewards := _rewards(group)) >= k]
    return [
        pass_at_k(len(rewards), sum(is_solved(reward, best_reward) for reward in rewards), k)
        for rewards in enough
    ]


def _pass_sizes(k: int) -> list[int]:
    return sorted({2**power for power in range(k.bit_length()) if 2**power <= k} | {k})


def _critic_calibration(
    prompts: Mapping[tuple[str, str], Group], values: Mapping[str, float], shaped: Shaping
) -> CalibrationReport:
    pairs = [
        (values[group[0].prompt_id], _mean(rewards))
        for group in prompts.values()
        if (rewards := [shaped(r.reward, r.num_tokens) for r in group if r.reward is not None])
        and group[0].prompt_id in values
    ]
    return calibrate(*zip(*pairs, strict=True)) if pairs else NOT_VALUED


def _score_metrics(prefix: str, scores: Scores, k: int) -> dict[str, float]:
    figures: dict[str, float] = {
        "accuracy": scores.accuracy,
        "accuracy_low": scores.accuracy_low,
        "accuracy_high": scores.accuracy_high,
        f"maj@{k}": scores.majority,
        "response_length": scores.response_length_mean,
        "truncation_rate": scores.truncation_rate,
        "reward_errors": scores.reward_errors,
    } | {f"pass@{j}": figure for j, figure in scores.pass_at.items()}
    return {f"{prefix}/{name}": figure for name, figure in figures.items()}


def _mean(figures: Sequence[float]) -> float:
    return math.fsum(figures) / len(figures) if figures else float("nan")
