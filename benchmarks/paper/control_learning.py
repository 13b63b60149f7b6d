"""Policy-gradient training of the control study: one loop, in which only the advantage and the
critic's target differ by arm.

    sequence   A = R - V(s_0), one scalar an episode, V = sigmoid(logit) fitted by BCE
               (Sequence-Level PPO, arXiv 2604.08865)
    token      A_t = sum_k (gamma lambda)^k delta_{t+k}, whitened, V(s_t) fitted by MSE  (PPO with
               GAE, arXiv 1707.06347)

T = steps of the longest episode, E = episodes, D = observation entries. Reward R in {0, 1}, at the
last step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.paper.control_tasks import Task
from sppo_ray.algorithms.policy_loss import policy_loss
from sppo_ray.algorithms.value_loss import token_value_loss, value_loss


@dataclass(frozen=True)
class Arm:
    """How advantages are made. The fields after `token_level` are read where it is set."""

    name: str
    token_level: bool
    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True


ARMS = {
    arm.name: arm
    for arm in (
        Arm("sequence", token_level=False),
        Arm("token", token_level=True, gamma=0.99, lam=0.95),  # the usual settings of control
        # the usual settings for language models: A_t = R - V(s_t), whitened
        Arm("token-lambda1", token_level=True),
        # R - V(s_t): only the critic's state differs from `sequence`
        Arm("token-lambda1-raw", token_level=True, whiten=False),
    )
}


@dataclass(frozen=True)
class Settings:
    """The same for every arm of a task."""

    env_steps: int  # steps of all episodes together, after which training ends
    episodes: int  # per update
    learning_rate: float  # of the policy
    critic_learning_rate: float = 1e-3
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    max_grad_norm: float = 0.5
    hidden: int = 64


class Rollout(NamedTuple):
    """Whole episodes of one policy, padded at the end to T steps."""

    observations: Tensor  # [T, E, D] float32; the last entry is elapsed time over the horizon
    # [T, E] int64 or [T, E, action_size] float32, before clipping to the task's range
    actions: Tensor
    logprobs: Tensor  # [T, E] float32
    mask: Tensor  # [T, E] bool, true for steps that were taken
    rewards: Tensor  # [E] float32, 0 or 1


class Policy(nn.Module):
    """MLP to the logits of a categorical, or to the mean of a Gaussian whose log deviation is a
    parameter (starts at 0).
    """

    def __init__(self, task: Task, hidden: int) -> None:
        super().__init__()
        self.discrete = task.discrete
        self.net = mlp(task.observation_size + 1, hidden, task.action_size, gain=0.01)
        self.log_std = nn.Parameter(torch.zeros(task.action_size), requires_grad=not task.discrete)

    def sample(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-probs for [E, D] observations."""
        output = self.net(observations)
        if self.discrete:
            gumbel = -torch.empty_like(output).exponential_().log()
            actions = (output + gumbel).argmax(-1)
        else:
            actions = output + self.log_std.exp() * torch.randn_like(output)
        return actions, self._logprobs(output, actions)

    def logprobs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[N] log-probs (densities where continuous) of actions at [N, D] observations."""
        return self._logprobs(self.net(observations), actions)

    def _logprobs(self, output: Tensor, actions: Tensor) -> Tensor:
        if self.discrete:
            return output.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        standard = (actions - output) * (-self.log_std).exp()
        return (-0.5 * standard.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def mlp(inputs: int, hidden: int, outputs: int, *, gain: float) -> nn.Sequential:
    """Two tanh layers, orthogonal weights, zero biases; `gain` scales the last layer's weights."""
    sizes = [(inputs, hidden, 2**0.5), (hidden, hidden, 2**0.5), (hidden, outputs, gain)]
    layers = []
    for size_in, size_out, layer_gain in sizes:
        layer = nn.Linear(size_in, size_out)
        nn.init.orthogonal_(layer.weight, layer_gain)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


# --------------------------------------------------------------------------------------- advantages


def sequence_advantages(rewards: Tensor, value_logits: Tensor) -> Tensor:
    """R - V of each episode, [E], as sppo_ray/algorithms/sppo.py has it for responses."""
    return rewards - value_logits.sigmoid()


def gae(values: Tensor, rewards: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates where the only reward comes with an episode's last step and
    nothing follows it.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t),   A_t = delta_t + gamma lambda A_{t+1}

    Args:
        values: [T, E]; read where `mask`.
        rewards: [E].
        mask: [T, E] bool, a prefix of each column.

    Returns:
        [T, E], 0 outside the mask.
    """
    steps, episodes = values.shape
    last = mask.sum(0) - 1
    advantages = torch.zeros_like(values)
    following, next_value = torch.zeros(episodes), torch.zeros(episodes)
    for t in reversed(range(steps)):
        delta = torch.where(last == t, rewards, gamma * next_value) - values[t]
        following = torch.where(mask[t], delta + gamma * lam * following, 0.0)
        next_value = values[t]
        advantages[t] = following
    return advantages


def whiten(advantages: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over all steps of the update, [N]."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


# ----------------------------------------------------------------------------------------- the loop


def train(task: Task, arm: Arm, settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Train from scratch; a row an update: steps so far (its own included), and success and mean
    length of its episodes.

    The episodes of an update are those of the policy before it, so their success is that policy's,
    sampled.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    policy = Policy(task, settings.hidden)
    critic = mlp(task.observation_size + 1, settings.hidden, 1, gain=1.0)
    policy_optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=settings.critic_learning_rate)
    rows: list[dict[str, Any]] = []
    env_steps = 0
    while env_steps < settings.env_steps:
        rollout = collect(task, policy, settings.episodes, rng)
        taken = int(rollout.mask.sum())
        env_steps += taken
        success = float(rollout.rewards.mean())
        rows.append({"env_steps": env_steps, "success": success, "length": taken / settings.episodes})
        fit = (
            sequence_fit(rollout, critic, settings)
            if not arm.token_level
            else token_fit(rollout, critic, arm, settings)
        )
        advantages = next(fit)
        for loss in policy_losses(rollout, advantages, policy, settings):
            step(policy_optimizer, loss, settings)
        for loss in fit:
            step(critic_optimizer, loss, settings)
    return rows


@torch.no_grad()
def collect(task: Task, policy: Policy, episodes: int, rng: np.random.Generator) -> Rollout:
    """Sample whole episodes in lockstep."""
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    seen = task.reset(episodes, rng)
    alive = np.ones(episodes, dtype=bool)
    rewards = np.zeros(episodes, dtype=np.float32)
    while alive.any():
        elapsed = np.full((episodes, 1), len(steps) / task.horizon)
        observations = torch.from_numpy(np.concatenate([seen, elapsed], axis=1)).float()
        actions, logprobs = policy.sample(observations)
        steps.append((observations, actions, logprobs, torch.from_numpy(alive.copy())))
        played = actions.numpy() if task.discrete else actions.clamp(-1.0, 1.0).numpy().astype(np.float64)
        seen, done, success = task.step(played, alive)
        rewards[alive & done & success] = 1.0
        alive &= ~done
    return Rollout(
        *(torch.stack(column) for column in zip(*steps, strict=True)), rewards=torch.from_numpy(rewards)
    )


def policy_losses(
    rollout: Rollout, advantages: Tensor, policy: Policy, settings: Settings
) -> Iterator[Tensor]:
    """PPO's clipped loss of each minibatch of steps, token-mean, in a new order every epoch.
    advantages: [N] in mask order.
    """
    observations, actions = rollout.observations[rollout.mask], rollout.actions[rollout.mask]
    old_logprobs = rollout.logprobs[rollout.mask]
    for chosen in minibatches(len(advantages), settings):
        logprobs = policy.logprobs(observations[chosen], actions[chosen])
        weights = torch.full_like(logprobs, 1.0 / len(chosen))
        yield policy_loss(
            logprobs,
            old_logprobs[chosen],
            advantages[chosen],
            weights,
            clip_low=settings.clip,
            clip_high=settings.clip,
            num_global_tokens=len(chosen),
        ).loss


def sequence_fit(rollout: Rollout, critic: nn.Module, settings: Settings) -> Iterator[Tensor]:
    """First the advantages [N], then the critic's BCE of each minibatch of episodes. The critic
    sees initial states alone.
    """
    initial = rollout.observations[0]
    with torch.no_grad():
        advantages = sequence_advantages(rollout.rewards, critic(initial)[:, 0])
    yield advantages.expand(rollout.mask.shape)[rollout.mask]
    for chosen in minibatches(len(rollout.rewards), settings):
        yield value_loss(
            critic(initial[chosen])[:, 0], rollout.rewards[chosen], num_global_samples=len(chosen)
        ).loss


def token_fit(rollout: Rollout, critic: nn.Module, arm: Arm, settings: Settings) -> Iterator[Tensor]:
    """First the advantages by GAE [N], then the critic's squared error to the lambda-returns of
    each minibatch of steps.
    """
    with torch.no_grad():
        values = critic(rollout.observations)[..., 0]
        advantages = gae(values, rollout.rewards, rollout.mask, gamma=arm.gamma, lam=arm.lam)
        returns = (advantages + values)[rollout.mask]
    yield whiten(advantages[rollout.mask]) if arm.whiten else advantages[rollout.mask]
    observations = rollout.observations[rollout.mask]
    for chosen in minibatches(len(returns), settings):
        values = critic(observations[chosen])[:, 0]
        yield token_value_loss(values, returns[chosen], kind="mse", num_global_tokens=len(chosen)).loss


def minibatches(items: int, settings: Settings) -> Iterator[Tensor]:
    """Indices of `minibatches` parts of a random order, `epochs` times over."""
    for _ in range(settings.epochs):
        yield from torch.randperm(items).chunk(settings.minibatches)


def step(optimizer: torch.optim.Optimizer, loss: Tensor, settings: Settings) -> None:
    """One Adam step with the gradient's norm clipped."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(
        [p for group in optimizer.param_groups for p in group["params"]], settings.max_grad_norm
    )
    optimizer.step()
