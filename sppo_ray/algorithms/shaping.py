"""Shapes rewards between the verifier and the advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sppo_ray.algorithms.base import OverlongSettings

Shaping = Callable[[float, int], float]
"""(reward, number of response tokens) -> the reward that advantage and critic use."""


def unshaped(reward: float, num_tokens: int) -> float:
    return reward


def shaped_reward(
    reward: float,
    num_tokens: int,
    max_response_tokens: int,
    overlong: OverlongSettings | None,
    floor: float | None = None,
) -> float:
    """Subtract the soft overlong penalty (DAPO, arXiv 2503.14476, eq. 13).

        onset = max_response_tokens - buffer_tokens
        R' = R - penalty * clip((num_tokens - onset) / buffer_tokens, 0, 1)

    Args:
        num_tokens: number of response tokens.
        overlong: None = return the reward unchanged.
        floor: lower bound of the result. It is 0 with a critic trained by binary cross-entropy.
            None = no bound.
    """
    if overlong is None:
        return reward
    onset = max_response_tokens - overlong.buffer_tokens
    excess = min(max(num_tokens - onset, 0) / overlong.buffer_tokens, 1.0)
    shaped = reward - overlong.penalty * excess
    return shaped if floor is None else max(shaped, floor)


def informative(rewards: Sequence[float]) -> bool:
    """Return whether the rewards of a group differ (dynamic sampling, arXiv 2503.14476)."""
    return any(reward != rewards[0] for reward in rewards)
