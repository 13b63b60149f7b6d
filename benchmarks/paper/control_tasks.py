"""Control tasks as binary problems: an episode ends in success (1) or not (0), and nothing else is
rewarded.

Every task advances many episodes ("lanes") in lockstep. CartPole, MountainCar and Pendulum are
gymnasium's dynamics over arrays (tests/unit/benchmarks/test_control_study.py steps both),
LunarLander and Hopper are gymnasium's simulators, a lane each.

An episode ends at once when it can no longer succeed or already has, so that state and elapsed time
decide what may still
come: a critic of every state, which token-level PPO needs, is not asked to guess what it cannot
see.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Outcome(NamedTuple):
    """What a step of all lanes brought. Lanes that had ended before hold arbitrary values."""

    observations: Array  # [E, observation_size], each entry of order 1
    done: Flags  # [E]
    success: Flags  # [E], meaningful where done


class Task(Protocol):
    """A task with its lanes' states. Actions: [E] int64 if `discrete`, else [E, action_size] float
    in [-1, 1].
    """

    observation_size: int
    action_size: int
    discrete: bool
    horizon: int  # steps after which an episode ends in any case

    def reset(self, lanes: int, rng: np.random.Generator) -> Array:
        """Start `lanes` episodes; [lanes, observation_size]."""
        ...

    def step(self, actions: Array, alive: Flags) -> Outcome:
        """Advance the lanes that are `alive` [E]."""
        ...


class PrecisionCartPole:
    """Gymnasium's CartPole-v1, 80 steps. Success: the pole never left +-12 degrees and the cart
    never left +-0.5 m (gymnasium allows 2.4 m). Either violation ends the episode as a failure.
    """

    observation_size, action_size, discrete, horizon = 4, 2, True, 80
    angle_limit = 12 * math.pi / 180
    cart_limit = 0.5
    scale = np.array([0.5, 1.0, 0.2, 1.0])

    def reset(self, lanes: int, rng: np.random.Generator) -> Array:
        self.elapsed = 0
        self.state = rng.uniform(-0.05, 0.05, (lanes, 4))
        return self.state / self.scale

    def step(self, actions: Array, alive: Flags) -> Outcome:
        self.elapsed += 1
        self.state = cartpole_dynamics(self.state, actions)
        failed = (np.abs(self.state[:, 0]) > self.cart_limit) | (np.abs(self.state[:, 2]) > self.angle_limit)
        over = self.elapsed >= self.horizon
        return Outcome(self.state / self.scale, failed | over, ~failed)


class MountainCar:
    """Gymnasium's MountainCar-v0 with 1000 steps and a start anywhere in [-1.2, 0] at rest
    (gymnasium: 200 steps and [-0.6, -0.4], from where a random policy never arrives). Success: the
    flag at 0.5 is reached.
    """

    observation_size, action_size, discrete, horizon = 2, 3, True, 1000
    start = (-1.2, 0.0)
    goal = 0.5
    scale = np.array([1.0, 0.05])

    def reset(self, lanes: int, rng: np.random.Generator) -> Array:
        self.elapsed = 0
        self.state = np.stack([rng.uniform(*self.start, lanes), np.zeros(lanes)], axis=1)
        return self.state / self.scale

    def step(self, actions: Array, alive: Flags) -> Outcome:
        self.elapsed += 1
        self.state = mountain_car_dynamics(self.state, actions)
        arrived = self.state[:, 0] >= self.goal
        return Outcome(self.state / self.scale, arrived | (self.elapsed >= self.horizon), arrived)


class Pendulum:
    """Gymnasium's Pendulum-v1: swing up and hold. Success: after each of the last 5 of 200 steps
    the rod is within 0.5 rad (29 degrees) of upright. Once it is outside in that window, the
    episode ends as a failure.
    """

    observation_size, action_size, discrete, horizon = 3, 1, False, 200
    tolerance = 0.5
    hold = 5

    def reset(self, lanes: int, rng: np.random.Generator) -> Array:
        self.elapsed = 0
        self.state = np.stack([rng.uniform(-np.pi, np.pi, lanes), rng.uniform(-1.0, 1.0, lanes)], axis=1)
        return self.observe()

    def step(self, actions: Array, alive: Flags) -> Outcome:
        self.elapsed += 1
        self.state = pendulum_dynamics(self.state, 2.0 * actions[:, 0])
        in_window = self.elapsed > self.horizon - self.hold
        failed = in_window & (np.cos(self.state[:, 0]) < math.cos(self.tolerance))
        return Outcome(self.observe(), failed | (self.elapsed >= self.horizon), ~failed)

    def observe(self) -> Array:
        """cos, sin of the angle from upright, and its speed over 4 rad/s: [E, 3]."""
        angle, speed = self.state.T
        return np.stack([np.cos(angle), np.sin(angle), speed / 4.0], axis=1)


class LunarLander:
    """Gymnasium's LunarLander-v3, 400 steps. Success: both legs touch the ground between the flags
    (|x| <= 0.2) and the hull has
    not. How fast it came down is not asked, nor that it comes to rest: a random policy never does.
    """

    observation_size, action_size, discrete, horizon = 8, 4, True, 400

    def __init__(self) -> None:
        self.lanes: list = []

    def reset(self, lanes: int, rng: np.random.Generator) -> Array:
        import gymnasium

        self.elapsed = 0
        while len(self.lanes) < lanes:
            self.lanes.append(gymnasium.make("LunarLander-v3").unwrapped)
        starts = [lane.reset(seed=int(rng.integers(2**31)))[0] for lane in self.lanes[:lanes]]
        self.observations = np.array(starts, dtype=np.float64)
        return self.observations.copy()

    def step(self, actions: Array, alive: Flags) -> Outcome:
        self.elapsed += 1
        done, success = np.zeros(len(alive), bool), np.zeros(len(alive), bool)
        for index in np.flatnonzero(alive):
            lane = self.lanes[index]
            seen, _, ended, _, _ = lane.step(int(actions[index]))
            success[index] = seen[6] and seen[7] and abs(seen[0]) <= 0.2 and not lane.game_over
            done[index] = ended or success[index]
            self.observations[index] = seen
        return Outcome(self.observations.copy(), done | (self.elapsed >= self.horizon), success)


class Hopper:
    """Gymnasium's Hopper-v5, horizon 1000. Success: the torso gets 0.3 m ahead of its start while
    the hopper is healthy in gymnasium's sense (torso above 0.7 m and within 0.2 rad of upright).
    Falling ends the episode as a failure.
    """

    observation_size, action_size, discrete, horizon = 11, 3, False, 1000
    distance = 0.3
    scale = np.array([1.0] + [0.3] * 4 + [2.0] * 3 + [5.0] * 3)

    def __init__(self) -> None:
        self.lanes: list = []

    def reset(self, lanes: int, rng: np.random.Generator) -> Array:
        import gymnasium

        self.elapsed = 0
        while len(self.lanes) < lanes:
            self.lanes.append(gymnasium.make("Hopper-v5").unwrapped)
        starts = [lane.reset(seed=int(rng.integers(2**31)))[0] for lane in self.lanes[:lanes]]
        self.start = np.array([lane.data.qpos[0] for lane in self.lanes[:lanes]])
        self.travelled = np.zeros(lanes)
        self.observations = np.array(starts)
        return self.observations / self.scale

    def step(self, actions: Array, alive: Flags) -> Outcome:
        import mujoco

        self.elapsed += 1
        for index in np.flatnonzero(alive):
            lane = self.lanes[index]
            lane.data.ctrl[:] = actions[index]
            # What env.step does but for contact forces, which nothing here reads; it takes half as
            # long again.
            mujoco.mj_step(lane.model, lane.data, nstep=lane.frame_skip)
            self.travelled[index] = lane.data.qpos[0] - self.start[index]
            self.observations[index] = np.concatenate([lane.data.qpos[1:], lane.data.qvel])
        fallen = ~self.healthy()
        np.clip(self.observations[:, 5:], -10.0, 10.0, out=self.observations[:, 5:])
        success = ~fallen & (self.travelled >= self.distance)
        return Outcome(
            self.observations / self.scale, fallen | success | (self.elapsed >= self.horizon), success
        )

    def healthy(self) -> Flags:
        """[E], by gymnasium's default limits: height, pitch, and no other entry of the state
        (speeds unclipped) beyond 100.
        """
        height, pitch = self.observations[:, 0], self.observations[:, 1]
        return (height > 0.7) & (np.abs(pitch) < 0.2) & (np.abs(self.observations[:, 1:]) < 100.0).all(axis=1)


def cartpole_dynamics(state: Array, actions: Array) -> Array:
    """CartPole-v1: [E, 4] (x, dx, angle, dangle) and [E] actions (0 left, 1 right) to the next [E,
    4].
    """
    x, dx, angle, dangle = state.T
    force = np.where(actions == 1, 10.0, -10.0)
    cos, sin = np.cos(angle), np.sin(angle)
    # 0.05 = pole mass * half length, 1.1 = both masses
    push = (force + 0.05 * dangle**2 * sin) / 1.1
    turn = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    acceleration = push - 0.05 * turn * cos / 1.1
    return np.stack(
        [x + 0.02 * dx, dx + 0.02 * acceleration, angle + 0.02 * dangle, dangle + 0.02 * turn], axis=1
    )


def mountain_car_dynamics(state: Array, actions: Array) -> Array:
    """MountainCar-v0: [E, 2] (position, velocity) and [E] actions (0 left, 1 none, 2 right) to the
    next [E, 2].
    """
    position, velocity = state.T
    velocity = np.clip(velocity + (actions - 1) * 0.001 - 0.0025 * np.cos(3 * position), -0.07, 0.07)
    position = np.clip(position + velocity, -1.2, 0.6)
    return np.stack([position, np.where((position == -1.2) & (velocity < 0), 0.0, velocity)], axis=1)


def pendulum_dynamics(state: Array, torques: Array) -> Array:
    """Pendulum-v1: [E, 2] (angle from upright, rad; speed, rad/s) and [E] torques in [-2, 2] N m to
    the next [E, 2].
    """
    angle, speed = state.T
    speed = np.clip(speed + (15.0 * np.sin(angle) + 3.0 * torques) * 0.05, -8.0, 8.0)
    return np.stack([angle + speed * 0.05, speed], axis=1)
