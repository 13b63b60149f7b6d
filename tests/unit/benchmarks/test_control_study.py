"""The control study's mathematics against numbers worked out by hand, its dynamics against
gymnasium's, and two real updates.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper import control, control_tasks
from benchmarks.paper.control_learning import (
    ARMS,
    Policy,
    Rollout,
    Settings,
    collect,
    gae,
    minibatches,
    mlp,
    policy_losses,
    sequence_advantages,
    sequence_fit,
    token_fit,
    train,
    whiten,
)
from benchmarks.paper.control_report import figures_of, markdown, page, row_of, save_plot, verdict
from sppo_ray.algorithms import gae as token_gae

SETTINGS = Settings(env_steps=1, episodes=2, learning_rate=1e-3, epochs=1, minibatches=1, hidden=8)


def two_episodes() -> Rollout:
    """A success of 3 steps and a failure of 1; two-entry observations, action 0 everywhere at
    probability 1/2.
    """
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    observations = torch.arange(12, dtype=torch.float32).reshape(3, 2, 2) / 12
    actions = torch.zeros(3, 2, dtype=torch.int64)
    return Rollout(observations, actions, torch.full((3, 2), math.log(0.5)), mask, torch.tensor([1.0, 0.0]))


class Constant(torch.nn.Module):
    """A critic that says the same everywhere."""

    def __init__(self, output: float) -> None:
        super().__init__()
        self.output = torch.nn.Parameter(torch.tensor(output))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.output.expand(*observations.shape[:-1], 1)


# --------------------------------------------------------------------------------------- advantages


def test_the_sequence_advantage_is_reward_minus_value() -> None:
    # sigmoid(0) = 0.5, sigmoid(log 3) = 3/4
    found = sequence_advantages(torch.tensor([1.0, 0.0]), torch.tensor([0.0, math.log(3)]))
    assert found.tolist() == pytest.approx([0.5, -0.75])


def test_every_step_of_an_episode_gets_its_advantage_and_the_critic_is_asked_at_the_start_only() -> None:
    fit = sequence_fit(two_episodes(), Constant(math.log(1 / 3)), SETTINGS)
    # V = 1/4: 3/4 for the success, -1/4 for the failure; steps come in order of time: both
    # episodes, then the success alone.
    assert next(fit).tolist() == pytest.approx([0.75, -0.25, 0.75, 0.75])
    # BCE at V = 1/4: -(log 1/4 + log 3/4) / 2 = (1.3863 + 0.2877) / 2
    assert next(fit).item() == pytest.approx(0.8370, abs=1e-4)


def test_the_sequence_critic_never_sees_a_later_state() -> None:
    rollout = two_episodes()
    disturbed = rollout._replace(
        observations=torch.cat([rollout.observations[:1], torch.full((2, 2, 2), 1e6)])
    )
    critic = mlp(2, 8, 1, gain=1.0)
    for one, other in zip(
        sequence_fit(rollout, critic, SETTINGS), sequence_fit(disturbed, critic, SETTINGS), strict=True
    ):
        assert torch.allclose(one, other)


def test_gae_by_hand() -> None:
    values = torch.tensor([[0.5, 0.4], [0.6, 9.0], [0.8, 9.0]])
    rollout = two_episodes()
    # gamma = 0.9, lambda = 0.5, gamma * lambda = 0.45. Success: delta_2 = 1 - 0.8 = 0.2, delta_1 =
    # 0.9 * 0.8 - 0.6 = 0.12, delta_0 = 0.9 * 0.6 - 0.5 = 0.04; A_2 = 0.2, A_1 = 0.12 + 0.45 * 0.2 =
    # 0.21, A_0 = 0.04 + 0.45 * 0.21 = 0.1345. Failure: A_0 = 0 - 0.4; the 9s lie after its end.
    found = gae(values, rollout.rewards, rollout.mask, gamma=0.9, lam=0.5)
    assert found.T.tolist() == [pytest.approx([0.1345, 0.21, 0.2]), pytest.approx([-0.4, 0.0, 0.0])]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.floats(0.5, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**31 - 1),
)
def test_gae_is_the_projects_on_every_episode(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = torch.tensor(rng.normal(size=(max(lengths), len(lengths))), dtype=torch.float32)
    rewards = torch.tensor(rng.integers(0, 2, len(lengths)), dtype=torch.float32)
    mask = torch.arange(max(lengths))[:, None] < torch.tensor(lengths)
    found = gae(values, rewards, mask, gamma=gamma, lam=lam)
    for column, length in enumerate(lengths):
        (wanted,) = token_gae.gae([rewards[column].item()], [values[:length, column].numpy()], gamma, lam)
        assert found[:length, column].tolist() == pytest.approx(wanted, abs=1e-5)
        assert not found[length:, column].any()


def test_whitening_is_over_all_steps() -> None:
    # mean 2, sample variance (1 + 0 + 1) / 2 = 1
    assert whiten(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_the_arms_differ_as_their_names_say() -> None:
    rollout = two_episodes()
    raw = next(token_fit(rollout, Constant(0.25), ARMS["token-lambda1-raw"], SETTINGS))
    # R - V(s_t): `sequence` with a critic of every state
    assert raw.tolist() == pytest.approx([0.75, -0.25, 0.75, 0.75])
    lambda1 = next(token_fit(rollout, Constant(0.25), ARMS["token-lambda1"], SETTINGS))
    # mean 0.5, variance (3 * 0.0625 + 0.5625) / 3 = 0.25
    assert lambda1.tolist() == pytest.approx([0.5, -1.5, 0.5, 0.5])
    fit = token_fit(rollout, Constant(0.25), ARMS["token-lambda1"], SETTINGS)
    next(fit)
    # Returns are R: half the mean of 0.75^2, 0.25^2, 0.75^2, 0.75^2 = (3 * 0.5625 + 0.0625) / 8
    assert next(fit).item() == pytest.approx(0.21875)


# ----------------------------------------------------------------------------------- policy, update


def test_the_first_policy_loss_is_minus_the_mean_advantage() -> None:
    torch.manual_seed(0)
    policy = Policy(control_tasks.PrecisionCartPole(), hidden=8)
    rollout = collect(control_tasks.PrecisionCartPole(), policy, 3, np.random.default_rng(0))
    advantages = torch.linspace(-1.0, 2.0, int(rollout.mask.sum()))
    loss = next(policy_losses(rollout, advantages, policy, SETTINGS))  # every ratio is 1
    assert loss.item() == pytest.approx(-advantages.mean().item(), abs=1e-5)


def test_log_probs_are_those_of_torch_distributions() -> None:
    torch.manual_seed(0)
    observations = torch.randn(5, 4)
    policy = Policy(control_tasks.Pendulum(), hidden=8)
    torch.nn.init.constant_(policy.log_std, -0.7)
    actions, logprobs = policy.sample(observations)
    normal = torch.distributions.Normal(policy.net(observations), math.exp(-0.7))
    assert torch.allclose(logprobs, normal.log_prob(actions).sum(-1), atol=1e-5)
    policy = Policy(control_tasks.MountainCar(), hidden=8)
    actions, logprobs = policy.sample(observations[:, :3])
    wanted = torch.distributions.Categorical(logits=policy.net(observations[:, :3])).log_prob(actions)
    assert torch.allclose(logprobs, wanted, atol=1e-5)


def test_categorical_actions_come_at_their_probabilities() -> None:
    torch.manual_seed(0)
    policy = Policy(control_tasks.MountainCar(), hidden=8)
    torch.nn.init.zeros_(policy.net[-1].weight)
    policy.net[-1].bias.data = torch.tensor([0.2, 0.3, 0.5]).log()
    actions, _ = policy.sample(torch.zeros(20_000, 3))
    shares = torch.bincount(actions) / 20_000  # standard error sqrt(0.25 / 20000) = 0.0035
    assert shares.tolist() == pytest.approx([0.2, 0.3, 0.5], abs=0.015)


def test_an_epoch_visits_every_item_once() -> None:
    settings = Settings(env_steps=1, episodes=1, learning_rate=1.0, epochs=2, minibatches=3)
    parts = list(minibatches(10, settings))
    assert len(parts) == 6
    assert sorted(torch.cat(parts[:3]).tolist()) == sorted(torch.cat(parts[3:]).tolist()) == list(range(10))


# ------------------------------------------------------------------------------------ tasks, parity


def test_success_of_the_pole_is_staying_near_the_middle() -> None:
    task = control_tasks.PrecisionCartPole()
    task.reset(2, np.random.default_rng(0))
    task.elapsed = task.horizon - 1
    # the second is at 0.49 + 0.02 * 1 > 0.5 next
    task.state = np.array([[0.49, 0.0, 0.0, 0.0], [0.49, 1.0, 0.0, 0.0]])
    outcome = task.step(np.array([0, 0]), np.ones(2, dtype=bool))
    assert outcome.done.all()
    assert outcome.success.tolist() == [True, False]


def test_the_pendulum_fails_in_its_last_steps_only() -> None:
    task = control_tasks.Pendulum()
    task.reset(2, np.random.default_rng(0))
    task.state = np.array([[np.pi, 0.0], [0.0, 0.0]])  # hanging, upright; both at rest
    outcomes = [task.step(np.zeros((2, 1)), np.ones(2, dtype=bool)) for _ in range(task.horizon)]
    first_failure = [bool(o.done[0]) for o in outcomes].index(True)
    assert first_failure == task.horizon - task.hold
    assert outcomes[-1].success.tolist() == [False, True]


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1"])
def test_dynamics_are_gymnasiums(name: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    dynamics = {
        "CartPole-v1": control_tasks.cartpole_dynamics,
        "MountainCar-v0": control_tasks.mountain_car_dynamics,
        "Pendulum-v1": lambda state, action: control_tasks.pendulum_dynamics(state, action[:, 0]),
    }[name]
    environment = gymnasium.make(name).unwrapped
    environment.reset(seed=1)
    environment.action_space.seed(1)
    for _ in range(300):
        action = environment.action_space.sample()
        wanted = dynamics(np.array([environment.state], dtype=float), np.array([action]))[0]
        _, _, terminated, _, _ = environment.step(action)
        assert np.allclose(environment.state, wanted, atol=1e-7)
        if terminated:
            environment.reset()


def test_the_hopper_moves_as_gymnasiums() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    task = control_tasks.Hopper()
    seen = task.reset(1, np.random.default_rng(3))
    reference = gymnasium.make("Hopper-v5").unwrapped
    first, _ = reference.reset(seed=int(np.random.default_rng(3).integers(2**31)))
    assert np.allclose(seen[0] * task.scale, first)
    for action in np.random.default_rng(4).uniform(-1, 1, (8, 3)):
        outcome = task.step(action[None], np.ones(1, dtype=bool))
        wanted, _, terminated, _, _ = reference.step(action)
        assert np.allclose(outcome.observations[0] * task.scale, wanted, atol=1e-9)
        assert outcome.done[0] == terminated


def test_a_lander_that_comes_down_at_random_rarely_succeeds() -> None:
    pytest.importorskip("Box2D")
    task = control_tasks.LunarLander()
    torch.manual_seed(0)
    rollout = collect(task, Policy(task, hidden=8), 4, np.random.default_rng(0))
    assert rollout.observations.shape[1:] == (4, 9)
    assert set(rollout.rewards.tolist()) <= {0.0, 1.0}
    assert (rollout.mask.sum(0) >= 20).all()  # it falls for more than a second, 50 steps


# ------------------------------------------------------------------------------- end to end, report


@pytest.mark.parametrize("arm", ARMS)
def test_two_updates_on_cartpole(arm: str) -> None:
    pytest.importorskip("gymnasium")
    # 8 episodes are about 170 steps
    settings = Settings(env_steps=250, episodes=8, learning_rate=1e-3)
    rows = train(control_tasks.PrecisionCartPole(), ARMS[arm], settings, seed=1)
    assert len(rows) == 2
    assert rows == train(control_tasks.PrecisionCartPole(), ARMS[arm], settings, seed=1)
    assert rows[0]["length"] == rows[0]["env_steps"] / 8


def test_arms_start_from_the_same_policy_and_the_same_episodes() -> None:
    settings = Settings(env_steps=1, episodes=8, learning_rate=1e-3)
    first = [train(control_tasks.PrecisionCartPole(), arm, settings, seed=1)[0] for arm in ARMS.values()]
    assert all(row == first[0] for row in first)


def run_of(successes: list[float]) -> dict:
    updates = [{"env_steps": 100 * (i + 1), "success": s, "length": 10.0} for i, s in enumerate(successes)]
    return {"cpu_s": 1.0, "updates": updates}


def test_figures_of_a_run() -> None:
    figures = figures_of(run_of([0.0, 0.0, 0.3, 0.5, 0.7, 0.9, 0.9, 0.9, 0.9, 1.0]))
    # The last tenth is the last update; (0.3 + 0.5 + 0.7) / 3 = 0.5 at the fifth; the mean is 6.1 /
    # 10.
    assert figures == {"final": 1.0, "area": pytest.approx(0.61), "half": 500}
    assert figures_of(run_of([0.2, 0.3]))["half"] is None


def test_the_table_and_the_verdict() -> None:
    head = {
        "env": "e",
        "learning_rate": 1e-3,
        "sweep": {"0.001": {"finals": [1.0, 0.5]}, "0.003": {"finals": [0.4, 0.0]}},
    }
    good = head | {"arm": "sequence"} | row_of([run_of([0.0, 0.8, 0.9, 1.0])] * 2, 400)
    bad = head | {"arm": "token"} | row_of([run_of([0.0, 0.1, 0.1, 0.1])] * 2, 400)
    # 2.7 / 4 - 0.3 / 4 = 0.6, and equal seeds leave no error
    assert verdict(good, bad) == (
        "sequence is ahead of token (mean success over training +0.600 +- 0.000); only sequence reaches 50%"
    )
    assert verdict(bad | {"arm": "sequence"}, bad).endswith("neither reaches 50%")
    # (0 + 0.8 + 0.9) / 3 is above 0.5 at the third update
    assert "| e | sequence | 0.001 | 0.000 | 1.000 +- 0.000 | 300 | 2/2 | 2/4 | 10 |" in markdown([good])
    assert "| never | 0/2 | 2/4 |" in markdown([bad])
    text = page([good, bad], {"e": "The pole stands."}, "plot.png")
    assert (
        markdown([good, bad]) in text
        and "- e: sequence is ahead of token" in text
        and "- **e**: The pole stands." in text
    )


def test_a_finished_run_is_taken_up_only_with_equal_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = control.Problem(control_tasks.PrecisionCartPole, env_steps=1, episodes=2)
    monkeypatch.setattr(control, "PROBLEMS", {"cartpole": small})
    run = control.Run("cartpole", "sequence", 1e-3, seed=1)
    result = control.execute(run, tmp_path)
    assert dict(control.kept([run, control.Run("cartpole", "sequence", 1e-3, seed=2)], tmp_path)) == {
        run: result
    }
    longer = control.Problem(control_tasks.PrecisionCartPole, env_steps=500, episodes=2)
    monkeypatch.setattr(control, "PROBLEMS", {"cartpole": longer})
    assert dict(control.kept([run], tmp_path)) == {}


def test_the_plot_is_written(tmp_path: Path) -> None:
    row = {"env": "e", "arm": "sequence", "learning_rate": 1e-3} | row_of(
        [run_of([0.0, 0.8, 0.9, 1.0])] * 2, 400
    )
    save_plot([row, row | {"env": "f"}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "0"], "at least 1, not '0'"), (["--arms", "grpo"], "invalid choice: 'grpo'")],
)
def test_options_that_make_no_study_are_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["control", *arguments])
    with pytest.raises(SystemExit):
        control.parse_options()
    assert message in capsys.readouterr().err


def test_a_missing_simulator_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needy = control.Problem(control_tasks.Hopper, env_steps=1, episodes=1, needs=("no_such_simulator",))
    monkeypatch.setattr(control, "PROBLEMS", {"hopper": needy})
    monkeypatch.setattr("sys.argv", ["control", "--envs", "hopper"])
    with pytest.raises(SystemExit):
        control.parse_options()
    assert "hopper need no_such_simulator: pip install 'sppo-ray[control]'" in capsys.readouterr().err
