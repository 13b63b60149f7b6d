"""FAKE workers that sleep: a real Trainer, fleet, pipeline and recorder drive them in one process.

    measured_run(Shape(...))    seconds of each step, with real sleeps
    alone_run(Shape(...))       sleeps and this process's CPU seconds: as on a core of its own
    ideal_run(Shape(...))       sleeps alone: the driver costs nothing

An engine decodes all of its requests at the same time, one token every `token_s`, and delivers what
finished in bursts, as the real one does. Response lengths have a long tail and depend on a
request's name alone, so the three runs have the same latencies. Ray is not there: its messages cost
what they cost on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import selectors
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sppo_ray.config import RecoverySettings, RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.evaluation.sampler import Evaluator
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.launch.run_inputs import decoder, gather_inputs
from sppo_ray.protocols import PromptSource, PublishedWeights, ScoreRequest, WeightManifest, WeightReceipt
from sppo_ray.rollout.fleet import RolloutFleet
from sppo_ray.rollout.pipeline import Decode, SamplePipeline
from sppo_ray.rollout.weight_sync import ProbeTolerance
from sppo_ray.rundir.commands import Inbox
from sppo_ray.rundir.heartbeat import heartbeat
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import is_training_step, read_metrics
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.controller import Controller
from sppo_ray.trainer.loop import Trainer, Workers
from sppo_ray.trainer.pause import PauseGate
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.worker_times import timed
from sppo_ray.types import (
    CriticBatch,
    Minibatch,
    Prompt,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    TokenRows,
    Trajectory,
    TrajectoryBlock,
    Verdict,
)

PROMPT_TOKENS = 30
MOST_TOKENS = 8192  # of a response


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds of each call; by default those of the quickstart on one core (results/floor.json)."""

    token_s: float = 0.010  # of a response among 256 in an engine
    burst_s: float = 0.02
    pull_s: float = 0.02
    publish_s: float = 0.01
    update_s: float = 0.115  # of a minibatch
    logprobs_s: float = 0.013  # of the first-batch check
    critic_update_s: float = 0.025
    values_s: float = 0.05
    reward_s: float = 0.0


NO_LATENCY = Latencies(0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """A run: so many engines and samples a step, lengths of a log-normal distribution."""

    engines: int
    samples: int  # a step
    steps: int
    median_tokens: int
    longest_tokens: int
    spread: float = 0.6  # standard deviation of log(length); 0 = all the same
    minibatches: int = 4
    latencies: Latencies = field(default_factory=Latencies)
    settings: tuple[str, ...] = ()

    def lengths(self) -> np.ndarray:
        """[4096] int; the name of a request decides which one it gets."""
        normal = np.random.default_rng(0).standard_normal(4096)
        wanted = self.median_tokens * np.exp(self.spread * normal)
        return np.clip(wanted, 1, self.longest_tokens).astype(int)

    def config(self) -> RunConfig:
        longest = self.longest_tokens + 40  # the quickstart's longest prompt
        return load_config(
            "quickstart",
            [
                f"--rollout.workers={self.engines}",
                f"--rollout.max_response_tokens={self.longest_tokens}",
                f"--data.prompts_per_step={self.samples}",
                f"--data.minibatch_size={self.samples // self.minibatches}",
                f"--learner.max_tokens_per_microbatch={max(2048, longest)}",
                f"--loop.steps={self.steps}",
                "--eval.every=0",
                "--eval.at_start=false",
                "--checkpoint.every=0",
                *self.settings,
            ],
        )


class StandInEngine:
    """A rollout worker (`protocols.RolloutWorker`) that sleeps."""

    def __init__(self, name: str, shape: Shape, slots: int) -> None:
        self.name = name
        self._latencies = shape.latencies
        self._lengths = shape.lengths()
        self._free = [0.0] * slots  # heap: when each place of the batch is free, of the loop's clock
        self._tokens = np.random.default_rng(1).integers(5, 15, MOST_TOKENS, dtype=np.int32)
        self._logprobs = np.full(MOST_TOKENS, -0.5, dtype=np.float32)
        self._version = -1
        self._generated = 0

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[Sequence[Trajectory]]:
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        prompt_ids = {str(request.request_id): request.prompt_id for request in requests}
        ends = []
        for number, request in enumerate(requests):
            place = zlib.crc32(str(request.request_id).encode())
            length = int(self._lengths[place % len(self._lengths)])
            end = max(began, heapq.heappop(self._free)) + length * self._latencies.token_s
            heapq.heappush(self._free, end)
            ends.append((end, number, length))
        ends.sort()
        version, first = self._version, 0
        while first < len(ends):
            burst_s = self._latencies.burst_s
            wait = ends[first][0] - loop.time()
            await asyncio.sleep(max(0.0, wait + burst_s) if burst_s else 0)
            now, last = loop.time() + 1e-9, first
            while last < len(ends) and ends[last][0] <= now:
                last += 1
            if last > first:
                yield self._block(requests, ends[first:last], version, began).trajectories(prompt_ids)
            first = last

    def _block(
        self,
        requests: Sequence[RolloutRequest],
        ends: Sequence[tuple[float, int, int]],
        version: int,
        began: float,
    ) -> TrajectoryBlock:
        lengths = [length for _, _, length in ends]
        self._generated += sum(lengths)
        return TrajectoryBlock(
            worker=self.name,
            request_ids=tuple(str(requests[number].request_id) for _, number, _ in ends),
            responses=TokenRows.of([self._tokens[:length] for length in lengths]),
            logprobs=np.concatenate([self._logprobs[:length] for length in lengths]),
            is_stopped=np.ones(len(ends), dtype=bool),
            versions=np.array([[version, self._version]] * len(ends), dtype=np.int64),
            seconds=np.array([end - began for end, _, _ in ends]),
        )

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        await asyncio.sleep(self._latencies.pull_s)
        manifest = published.manifest
        self._version = manifest.version
        return WeightReceipt(
            self.name, manifest.version, manifest.digest, 1, published.probe_logprobs, self._latencies.pull_s
        )

    async def ping(self) -> Mapping[str, Any]:
        await asyncio.sleep(0)
        return {"tokens_generated": self._generated}

    async def abort(self) -> None:
        """Nothing aborts a stand-in."""

    async def memory(self) -> Mapping[str, int]:
        return {}

    async def close(self) -> None:
        """It has no process."""


class StandInRole:
    """What learner, critic and reward client have in common."""

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies

    async def memory(self) -> Mapping[str, int]:
        return {}

    async def watch(self, settings: RecoverySettings) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    async def save(self, directory: Path) -> Mapping[str, FileDigest]:
        (directory / "weights").write_text("none")
        return digest_folder(directory)

    async def load(self, directory: Path) -> None:
        """It has no weights."""

    async def export(self, directory: Path) -> None:
        """It has no weights."""

    async def close(self) -> None:
        """It has no process."""


class StandInLearner(StandInRole):
    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        await asyncio.sleep(self._latencies.update_s)
        return {"loss": 0.5}

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        await asyncio.sleep(self._latencies.logprobs_s)
        return minibatch

    async def publish(self, version: int) -> PublishedWeights:
        await asyncio.sleep(self._latencies.publish_s)
        manifest = WeightManifest(version, ("w",), ((1,),), (0,), "float32", 4, f"digest-{version}")
        return PublishedWeights(manifest, handle=None, probe_ids=(1, 2), probe_logprobs=(-0.5,))


class StandInCritic(StandInRole):
    async def values(self, prompts: TokenRows) -> list[PromptValue]:
        await asyncio.sleep(self._latencies.values_s)
        return [PromptValue(0.0, 0.5, 0)] * len(prompts)

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        await asyncio.sleep(self._latencies.critic_update_s)
        return {"loss": 0.7}

    async def token_values(self, prompts: TokenRows, responses: TokenRows) -> list[np.ndarray]:
        raise NotImplementedError("the benchmark runs sppo, whose critic reads prompts only")

    async def token_update(self, batch: Any) -> Mapping[str, float]:
        raise NotImplementedError("the benchmark runs sppo, whose critic reads prompts only")

    def restore_version(self, version: int) -> None:
        """It has no versions."""


class StandInRewardClient(StandInRole):
    """Judges every second response correct."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        await asyncio.sleep(self._latencies.reward_s)
        return [Verdict(float(index % 2), "constant", 0.0) for index in range(len(requests))]


class StandInPrompts:
    """The same prompts in every step, under names of their own."""

    def __init__(self, size: int) -> None:
        ids = np.arange(PROMPT_TOKENS, dtype=np.int32) % 10 + 5
        self._prompt = Prompt("stand-in/0", "stand-in", "What is 6 times 7?", ids, ids, "42")
        self._size = size

    def cohort(self, index: int) -> Sequence[Prompt]:
        first = index * self._size
        return [replace(self._prompt, id=f"stand-in/{number}") for number in range(first, first + self._size)]


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps over every sleep. Its clock counts the jumps, and what work takes by
    `clock`: nothing by default.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self._slept, self._worked = 0.0, clock
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        return self._slept + self._worked()

    def _jump(self, seconds: float) -> None:
        self._slept += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # a thread is waited for
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self._jump(timeout)
        return ready


Rows = Sequence[Mapping[str, Any]]
"""Of metrics.jsonl, one a step."""


def measured_run(shape: Shape) -> Rows:
    """Run with real sleeps, and the quickstart's prompts and tokenizer."""
    inputs = gather_inputs(shape.config(), lambda text: None)
    with asyncio.Runner() as runner:
        return runner.run(_run(shape, inputs.prompts, decoder(inputs.tokenizer), time.perf_counter))


def alone_run(shape: Shape) -> Rows:
    """The same, but sleeps are jumped over, and only this process's CPU seconds count as work:
    other jobs on the machine change nothing.
    """
    inputs = gather_inputs(shape.config(), lambda text: None)
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(time.process_time)) as runner:
        return runner.run(_run(shape, inputs.prompts, decoder(inputs.tokenizer), runner.get_loop().time))


def ideal_run(shape: Shape) -> Rows:
    """The same without any work."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_run(shape, StandInPrompts(shape.samples), constant_texts, runner.get_loop().time))


def step_seconds(rows: Rows, warm_up: int = 1) -> float:
    """The mean of the steps that count."""
    return float(np.mean([row["seconds/step"] for row in rows[warm_up:]]))


def constant_texts(responses: Sequence[np.ndarray]) -> list[str]:
    return ["#### 42"] * len(responses)


async def _run(shape: Shape, prompts: PromptSource, decode: Decode, clock: Callable[[], float]) -> Rows:
    config = shape.config()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir(Path(folder))
        recorder = Recorder(run_dir, config, SilentProgress(), clock=clock)
        with contextlib.closing(recorder), heartbeat(recorder.beat, recorder.stage_changed):
            await _train(shape, config, run_dir, recorder, prompts, decode, clock)
        return [row for row in read_metrics(run_dir.path) if is_training_step(row)]


async def _train(
    shape: Shape,
    config: RunConfig,
    run_dir: RunDir,
    recorder: Recorder,
    prompts: PromptSource,
    decode: Decode,
    clock: Callable[[], float],
) -> None:
    slots = config.rollout.max_sequences

    async def spawn(name: str) -> StandInEngine:
        return timed(StandInEngine(name, shape, slots), name, recorder.times)

    fleet = RolloutFleet(
        spawn,
        settings=config.rollout,
        tolerance=ProbeTolerance.for_dtype("float32"),
        on_event=recorder.event,
        clock=clock,
    )
    learner = timed(StandInLearner(shape.latencies), "learner", recorder.times)
    critic = timed(StandInCritic(shape.latencies), "critic", recorder.times)
    reward_client = timed(StandInRewardClient(shape.latencies), "reward", recorder.times)
    sampling = SamplingSettings(1.0, config.rollout.max_response_tokens, (0,))
    pipeline = SamplePipeline(
        fleet=fleet,
        critic=critic,
        reward_client=reward_client,
        decode=decode,
        sampling=sampling,
        order=config.loop.minibatch_order,
        seed=config.seed,
    )
    evaluator = Evaluator(
        {},
        fleet=fleet,
        critic=critic,
        reward_client=reward_client,
        decode=decode,
        sampling=sampling,
        samples_per_prompt=1,
        seed=1,
    )
    gate, state = PauseGate(), TrainerState.initial()
    trainer = Trainer(
        config,
        Workers(fleet, learner, critic, None, reward_client, pipeline, evaluator),
        prompts,
        recorder,
        state=state,
        checkpoints=run_dir.checkpoints,
        settings={},
        gate=gate,
    )
    await fleet.start()
    recorder.begin(state)
    try:
        async with Controller(Inbox(run_dir.path), gate=gate, fleet=fleet, recorder=recorder).running():
            await trainer.run()
    finally:
        await pipeline.close()
        await fleet.close()
