"""Computes the metrics of a step's samples: rewards, lengths, values, advantages, staleness."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from sppo_ray.evaluation.calibration import calibration
from sppo_ray.evaluation.scores import BEST_REWARD, is_solved
from sppo_ray.trainer.score_drift import is_score
from sppo_ray.types import FinishReason, TrainingSample, Trajectory

NEAR = 0.05
"""A value this close to 0 or 1 counts as near it."""


def summarise_samples(
    samples: Sequence[TrainingSample], learner_version: int, best_reward: float = BEST_REWARD
) -> dict[str, float]:
    """Return the metrics of a step's samples. Raises ValueError for no samples.

    `learner_version` is the policy version before the step's first update. The staleness of a
    sample is learner_version minus the version that sampled its first token.
    """
    if not samples:
        raise ValueError("summarise_samples needs at least one sample")
    scored = [sample.scored for sample in samples]
    rewards = [item.reward for item in scored]
    return (
        {
            "samples/count": len(samples),
            "reward/mean": _mean(rewards),
            "reward/std": statistics.pstdev(rewards),
        }
        | _spread("reward/seconds_", [item.reward_seconds for item in scored])
        | _parts([item.parts for item in scored])
        | _accuracy(samples, best_reward)
        | _responses(samples)
        | _values(samples)
        | _histories(samples)
        | _advantages([sample.mean_advantage for sample in samples])
        | _staleness([learner_version - item.trajectory.policy_version for item in scored])
    )


def _parts(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return reward/<part>, the mean over the samples that have it, and the standard deviation of
    scores.
    """
    names = sorted({name for parts in samples for name in parts})
    known = {name: [parts[name] for parts in samples if name in parts] for name in names}
    return {f"reward/{name}": _mean(figures) for name, figures in known.items()} | {
        f"reward/{name}_std": statistics.pstdev(figures)
        for name, figures in known.items()
        if is_score(name)
    }


def _accuracy(samples: Sequence[TrainingSample], best_reward: float) -> dict[str, float]:
    by_source: dict[str, list[bool]] = {}
    for sample in samples:
        by_source.setdefault(sample.scored.prompt.source, []).append(
            is_solved(sample.scored.reward, best_reward)
        )
    return {f"accuracy/{source}": _mean(solved) for source, solved in sorted(by_source.items())}


def _responses(samples: Sequence[TrainingSample]) -> dict[str, float]:
    trajectories = [sample.scored.trajectory for sample in samples]
    lengths = [trajectory.num_actions for trajectory in trajectories]
    return (
        {"response/tokens": sum(lengths)}
        | _spread("response/length_", lengths)
        | {"response/truncation_rate": _mean([t.is_truncated for t in trajectories])}
        | _spread("rollout/seconds_", [t.seconds for t in trajectories])
        | {
            "rollout/mixed_version_rate": _mean(
                [t.policy_version != t.policy_version_end for t in trajectories]
            )
        }
        | _episodes([t for t in trajectories if t.turns is not None])
    )


def _episodes(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Describe the episodes of an environment. Empty without one."""
    turns = [trajectory.turns for trajectory in trajectories if trajectory.turns is not None]
    if not turns:
        return {}
    ends = Counter(trajectory.finish_reason for trajectory in trajectories)
    return (
        _spread("episode/turns_", [len(one.lengths) for one in turns])
        | _spread("episode/observation_tokens_", [int(one.lengths[:, 1].sum()) for one in turns])
        | _spread("episode/environment_seconds_", [one.seconds for one in turns])
        | {f"episode/end_{reason}": ends[reason] / len(turns) for reason in get_args(FinishReason)}
    )


def _values(samples: Sequence[TrainingSample]) -> dict[str, float]:
    """Compare the critic's values with the shaped rewards that it learns. Empty without a
    critic.
    """
    pairs = [(s.scored.value.value, s.shaped_reward) for s in samples if s.scored.value is not None]
    if not pairs:
        return {}
    values, rewards = zip(*pairs, strict=True)
    spread = {
        "value/mean": _mean(values),
        "value/std": statistics.pstdev(values),
        "value/near_0": _mean([value < NEAR for value in values]),
        "value/near_1": _mean([value > 1.0 - NEAR for value in values]),
        "value/explained_variance": explained_variance(values, rewards),
    }
    if len(samples[0].token_values):
        spread["value/token_explained_variance"] = explained_variance(
            np.concatenate([sample.token_values for sample in samples]),
            np.repeat([s.shaped_reward for s in samples], [len(s.token_values) for s in samples]),
        )
    return spread | {f"value/{name}": figure for name, figure in calibration(values, rewards).items()}


def _histories(samples: Sequence[TrainingSample]) -> dict[str, float]:
    """Compare the tracker's rates with the rewards. Empty without a tracker."""
    known = [(s.scored.history, s.shaped_reward) for s in samples if s.scored.history is not None]
    if not known:
        return {}
    histories, rewards = zip(*known, strict=True)
    return {
        "tracker/known": _mean([history.weight > 0.0 for history in histories]),
        "tracker/share": _mean([history.share for history in histories]),
        "tracker/explained_variance": explained_variance([history.rate for history in histories], rewards),
    }


def explained_variance(
    estimates: Sequence[float] | np.ndarray, rewards: Sequence[float] | np.ndarray
) -> float:
    """Return 1 - Var(R - V) / Var(R): 1 = perfect, 0 = no better than a constant, below 0 = worse.
    It is 0 when the rewards do not vary.
    """
    actual = np.asarray(rewards, dtype=np.float64)
    variance = float(actual.var())
    return 1.0 - float((actual - np.asarray(estimates)).var()) / variance if variance > 1e-12 else 0.0


def _advantages(advantages: Sequence[float]) -> dict[str, float]:
    return {"advantage/mean": _mean(advantages), "advantage/std": statistics.pstdev(advantages)}


def _staleness(staleness: Sequence[int]) -> dict[str, float]:
    counts = Counter(staleness)
    return _spread("staleness/", staleness) | {
        f"staleness/count_{age}": counts[age] for age in sorted(counts)
    }


def _spread(prefix: str, figures: Sequence[float]) -> dict[str, float]:
    return {f"{prefix}mean": _mean(figures), f"{prefix}max": max(figures)}


def _mean(figures: Sequence[float]) -> float:
    return math.fsum(figures) / len(figures)
