"""What training and its replay do alike with a minibatch: the critic's batch, and a step's metrics from its updates'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sppo_ray.config import RunConfig
from sppo_ray.trainer.interfaces import Critic
from sppo_ray.types import CriticBatch, TokenCriticBatch, TrainingSample


async def update_critic(config: RunConfig, critic: Critic, minibatch: Sequence[TrainingSample]) -> Mapping[str, float]:
    """One update of the prompt critic or the token critic, whichever the algorithm has."""
    if config.spec.critic == "token":
        return await critic.token_update(_token_critic_batch(minibatch))
    return await critic.update(_critic_batch(minibatch))


def update_metrics(policy: Sequence[Mapping[str, float]], critic: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A step's metrics from those of its updates of policy and critic."""
    return averages("policy", policy) | averages("critic", critic) | _first("mismatch", policy)


def averages(group: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A step's metrics from its minibatches': the mean, but the largest of maxima, the sum of counts, the last of totals."""
    return {f"{group}/{name}": _over_step(name, [row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _critic_batch(samples: Sequence[TrainingSample]) -> CriticBatch:
    return CriticBatch(tuple(s.scored.prompt.critic_token_ids for s in samples), tuple(s.shaped_reward for s in samples))


def _token_critic_batch(samples: Sequence[TrainingSample]) -> TokenCriticBatch:
    return TokenCriticBatch(
        tuple(s.scored.prompt.token_ids for s in samples),
        tuple(s.scored.trajectory.response_ids for s in samples),
        tuple(s.returns for s in samples),
    )


def _over_step(name: str, values: Sequence[float]) -> float:
    if name.endswith("_max"):
        return max(values)
    if name.endswith("_total"):
        return values[-1]
    return sum(values) if name in ("skipped", "seconds") else sum(values) / len(values)


def _first(group: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The first minibatch's engine/learner log-prob difference: only there are both at the same weights (when s = 0)."""
    return {f"{group}/{name}": rows[0][name] for name in rows[0] if name.startswith("logprob_difference")} if rows else {}
