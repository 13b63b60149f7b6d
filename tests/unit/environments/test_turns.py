"""What the policy sampled is what it is trained on: observations are context, and nothing else."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from sppo_ray.algorithms import ALGORITHMS
from sppo_ray.algorithms.base import RewardedSample
from sppo_ray.algorithms.policy_loss import LossScale, training_loss
from sppo_ray.algorithms.ppo import PPOSettings
from sppo_ray.algorithms.sppo import SPPOSettings
from sppo_ray.algorithms.tensor_ops import to_tensors
from sppo_ray.data.packing import pack, unpack_logprobs
from sppo_ray.models.packed import policy_inputs
from sppo_ray.models.policy import load_policy
from sppo_ray.rundir.trajectories import read_step, to_samples, to_table, write_step
from sppo_ray.trainer.logprob_check import comparable_tokens
from sppo_ray.trainer.step_metrics import summarise_samples
from sppo_ray.trainer.updates import action_values, update_critic
from sppo_ray.types import (
    Prompt,
    PromptValue,
    RequestId,
    ScoredTrajectory,
    TokenRows,
    TrainingSample,
    Trajectory,
    Turns,
)
from tests.training_data import random_samples, save_llama
from tests.unit.fakes import FakeCritic


def episode(draw: random.Random, turns: int, name: str = "e") -> TrainingSample:
    """An episode of random tokens. Action tokens are 4 to 24, those of observations 25 to 44."""
    lengths = [[draw.randint(1, 5), draw.randint(0, 4)] for _ in range(turns)]
    lengths[-1][1] = 0
    ids = [
        draw.randint(4, 24) if is_action else draw.randint(25, 44)
        for action, observation in lengths
        for is_action in [True] * action + [False] * observation
    ]
    actions = sum(action for action, _ in lengths)
    logprobs = [-3.8 + draw.uniform(-0.5, 0.5) for _ in range(actions)]
    parts = Turns(
        np.array(lengths, np.int32),
        np.array([[3, 3]] * (turns - 1) + [[3, 4]], np.int64),
        np.array([0.0] * (turns - 1) + [1.0]),
        "found",
        0.25,
    )
    prompt_ids = [draw.randrange(4, 45) for _ in range(draw.randint(1, 6))]
    prompt = Prompt(name, "game", "", prompt_ids, prompt_ids, "7")
    trajectory = Trajectory(
        RequestId(name, 0, 0), name, ids, logprobs, "stop", 3, 4, "rollout-0", 0.1, parts
    )
    scored = ScoredTrajectory(prompt, trajectory, "", 1.0, "found", 0.0, PromptValue(0.0, 0.5, 0))
    return TrainingSample(scored, 0.5, 1.0)


def mixed(seed: int, count: int = 4) -> list[TrainingSample]:
    """Episodes of 1 to 4 turns, and one response without an environment."""
    draw = random.Random(seed)
    return [episode(draw, draw.randint(1, 4), f"e{i}") for i in range(count)] + random_samples(1, seed)


def test_the_mask_and_the_counts_of_an_episode_by_hand() -> None:
    turns = Turns(np.array([[2, 3], [1, 0]], np.int32), np.zeros((2, 2), np.int64), np.zeros(2), "", 0.0)
    assert turns.action_mask.tolist() == [True, True, False, False, False, True]
    trajectory = Trajectory(
        RequestId("s", 0, 0), "p", range(6), (-1.0, -2.0, -3.0), "stop", 0, 0, "w", 0.0, turns
    )
    assert trajectory.num_actions == 3
    prompt = Prompt("p", "s", "", (9, 9), (9, 9), "")
    sample = TrainingSample(ScoredTrajectory(prompt, trajectory, "", 1.0, "", 0.0, None), 1.0, 1.0)
    minibatch = pack([sample], 1, 100)
    batch = minibatch.ranks[0][0]
    assert batch.token_ids.tolist() == [9, 9, 0, 1, 2, 3, 4, 5]  # all are read
    assert batch.action_positions.tolist() == [2, 3, 7]  # these are learned
    assert batch.action_lengths.tolist() == [3] and minibatch.num_global_tokens == 3
    assert batch.old_logprobs.tolist() == [-1.0, -2.0, -3.0]


def test_without_an_environment_there_is_no_mask() -> None:
    batch = pack(random_samples(3, 0), 1, 4096).ranks[0][0]
    assert batch.action_mask is None and batch.action_lengths is batch.response_lengths


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_trained_tokens_are_the_engines(seed: int, ranks: int) -> None:
    samples = mixed(seed)
    minibatch = pack(samples, ranks, 64)
    trained = sorted(
        tuple(ids.tolist())
        for shard in minibatch.ranks
        for batch in shard
        if batch.weights[0]
        for ids in TokenRows(batch.action_ids, batch.action_lengths)
    )
    sampled = [s.scored.trajectory for s in samples]
    engines = [
        tuple(one.response_ids.tolist() if one.turns is None else one.response_ids[one.action_mask].tolist())
        for one in sampled
    ]
    assert trained == sorted(engines)
    assert minibatch.num_global_tokens == sum(map(len, engines))
    assert all(max(tokens) <= 24 for tokens, one in zip(engines, sampled, strict=True) if one.turns)
    logprobs = unpack_logprobs(minibatch, samples, 64)
    assert all(
        np.array_equal(own, s.scored.trajectory.response_logprobs)
        for own, s in zip(logprobs, samples, strict=True)
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def test_log_probs_of_actions_are_those_of_the_whole_sequence(llama: Path) -> None:
    """Against Transformers' own forward pass of each sequence, one by one."""
    samples = mixed(1)
    batch = pack(samples, 1, 4096).ranks[0][0]
    logprobs, _ = load_policy(llama, dtype="float32")(policy_inputs(batch), 0.7)
    plain, expected = AutoModelForCausalLM.from_pretrained(llama), []
    for sample in samples:
        prompt, trajectory = sample.scored.prompt, sample.scored.trajectory
        ids = torch.tensor([*prompt.token_ids, *trajectory.response_ids])
        with torch.no_grad():
            table = (plain(ids[None]).logits[0] / 0.7).log_softmax(-1)
        row = table[torch.arange(len(ids) - 1), ids[1:]][len(prompt.token_ids) - 1 :]
        expected.append(row if trajectory.turns is None else row[torch.from_numpy(trajectory.action_mask)])
    torch.testing.assert_close(logprobs, torch.cat(expected), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["token-mean", "sequence-mean", "constant"]),
    st.sampled_from(["token", "sequence"]),
)
def test_the_masked_loss_is_the_loss_of_the_actions_alone(seed: int, aggregation: str, ratio: str) -> None:
    """Loss, entropy bonus, KL and metrics of episodes are those of the same actions as plain
    responses.
    """
    samples = mixed(seed)
    alone = []
    for sample in samples:
        one = sample.scored.trajectory
        ids = one.response_ids if one.turns is None else one.response_ids[one.action_mask]
        bare = replace(one, response_ids=ids, turns=None)
        alone.append(replace(sample, scored=replace(sample.scored, trajectory=bare)))
    how = SPPOSettings(
        loss_aggregation=aggregation, ratio=ratio, entropy_coefficient=0.1, kl={"coefficient": 0.2}
    )
    found = [_loss(pack(rows, 1, 4096), how, seed) for rows in (samples, alone)]
    for name, value in found[0].items():
        assert value == found[1][name], name


def _loss(minibatch, how: SPPOSettings, seed: int) -> dict[str, float]:
    batch = minibatch.ranks[0][0]
    noise = torch.Generator().manual_seed(seed)
    batch = replace(batch, reference_logprobs=batch.old_logprobs - 0.1)
    logprobs = torch.tensor(batch.old_logprobs) + 0.3 * torch.randn(len(batch.old_logprobs), generator=noise)
    entropies = torch.rand(len(logprobs), generator=noise)
    scale = LossScale(minibatch.num_global_tokens, minibatch.num_global_samples, 32)
    part = training_loss(logprobs.requires_grad_(), entropies, to_tensors(batch), how, scale)
    part.loss.backward()
    figures = {"loss": part.loss, **part.sums, **part.maxima, "gradient": logprobs.grad.abs().sum()}
    return {name: value.item() for name, value in figures.items()}


def test_gae_goes_from_action_to_action() -> None:
    """Two actions of one token with an observation between: the critic reads three values, and the
    one before the observation plays no part.

        V = (.5, .2 | skipped 9), R = 1, gamma = 1, lam = 0:  G = (V_1, R) = (.2, 1)
    """
    turns = Turns(np.array([[1, 1], [1, 0]], np.int32), np.zeros((2, 2), np.int64), np.zeros(2), "", 0.0)
    trajectory = Trajectory(RequestId("s", 0, 0), "p", (5, 6, 7), (-1, -1), "stop", 0, 0, "w", 0.0, turns)
    scored = ScoredTrajectory(Prompt("p", "s", "", (1,), (1,), ""), trajectory, "", 1.0, "", 0.0, None)

    class Values(FakeCritic):
        async def token_values(self, prompts: TokenRows, responses: TokenRows) -> list[np.ndarray]:
            return [np.array([0.5, 9.0, 0.2])]

    critic = Values([])
    (values,) = asyncio.run(action_values(critic, [scored]))
    assert values.tolist() == [0.5, 0.2]
    rewarded = [RewardedSample("g", 1.0, trajectory.num_actions, token_values=values)]
    how = PPOSettings(lam=0.0, whiten=False)
    spec = ALGORITHMS["ppo"]
    assert spec.returns is not None
    (returns,) = spec.returns(rewarded, how)
    assert returns.tolist() == [0.2, 1.0]
    (advantage,) = spec.advantages(rewarded, how)
    np.testing.assert_allclose(advantage, [-0.3, 0.8])
    sample = TrainingSample(scored, advantage, 1.0, values, returns)

    class Config:
        spec = ALGORITHMS["ppo"]

    asyncio.run(update_critic(Config(), critic, [sample]))  # type: ignore[arg-type]
    (batch,) = critic.batches
    assert batch.returns.tolist() == pytest.approx([0.2, 1.0])
    assert batch.action_mask.tolist() == [True, False, True]


def test_an_episode_survives_the_trajectory_log(tmp_path: Path) -> None:
    samples = mixed(3)
    write_step(tmp_path, to_table(1, samples, 4))
    assert to_samples(read_step(tmp_path, 1)) == samples


@pytest.mark.parametrize(
    ("versions", "version", "comparable"),
    [
        ([[4, 4], [4, 4]], 4, 5),  # all actions
        ([[3, 3], [4, 4]], 4, 2),  # the last action
        ([[3, 4], [4, 4]], 4, 3),  # and the last token of the one before
        ([[3, 3], [3, 4]], 4, 1),
        ([[3, 3], [3, 4]], 5, 0),
    ],
)
def test_tokens_of_the_present_weights_are_found_turn_by_turn(
    versions: list[list[int]], version: int, comparable: int
) -> None:
    turns = Turns(np.array([[3, 2], [2, 0]], np.int32), np.array(versions), np.zeros(2), "", 0.0)
    first, last = versions[0][0], versions[-1][1]
    one = Trajectory(RequestId("s", 0, 0), "p", range(7), [-1] * 5, "stop", first, last, "w", 0.0, turns)
    assert comparable_tokens(one, version) == comparable


def test_the_metrics_count_actions_and_describe_episodes() -> None:
    samples = [episode(random.Random(0), 3), episode(random.Random(1), 1)]
    figures = summarise_samples(samples, 4)
    assert figures["response/tokens"] == sum(s.scored.trajectory.num_actions for s in samples)
    assert (figures["episode/turns_mean"], figures["episode/turns_max"]) == (2.0, 3)
    assert (figures["episode/end_stop"], figures["episode/end_turns"]) == (1.0, 0.0)
    assert not [name for name in summarise_samples(random_samples(2, 0), 4) if name.startswith("episode/")]
