"""Generates whole episodes: an engine's turns and an environment's answers, until an episode ends.

    requests --> fleet.generate --action--> environment.step --observation--> tokens appended
                    ^                             |                                |
                    |                             '--the episode ends--> Trajectory|
                    '-- the next turn, prompt + actions + observations ------------'

To its callers it is a generator of responses like the fleet: one trajectory per request, in bursts.
While the tool of one episode runs, the engines generate for the others. An episode's next turn goes
to the engine of the last one, which has its prefix cached. The seed of turn k depends on the
request's seed and k alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.environments.base import Observation, Row, StepRequest, StepResult
from sppo_ray.environments.observations import ObservationEncoder
from sppo_ray.protocols import EnvironmentClient
from sppo_ray.rollout.scoring import Decode
from sppo_ray.rollout.tasks import end_tasks
from sppo_ray.seeding import derive_seed
from sppo_ray.types import (
    FinishReason,
    Prompt,
    RequestId,
    RolloutRequest,
    SamplingSettings,
    Trajectory,
    Turns,
)

_TOGETHER_S = 0.005
"""For so long the next turns of episodes wait for each other, to reach an engine in one call."""


class Generator(Protocol):
    """The fleet, or one engine."""

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]: ...


@dataclass(slots=True, eq=False)
class _Episode:
    """An unfinished episode."""

    request: RolloutRequest
    prompt: Prompt
    began: float
    actions: list[Trajectory] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # of the actions
    observations: list[np.ndarray] = field(default_factory=list)  # token ids, one after each action
    seen: list[str] = field(default_factory=list)  # texts of the observations
    role: str = "user"  # of the observations
    rewards: list[float] = field(default_factory=list)
    seconds: float = 0.0  # in the environment
    reason: str = ""

    @property
    def name(self) -> str:
        return str(self.request.request_id)

    @property
    def response_ids(self) -> list[np.ndarray]:
        """Actions and observations in turn."""
        rows: list[np.ndarray] = []
        for number, action in enumerate(self.actions):
            rows.append(action.response_ids)
            rows += self.observations[number : number + 1]
        return rows

    def next_turn(self) -> RolloutRequest:
        """The request of the next action."""
        return replace(
            self.request,
            token_ids=np.concatenate([self.request.token_ids, *self.response_ids]),
            seed=derive_seed(self.request.seed, "turn", len(self.actions)),
            prefers=self.actions[-1].worker,
        )

    def ended(self, why: FinishReason) -> Trajectory:
        """The episode as one response."""
        acted = [len(action.response_ids) for action in self.actions]
        observed = [len(ids) for ids in self.observations] + [0]
        last = self.actions[-1]
        turns = Turns(
            lengths=np.array([[*pair] for pair in zip(acted, observed, strict=True)], np.int32),
            versions=np.array([[a.policy_version, a.policy_version_end] for a in self.actions], np.int64),
            rewards=np.array(self.rewards, np.float64),
            reason=self.reason or why,
            seconds=self.seconds,
            texts=tuple(t for pair in zip_longest(self.texts, self.seen) for t in pair if t is not None),
            role=self.role,
        )
        return Trajectory(
            request_id=self.request.request_id,
            prompt_id=self.request.prompt_id,
            response_ids=np.concatenate(self.response_ids),
            response_logprobs=np.concatenate([action.response_logprobs for action in self.actions]),
            finish_reason=why,
            policy_version=self.actions[0].policy_version,
            policy_version_end=last.policy_version_end,
            worker=last.worker,
            seconds=sum(action.seconds for action in self.actions),
            turns=turns,
        )


class Episodes:
    """Generates episodes with a fleet and an environment."""

    def __init__(
        self,
        fleet: Generator,
        environment: EnvironmentClient,
        encoder: ObservationEncoder,
        decode: Decode,
        settings: EnvironmentSettings,
        *,
        max_response_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`decode` gives the texts of actions, without special tokens."""
        self._fleet = fleet
        self._environment = environment
        self._encoder = encoder
        self._decode = decode
        self._settings = settings
        self._max_response_tokens = max_response_tokens
        self._clock = clock

    @property
    def asks_reward_function(self) -> bool:
        """Whether a reward function scores the last action of an episode."""
        return self._settings.asks_reward_function

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings, prompts: Mapping[str, Prompt]
    ) -> AsyncIterator[Sequence[Trajectory]]:
        """Yield one episode per request, in bursts, in the order in which they end. `prompts` by
        id. Raises errors of the fleet and of the environment actor; an error of the environment
        ends only its episode, with finish reason "error".
        """
        run = _Run(self, replace(sampling, max_tokens=self._settings.max_turn_tokens))
        now = self._clock()
        episodes = [_Episode(request, prompts[request.prompt_id], now) for request in requests]
        try:
            run.begin(episodes)
            left = len(requests)
            while left:
                ended = await run.next_burst()
                left -= len(ended)
                if ended:
                    yield ended
        finally:
            await end_tasks(run.tasks)
            self._environment.forget([episode.name for episode in episodes])

    def after_action(self, episode: _Episode, action: Trajectory) -> Trajectory | StepRequest:
        """Note an action. Returns the episode if it ends, else the step that answers the action."""
        episode.actions.append(action)
        episode.texts += self._decode([action.response_ids])
        if action.finish_reason == "length":
            episode.rewards.append(0.0)
            return episode.ended("length")
        return StepRequest(
            episode.name, Row.of(episode.prompt), episode.request.seed, tuple(episode.texts)
        )

    def after_step(self, episode: _Episode, result: StepResult) -> Trajectory | RolloutRequest:
        """Note the environment's answer. Returns the episode if it ends, else its next turn."""
        seen = result.observation
        episode.seconds += result.seconds
        episode.rewards.append(seen.reward)
        episode.reason = seen.reason
        why = self._end(episode, result)
        if why is not None:
            return episode.ended(why)
        ids = self._encoder.encode(seen.text, seen.role)
        used = sum(map(len, episode.response_ids)) + len(ids)
        if used + self._settings.max_turn_tokens > self._max_response_tokens:
            return episode.ended("context")
        episode.observations.append(ids)
        episode.seen.append(seen.text)
        episode.role = seen.role
        return episode.next_turn()

    def _end(self, episode: _Episode, result: StepResult) -> FinishReason | None:
        error = result.error or self._unknown_role(result.observation)
        if error:
            episode.reason = f"error: environment: {error}"
            return "error"
        if result.observation.done:
            return "stop"
        if len(episode.actions) >= self._settings.max_turns:
            return "turns"
        limit = self._settings.timeout_s
        return "timeout" if limit is not None and self._clock() - episode.began > limit else None

    def _unknown_role(self, seen: Observation) -> str:
        if seen.done or seen.role in self._encoder.roles:
            return ""
        return f"an observation has the role {seen.role}, not the environment's {self._encoder.roles[0]}"

    def turns(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]:
        return self._fleet.generate(requests, sampling)

    async def step(self, request: StepRequest) -> StepResult:
        return await self._environment.step(request)


class _Run:
    """One call of `generate`: its open episodes, and what happens to them next."""

    def __init__(self, episodes: Episodes, sampling: SamplingSettings) -> None:
        self._rules = episodes
        self._sampling = sampling
        self._open: dict[RequestId, _Episode] = {}
        self._events: asyncio.Queue[Trajectory | tuple[_Episode, StepResult] | Exception] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()

    def begin(self, episodes: Sequence[_Episode]) -> None:
        self._open = {episode.request.request_id: episode for episode in episodes}
        self._start(self._generate([episode.request for episode in episodes]))

    async def next_burst(self) -> list[Trajectory]:
        """Wait until something has happened; return the episodes that have ended by it."""
        events = [await self._events.get()]
        await asyncio.sleep(_TOGETHER_S)
        while not self._events.empty():
            events.append(self._events.get_nowait())
        ended: list[Trajectory] = []
        turns: list[RolloutRequest] = []
        for event in events:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Trajectory):
                episode = self._open[event.request_id]
                followed: Any = self._rules.after_action(episode, event)
            else:
                episode = event[0]
                followed = self._rules.after_step(*event)
            if isinstance(followed, Trajectory):
                ended.append(followed)
            elif isinstance(followed, RolloutRequest):
                turns.append(followed)
            else:
                self._start(self._step(episode, followed))
        if turns:
            self._start(self._generate(turns))
        return ended

    async def _generate(self, requests: Sequence[RolloutRequest]) -> None:
        async for burst in self._rules.turns(requests, self._sampling):
            for action in burst:
                self._events.put_nowait(action)

    async def _step(self, episode: _Episode, request: StepRequest) -> None:
        self._events.put_nowait((episode, await self._rules.step(request)))

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(self._reporting(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _reporting(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # boundary: `next_burst` raises it
            self._events.put_nowait(error)
