"""Episodes with a FAKE engine and a FAKE environment: exact tokens, ends, errors, order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.config.environment import CustomEnvironment
from sppo_ray.environments.base import Observation, StepRequest, StepResult
from sppo_ray.protocols import WorkerDied
from sppo_ray.rollout.episodes import Episodes
from sppo_ray.rollout.pipeline import SamplePipeline, UnscoredTrajectory, build_requests
from sppo_ray.types import Prompt, RolloutRequest, SamplingSettings, ScoredTrajectory, Trajectory
from tests.unit.fakes import FakeRewardClient

SAMPLING = SamplingSettings(1.0, 99, (0,))


@dataclass
class FakeEngine:
    """Samples tokens from the request's seed."""

    seen: list[RolloutRequest] = field(default_factory=list)
    made: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    cut: bool = False
    version: int = 0

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Trajectory]]:
        assert sampling.max_tokens == 4
        for request in requests:
            await asyncio.sleep(0)
            self.seen.append(request)
            draw = np.random.default_rng(request.seed)
            ids = [*draw.integers(1, 50, draw.integers(0, 4)).tolist(), 0]
            self.made[str(request.request_id), len(request.token_ids)] = ids
            logprobs = (-draw.random(len(ids))).astype(np.float32)
            why = "length" if self.cut else "stop"
            version = self.version
            names = request.request_id, request.prompt_id
            yield [Trajectory(*names, ids, logprobs, why, version, version, "w-1", 0.1)]


@dataclass
class FakeEnvironment:
    """Answers with `answer(actions)`."""

    answer: Callable[[tuple[str, ...]], StepResult]
    forgotten: list[str] = field(default_factory=list)
    requests: list[StepRequest] = field(default_factory=list)

    async def step(self, request: StepRequest) -> StepResult:
        self.requests.append(request)
        await asyncio.sleep(0)
        return self.answer(request.actions)

    def forget(self, episodes: Sequence[str]) -> None:
        self.forgotten += episodes


class FakeEncoder:
    """Observation "3" is the tokens 103, 103, 103."""

    roles = ("user",)

    def encode(self, text: str, role: str) -> np.ndarray:
        return np.full(int(text), 100 + int(text), np.int32)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p/{i}", "game", "", (60 + i, 61), (60 + i, 61), str(i)) for i in range(count)]


def episodes(engine: Any, environment: FakeEnvironment, room: int = 99, **more: Any) -> Episodes:
    how = CustomEnvironment(environment="games:Game", max_turn_tokens=4, **{"max_turns": 5} | more)
    decode = lambda rows: [" ".join(map(str, ids)) for ids in rows]  # noqa: E731
    return Episodes(engine, environment, FakeEncoder(), decode, how, max_response_tokens=room)  # type: ignore[arg-type]


def play(
    engine: Any, environment: FakeEnvironment, count: int = 1, seed: int = 0, **more: Any
) -> list[Trajectory]:
    async def run() -> list[Trajectory]:
        given_prompts = prompts(count)
        requests = build_requests(given_prompts, 1, seed, "step-0")
        by_id = {prompt.id: prompt for prompt in given_prompts}
        stream = episodes(engine, environment, **more).generate(requests, SAMPLING, by_id)
        return [one async for burst in stream for one in burst]

    return asyncio.run(asyncio.wait_for(run(), 20))


def says(text: str = "2", **more: Any) -> StepResult:
    return StepResult(Observation(text, **more), 0.25)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 5), min_size=0, max_size=4))
def test_an_episode_is_its_turns_token_for_token(seed: int, observed: list[int]) -> None:
    engine = FakeEngine()

    def answer(actions: tuple[str, ...]) -> StepResult:
        number = len(actions) - 1
        return says(str(observed[number])) if number < len(observed) else says(done=True, reward=1.0)

    environment = FakeEnvironment(answer)
    (found,) = play(engine, environment, seed=seed)
    assert found.turns is not None and found.finish_reason == "stop"
    # each turn was asked for with exactly what came before it
    context = [60, 61]
    for number, request in enumerate(engine.seen):
        assert request.token_ids.tolist() == context
        action = engine.made[str(request.request_id), len(context)]
        context += action + ([100 + observed[number]] * observed[number] if number < len(observed) else [])
        assert environment.requests[number].actions[-1] == " ".join(map(str, action))
    assert found.response_ids.tolist() == context[2:]
    # the actions are the engine's, and no other token is one
    sampled = [token for ids in engine.made.values() for token in ids]
    assert found.response_ids[found.action_mask].tolist() == sampled
    assert len(found.response_logprobs) == found.num_actions == len(sampled)
    assert found.turns.lengths[:, 1].tolist() == [*observed, 0]
    assert found.turns.texts[::2] == environment.requests[-1].actions
    assert found.turns.texts[1::2] == tuple(map(str, observed))
    assert found.turns.rewards.tolist() == [0.0] * len(observed) + [1.0]
    assert len({request.seed for request in engine.seen}) == len(engine.seen)
    assert engine.seen[0].prefers == "" and all(request.prefers == "w-1" for request in engine.seen[1:])
    assert environment.forgotten == ["step-0/0/0"]


def test_versions_are_kept_turn_by_turn() -> None:
    engine = FakeEngine()

    def answer(actions: tuple[str, ...]) -> StepResult:
        engine.version += 1  # a weight sync while the tool runs
        return says(done=len(actions) == 3)

    (found,) = play(engine, FakeEnvironment(answer))
    assert found.turns is not None and found.turns.versions.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert (found.policy_version, found.policy_version_end) == (0, 2)


@pytest.mark.parametrize(
    ("more", "result", "why", "turns"),
    [
        ({}, says(done=True, reason="found"), "stop", 1),
        ({"max_turns": 3}, says(), "turns", 3),
        ({"room": 12}, says("5"), "context", None),
        ({"timeout_s": 1e-9}, says(), "timeout", 1),
        ({}, StepResult(Observation(), 0.1, "it hangs"), "error", 1),
        ({}, says(role="tool"), "error", 1),
    ],
)
def test_the_ends_of_an_episode(
    more: dict[str, Any], result: StepResult, why: str, turns: int | None
) -> None:
    (found,) = play(FakeEngine(), FakeEnvironment(lambda actions: result), **more)
    assert found.turns is not None
    assert found.finish_reason == why
    assert turns is None or len(found.turns.lengths) == turns
    assert len(found.response_ids) <= more.get("room", 99) and found.turns.lengths[-1, 1] == 0


def test_an_action_that_is_cut_ends_the_episode_unanswered() -> None:
    environment = FakeEnvironment(lambda actions: says())
    (found,) = play(FakeEngine(cut=True), environment)
    assert found.finish_reason == "length" and environment.requests == []
    assert found.turns is not None and found.turns.rewards.tolist() == [0.0] and len(found.turns.texts) == 1


def test_episodes_do_not_wait_for_each_other() -> None:
    """The tool of one episode runs until all the others have ended."""
    ended = asyncio.Event()

    class Slow(FakeEnvironment):
        async def step(self, request: StepRequest) -> StepResult:
            if request.row.ground_truth == "0":
                await ended.wait()
            elif len(request.actions) == 3:
                self.requests.append(request)
                if len(self.requests) == 9:
                    ended.set()
            return says(done=len(request.actions) == 3)

    found = play(FakeEngine(), Slow(lambda actions: says()), count=10)
    assert [one.prompt_id for one in found][-1] == "p/0" and len(found) == 10


def test_a_lost_environment_actor_or_engine_is_raised() -> None:
    class Lost(FakeEnvironment):
        async def step(self, request: StepRequest) -> StepResult:
            raise WorkerDied("environment", "is gone")

    with pytest.raises(WorkerDied, match="environment: is gone"):
        play(FakeEngine(), Lost(lambda actions: says()), count=4)

    class Broken(FakeEngine):
        async def generate(self, requests: Any, sampling: Any) -> Any:
            if len(self.seen) >= 4:
                raise RuntimeError("no worker is left")
            async for burst in super().generate(requests, sampling):
                yield burst

    environment = FakeEnvironment(lambda actions: says())
    with pytest.raises(RuntimeError, match="no worker is left"):
        play(Broken(), environment, count=4)
    assert len(environment.forgotten) == 4


def outcomes(environment: FakeEnvironment, client: FakeRewardClient, **more: Any) -> list[Any]:
    async def run() -> list[Any]:
        engine = FakeEngine()
        pipeline = SamplePipeline(
            fleet=engine,
            critic=None,
            reward_client=client,
            decode=lambda rows: [" ".join(map(str, ids)) for ids in rows],
            sampling=SAMPLING,
            order="dispatch",
            seed=0,
            episodes=episodes(engine, environment, **more),
        )
        return await pipeline.dispatch(0, prompts(3)).take(3)

    return asyncio.run(asyncio.wait_for(run(), 20))


def test_the_reward_of_an_episode_is_the_sum_of_its_parts() -> None:
    environment = FakeEnvironment(lambda a: says(reward=0.25, done=len(a) == 3, reason=f"turn {len(a)}"))
    for one in outcomes(environment, FakeRewardClient(reward=0.0)):
        assert isinstance(one, ScoredTrajectory)
        assert (one.reward, one.reason, one.reward_seconds) == (0.75, "turn 3", 0.75)


def test_a_reward_function_scores_the_last_action_where_it_is_asked() -> None:
    asked = []

    class Client(FakeRewardClient):
        async def judge(self, request: Any) -> Any:
            asked.append(request)
            return await super().judge(request)

    environment = FakeEnvironment(lambda actions: says(done=len(actions) == 2, reward=0.125))
    found = outcomes(environment, Client(reward=0.5), scored_by="function")
    assert [one.reward for one in found] == [0.75] * 3
    # with what came before it: the first action, and the observation after it
    ended = [r.actions for r in environment.requests if len(r.actions) == 2]
    assert sorted((one.turns[0]["content"], one.response) for one in asked) == sorted(ended)
    assert all(one.turns[0]["role"] == "assistant" for one in asked)
    assert all(one.turns[1:] == ({"role": "user", "content": "2"},) for one in asked)


def test_an_error_of_the_environment_is_counted_and_no_zero() -> None:
    environment = FakeEnvironment(lambda actions: StepResult(Observation(), 0.1, "it hangs"))
    for how in ("environment", "function"):
        for one in outcomes(environment, FakeRewardClient(reward=0.0), scored_by=how):
            assert isinstance(one, UnscoredTrajectory)
            assert one.reason == "error: environment: it hangs"
