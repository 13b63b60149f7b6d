"""What the loop does for each kind of algorithm, with FAKE workers (the real ones:
tests/ray/test_algorithms.py).

FakeRewardClient gives even prompts 1 and odd ones 0; the fake critic's values are 0.5; each
response has two tokens.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from sppo_ray.data.curriculum import choose
from sppo_ray.errors import UserError
from sppo_ray.models.critic_output import logit, sigmoid
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.trajectories import read_step, to_samples
from sppo_ray.trainer.tracker_state import new_tracker
from sppo_ray.types import PromptHistory, PromptValue, ScoreRequest, Verdict
from tests.unit.fakes import FakeRewardClient
from tests.unit.trainer.test_loop import Run

GROUPS = [
    "--algorithm.type=grpo",
    "--data.prompts_per_step=2",
    "--data.samples_per_prompt=2",
    "--data.minibatch_size=2",
]


class Alternating(FakeRewardClient):
    """Of the samples of one prompt, 1 and 0 in turn; prompts in `settled` always earn 1."""

    def __init__(self, settled: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._settled = settled
        self._asked: dict[str, int] = {}

    async def judge(self, request: ScoreRequest) -> Verdict:
        self._asked[request.ground_truth] = self._asked.get(request.ground_truth, -1) + 1
        reward = (
            1.0
            if request.ground_truth in self._settled
            else float(self._asked[request.ground_truth] % 2 == 0)
        )
        return Verdict(reward, "", 0.0)


def advantages_of(run: Run) -> list[float]:
    return [
        a
        for minibatch in run.learner.updates
        for micro in minibatch.ranks[0]
        for a in micro.advantages.tolist()
    ]


def test_a_group_algorithm_has_no_critic_and_compares_the_samples_of_a_prompt(tmp_path: Path) -> None:
    run = Run(tmp_path, *GROUPS, "--loop.steps=1", reward_client=Alternating())
    state = run.train()
    # Rewards 1, 0: mean 1/2, sample deviation sqrt(1/2): +-0.5 / (0.7071 + 1e-4), twice (two
    # tokens), for two prompts
    assert sorted(advantages_of(run)) == pytest.approx([-0.70701] * 4 + [0.70701] * 4, abs=1e-5)
    assert not [entry for entry in run.log if entry.startswith("values")] and not run.critic.batches
    assert (state.critic_version, state.samples) == (0, 4)
    samples = to_samples(read_step(run.path, 1))
    assert [s.scored.value for s in samples] == [None] * 4 and samples[0].scored.group == samples[
        1
    ].scored.group == "step-0/0"
    assert "value/mean" not in read_metrics(run.path)[0]


def test_the_first_minibatch_of_groups_does_not_wait_for_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path, *GROUPS, "--loop.steps=1", reward_client=Alternating())
    run.train()
    assert [m.num_global_samples for m in run.learner.updates] == [2, 2]


def test_dynamic_sampling_draws_further_prompts_for_groups_without_spread(tmp_path: Path) -> None:
    # Step 0 owns the prompts 0-1, 2-3, 4-5 of the stream (three draws of two). 0 is always solved,
    # so is 2.
    run = Run(
        tmp_path,
        *GROUPS,
        "--loop.steps=2",
        "--algorithm.dynamic_sampling.max_rounds=3",
        reward_client=Alternating(frozenset({"0", "2"})),
    )
    state = run.train()
    first = [s.scored.prompt.id for s in to_samples(read_step(run.path, 1))]
    # 1 is kept of the first draw. One group is missing and half of them were dropped: two more are
    # asked for; 3 is kept.
    assert first == ["task/1", "task/1", "task/3", "task/3"]
    assert [s.scored.prompt.id for s in to_samples(read_step(run.path, 2))] == [
        "task/6",
        "task/6",
        "task/7",
        "task/7",
    ]
    rows = read_metrics(run.path)
    assert (rows[0]["groups/draws"], rows[0]["groups/dropped_rate"]) == (2, 0.5)
    assert (rows[1]["groups/draws"], rows[1]["groups/dropped_rate"]) == (1, 0.0)
    # 4 groups of 2 samples in the first step, 2 in the second, of 2 tokens each: all of them were
    # generated
    assert (state.samples, state.response_tokens) == (8, (8 + 4) * 2)


def test_dynamic_sampling_trains_on_what_it_has_after_the_last_draw(tmp_path: Path) -> None:
    settled = frozenset(str(i) for i in range(12) if i != 4)
    run = Run(
        tmp_path,
        *GROUPS,
        "--loop.steps=2",
        "--algorithm.dynamic_sampling.max_rounds=3",
        reward_client=Alternating(settled),
    )
    state = run.train()
    # the second step found nothing and goes on
    assert (state.step, state.samples, state.policy_version) == (2, 2, 2)
    assert [m.num_global_samples for m in run.learner.updates] == [2]
    assert read_metrics(run.path)[1]["groups/dropped_rate"] == 1.0


UNJUDGED = [
    "--algorithm.type=rloo",
    "--data.prompts_per_step=4",
    "--data.samples_per_prompt=4",
    "--data.minibatch_size=8",
]


class Unjudged(Alternating):
    """As Alternating, but the first response to prompt `broken` cannot be judged."""

    def __init__(self, broken: str, settled: frozenset[str] = frozenset()) -> None:
        super().__init__(settled)
        self._broken = broken

    async def judge(self, request: ScoreRequest) -> Verdict:
        verdict = await super().judge(request)
        first = request.ground_truth == self._broken and self._asked[self._broken] == 0
        return Verdict(None, "error: crashed", 0.0) if first else verdict


def test_an_unjudged_response_neither_cuts_groups_apart_nor_makes_dynamic_sampling_draw_again(
    tmp_path: Path,
) -> None:
    run = Run(
        tmp_path, *UNJUDGED, "--loop.steps=1", "--algorithm.dynamic_sampling.max_rounds=2",
        reward_client=Unjudged("0")
    )  # fmt: skip
    run.train()
    # as without dynamic sampling
    assert [m.num_global_samples for m in run.learner.updates] == [7, 8]
    assert read_metrics(run.path)[0]["groups/draws"] == 1
    # Prompt 0 is left with 0 1 0: 1 - 0 and 0 - 1/2 twice. The others earn 1 0 1 0: 1 - 1/3 and 0 -
    # 2/3. Two tokens each.
    expected = [1.0, -0.5, -0.5] + [2 / 3, -2 / 3] * 6
    assert sorted(advantages_of(run)) == pytest.approx(sorted(expected * 2))


def test_the_limit_of_reward_errors_is_of_the_step_and_not_of_a_further_draw(tmp_path: Path) -> None:
    # Prompt 0 is always solved: a group is missing, one further prompt (4 x 4/3 groups rounded
    # down) is drawn, and one of its 4 responses is unjudged. That is 1 of 20 in the step, below the
    # limit of a tenth.
    reward_client = Unjudged("4", settled=frozenset({"0"}))
    run = Run(
        tmp_path,
        *UNJUDGED,
        "--loop.steps=1",
        "--algorithm.dynamic_sampling.max_rounds=2",
        reward_client=reward_client,
    )
    state = run.train()
    assert (state.reward_errors, state.samples) == (1, 3 * 4 + 3)


def test_ppo_values_all_samples_before_the_first_update_and_trains_the_critic_on_tokens(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, "--loop.steps=1", "--algorithm.type=ppo", "--algorithm.whiten=false")
    run.train()
    order = [entry for entry in run.log if entry.startswith(("token", "update", "values"))]
    assert (
        order[0] == "token values 4 by critic 0"
        and order.count("token update 2") == order.count("update 2") == 2
    )
    # lambda = 1: reward - 0.5 on both tokens
    assert sorted(advantages_of(run)) == [-0.5] * 4 + [0.5] * 4
    assert [batch.returns.tolist() for batch in run.critic.batches] == [[1.0, 1.0, 0.0, 0.0]] * 2
    samples = to_samples(read_step(run.path, 1))
    assert isinstance(samples[0].advantage, np.ndarray) and samples[0].advantage.tolist() == [0.5, 0.5]
    assert samples[0].token_values.tolist() == [0.5, 0.5] and samples[0].returns.tolist() == [1.0, 1.0]
    assert samples[0].scored.value is not None and samples[0].scored.value.value == 0.5


def test_the_value_of_a_token_critic_is_its_output_or_with_cross_entropy_has_a_logit(tmp_path: Path) -> None:
    kinds = {}
    for loss in ("mse", "bce"):
        (tmp_path / loss).mkdir()
        run = Run(
            tmp_path / loss, "--loop.steps=1", "--algorithm.type=ppo", f"--algorithm.critic_loss={loss}"
        )
        run.train()
        kinds[loss] = to_samples(read_step(run.path, 1))[0].scored.value
    assert kinds["mse"] == PromptValue(0.5, 0.5, 0)
    assert kinds["bce"] == PromptValue(0.0, 0.5, 0)  # sigmoid(0) = 0.5
    for value in (-30.0, -1.5, 0.0, 2.0):
        assert logit(sigmoid(value)) == pytest.approx(value, abs=1e-9)
    assert logit(0.0) < -700 and 36 < logit(1.0) < 37


def test_ppo_whitens_over_the_step_and_not_over_a_minibatch(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1", "--algorithm.type=ppo", "--data.minibatch_size=1")
    run.train()
    # 8 tokens, +-0.5, mean 0: deviation sqrt(8 * 0.25 / 7) = 0.53452; 0.5 / 0.53452 = 0.93541. One
    # sample alone would give 0.
    assert sorted(advantages_of(run)) == pytest.approx([-0.93541] * 4 + [0.93541] * 4, abs=1e-5)


def test_remax_takes_the_greedy_reward_and_counts_its_tokens(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1", "--algorithm.type=remax", reward_client=Alternating())
    state = run.train()
    assert "generate greedily step-0-greedy at version 0" in run.log
    # A prompt's sample and its greedy response are scored 1 and 0 in one order or the other.
    assert set(advantages_of(run)) <= {1.0, -1.0} and len(advantages_of(run)) == 8
    assert (state.samples, state.response_tokens) == (4, 16)
    assert {
        s.scored.baseline.response_tokens for s in to_samples(read_step(run.path, 1)) if s.scored.baseline
    } == {2}


def test_greedy_responses_are_scored_at_the_same_time(tmp_path: Path) -> None:
    class Together(FakeRewardClient):
        """Gives no verdict before all 4 samples and their 4 greedy responses are asked about."""

        asked = 0

        async def judge(self, request: ScoreRequest) -> Verdict:
            self.asked += 1
            while self.asked < 8:
                await asyncio.sleep(0)
            return await super().judge(request)

    run = Run(tmp_path, "--loop.steps=1", "--algorithm.type=remax", reward_client=Together())
    assert run.train().samples == 4  # one after another they would wait for ever


def test_tokens_of_a_greedy_response_count_even_when_its_sample_cannot_be_scored(tmp_path: Path) -> None:
    broken = FakeRewardClient(broken=frozenset("0123"))
    run = Run(
        tmp_path,
        "--loop.steps=1",
        "--algorithm.type=remax",
        "--reward.max_error_rate=1",
        reward_client=broken,
    )
    run.fleet.delays = {f"task/{index}": index for index in range(4)}
    assert run.train().response_tokens == 16  # 4 samples, 4 greedy ones, 2 tokens each


def test_a_greedy_response_that_cannot_be_scored_makes_its_sample_an_error(tmp_path: Path) -> None:
    class GreedyBroken(FakeRewardClient):
        seen: set[str] = set()

        async def judge(self, request: ScoreRequest) -> Verdict:
            if request.ground_truth == "2" and "2" in self.seen:
                return Verdict(None, "error: crashed", 0.0)
            self.seen.add(request.ground_truth)
            return Verdict(1.0, "", 0.0)

    run = Run(
        tmp_path,
        "--loop.steps=1",
        "--algorithm.type=remax",
        "--reward.max_error_rate=0.5",
        reward_client=GreedyBroken(),
    )
    assert run.train().reward_errors == 1


def test_reinforce_centres_over_the_step(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        "--loop.steps=1",
        "--algorithm.type=reinforce",
        "--data.minibatch_size=1",
        reward_client=FakeRewardClient(),
    )
    run.train()
    assert sorted(advantages_of(run)) == [-0.5] * 4 + [0.5] * 4  # rewards 1 0 1 0, mean 0.5


def test_the_reference_is_called_only_with_a_kl_penalty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    without, with_kl = (
        Run(tmp_path / "a", "--loop.steps=1"),
        Run(tmp_path / "b", "--loop.steps=1", "--algorithm.kl.coefficient=0.1"),
    )
    without.train()
    with_kl.train()
    assert without.log.count("reference") == 0 and with_kl.log.count("reference") == 2


def test_no_log_probs_are_computed_while_only_the_critic_learns(tmp_path: Path) -> None:
    penalty = ["--algorithm.kl.coefficient=0.1", "--algorithm.old_logprobs=learner"]
    run = Run(tmp_path, "--loop.steps=2", "--critic.warmup_steps=1", *penalty)
    run.train()
    # Two minibatches a step, the first step for the critic only; there the check of the first batch
    # asks for its own.
    assert [run.log.count(entry) for entry in ("recompute", "reference", "update 2")] == [1 + 2, 2, 2]
    assert len(run.critic.batches) == 4


def test_overlong_shaping_reaches_advantage_and_critic_and_leaves_the_verdict(tmp_path: Path) -> None:
    run = Run(
        tmp_path, "--loop.steps=1", "--rollout.max_response_tokens=2", "--algorithm.overlong.buffer_tokens=2",
        "--algorithm.overlong.penalty=0.25",
    )  # fmt: skip
    run.train()
    # Responses fill the limit of 2 tokens: 1 - 0.25 for the right ones; the wrong ones stop at 0
    # because of the BCE critic.
    assert [batch.rewards.tolist() for batch in run.critic.batches] == [[0.75, 0.0]] * 2
    assert sorted(set(advantages_of(run))) == [-0.5, 0.25]
    assert read_metrics(run.path)[0]["reward/mean"] == 0.5


def test_a_time_budget_ends_the_run_after_the_current_step(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1000", "--loop.budget_s=0.05", "--logging.trajectories=false")
    state = run.train()
    assert state.seconds >= 0.05 and 0 < state.step < 1000
    assert (run.path / "checkpoints" / f"step-{state.step:06d}").is_dir()


def test_a_curriculum_draws_open_prompts_from_the_candidates(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=2", "--data.curriculum.candidates=3")
    run.train()
    asked = [entry for entry in run.log if entry.startswith("values")]
    assert asked == [
        "values 12 by critic 0",
        "values 4 by critic 0",
        "values 12 by critic 2",
        "values 4 by critic 2",
    ]
    first, second = (
        [int(s.scored.prompt.id.split("/")[1]) for s in to_samples(read_step(run.path, k))] for k in (1, 2)
    )
    assert set(first) < set(range(12)) and set(second) < set(range(12, 24)) and len(set(first)) == 4


def test_choose_prefers_open_prompts_and_is_a_pure_function_of_values_and_seed() -> None:
    values = [0.01] * 50 + [0.5] * 50
    picks = [index for seed in range(200) for index in choose(values, 10, sharpness=1.0, seed=seed)]
    # Weights .0099 against .25: about 4 % of the draws fall on the settled half, and never a prompt
    # twice.
    assert 0.01 < sum(index < 50 for index in picks) / len(picks) < 0.08
    assert choose(values, 10, sharpness=1.0, seed=3) == choose(values, 10, sharpness=1.0, seed=3)
    assert choose([0.0] * 5, 5, sharpness=2.0, seed=1) == [0, 1, 2, 3, 4]
    # A sharp curriculum is not flattened by the floor: 4 * 0.1 * 0.9 = .36, and .36 ** 8 = 2.8e-4
    # against 1.
    sharp = [
        index for seed in range(50) for index in choose([0.1] * 50 + [0.5] * 50, 10, sharpness=8.0, seed=seed)
    ]
    assert sum(index < 50 for index in sharp) <= 3
    with pytest.raises(ValueError, match="cannot choose 3 prompts from 2"):
        choose([0.5, 0.5], 3, sharpness=1.0, seed=1)


def test_greedy_failure_reaches_the_loop(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1", "--algorithm.type=remax")
    generate = run.fleet.generate

    async def failing(requests, sampling):  # type: ignore[no-untyped-def]
        if sampling.temperature == 0:
            raise UserError("the engine cannot sample greedily")
        async for burst in generate(requests, sampling):
            yield burst

    run.fleet.generate = failing  # type: ignore[method-assign]
    with pytest.raises(UserError, match="cannot sample greedily"):
        run.train()


def test_the_critic_is_updated_several_times_on_each_minibatch(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=2", "--critic.updates_per_minibatch=2")
    state = run.train()
    # 2 steps of 2 minibatches
    assert (state.critic_version, state.policy_version, len(run.critic.batches)) == (8, 2, 8)
    assert len(run.learner.updates) == 4


def test_a_tracker_learns_after_the_step_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, "--algorithm.type=spo", "--algorithm.normalize=false", "--loop.steps=1")
    run.train()
    # Nothing is known in the first step: rate 1/2, rewards 1, 0, 1, 0.
    assert sorted(advantages_of(run)) == [-0.5] * 4 + [0.5] * 4
    samples = to_samples(read_step(run.path, 1))
    assert {sample.scored.history for sample in samples} == {PromptHistory(0.5, 0.0, 1.0)}
    state = json.loads((run.path / "checkpoints/step-000001/tracker/tracker.json").read_text())
    # 7/8 of 1/2, and the reward
    assert state["cells"]["task/0"] == [1.4375, 0.4375] and state["cells"]["task/1"] == [0.4375, 1.4375]
    tracker = new_tracker(run.config, run.path / "checkpoints" / "step-000001")
    assert tracker is not None and tracker.to_dict()["cells"].keys() == state["cells"].keys()


def test_a_curriculum_of_spo_reads_the_tracker(tmp_path: Path) -> None:
    run = Run(tmp_path, "--algorithm.type=spo", "--data.curriculum.candidates=2", "--loop.steps=1")
    run.train()
    ids = {sample.scored.prompt.id for sample in to_samples(read_step(run.path, 1))}
    assert len(ids) == 4 and ids <= {f"task/{index}" for index in range(8)}
