"""Updates of the critic and the metrics of all updates, for training and replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sppo_ray.config import RunConfig
from sppo_ray.data.packing import action_mask
from sppo_ray.protocols import Critic
from sppo_ray.types import CriticBatch, ScoredTrajectory, TokenCriticBatch, TokenRows, TrainingSample


async def update_critic(
    config: RunConfig, critic: Critic, minibatch: Sequence[TrainingSample]
) -> Mapping[str, float]:
    """Update the algorithm's critic, prompt critic or token critic, and return its metrics."""
    if config.spec.critic == "token":
        return await critic.token_update(_token_critic_batch(minibatch))
    return await critic.update(_critic_batch(minibatch))


def update_metrics(
    policy: Sequence[Mapping[str, float]], critic: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Return a step's metrics from the metrics of its policy and critic updates."""
    return averages("policy", policy) | averages("critic", critic) | _first("mismatch", policy)


def averages(group: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return a step's metrics from those of its minibatches: maximum of maxima, sum of counts, last
    of totals, and else the mean.
    """
    return {
        f"{group}/{name}": _over_step(name, [row[name] for row in rows]) for name in (rows[0] if rows else {})
    }


def _critic_batch(samples: Sequence[TrainingSample]) -> CriticBatch:
    return CriticBatch(
        TokenRows.of([s.scored.prompt.critic_token_ids for s in samples]),
        np.array([s.shaped_reward for s in samples], dtype=np.float32),
    )


def _token_critic_batch(samples: Sequence[TrainingSample]) -> TokenCriticBatch:
    trajectories = [s.scored.trajectory for s in samples]
    return TokenCriticBatch(
        TokenRows.of([s.scored.prompt.token_ids for s in samples]),
        TokenRows.of([trajectory.response_ids for trajectory in trajectories]),
        np.concatenate([np.asarray(s.returns, dtype=np.float32) for s in samples]),
        action_mask(trajectories),
    )


async def action_values(critic: Critic, scored: Sequence[ScoredTrajectory]) -> list[np.ndarray]:
    """Return a token critic's value before each action token, [action tokens] float of each
    sample.
    """
    trajectories = [one.trajectory for one in scored]
    values = await critic.token_values(
        TokenRows.of([one.prompt.token_ids for one in scored]),
        TokenRows.of([trajectory.response_ids for trajectory in trajectories]),
    )
    return [
        row if trajectory.turns is None else row[trajectory.turns.action_mask]
        for row, trajectory in zip(values, trajectories, strict=True)
    ]


def _over_step(name: str, values: Sequence[float]) -> float:
    if name.endswith("_max"):
        return max(values)
    if name.endswith("_total"):
        return values[-1]
    return sum(values) if name in ("skipped", "seconds") else sum(values) / len(values)


def _first(group: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the log-prob difference of engine and learner in the first minibatch. Both have equal
    weights only there, and only without staleness.
    """
    return (
        {f"{group}/{name}": rows[0][name] for name in rows[0] if name.startswith("logprob_difference")}
        if rows
        else {}
    )
