"""A whole run whose roles share one GPU: the real loop, fleet, manager and recovery on FAKE workers
that book what they hold on a FAKE GPU, and die where a test says so. Real workers are in
tests/ray/test_colocated.py.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.errors import UserError
from sppo_ray.file_digests import FileDigest
from sppo_ray.launch.recovery import RecoveryLoop
from sppo_ray.launch.worker_manager import WorkerManager
from sppo_ray.protocols import Holds, Invitation, PublishedWeights, ScoreRequest, WeightReceipt, WorkerDied
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import read_events
from sppo_ray.trainer.checkpoint import TrainerState, find_checkpoint
from sppo_ray.trainer.pause import PauseGate
from sppo_ray.trainer.phases import Phase
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.turns import Colocated
from sppo_ray.types import (
    CriticBatch,
    Minibatch,
    PromptValue,
    RolloutRequest,
    SamplingSettings,
    TokenCriticBatch,
    TokenRows,
    Trajectory,
    Verdict,
)
from tests.unit.fakes import FakeCritic, FakeLearner, FakeRewardClient
from tests.unit.trainer.test_loop import SMALL, Prompts, prompt

STEPS, MINIBATCHES = 3, 2


@dataclass
class Gpu:
    """Books what each process holds, refuses what does not fit, and ends the process that makes
    call number n of the run, for n in `faults`.
    """

    faults: frozenset[int] = frozenset()
    held: dict[str, Holds] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)

    def hold(self, name: str, what: Holds) -> None:
        self.held[name] = what
        optimizers = [n for n, held in self.held.items() if held is Holds.ALL and not n.startswith("rollout")]
        awake = [n for n, held in self.held.items() if held is Holds.ALL and n.startswith("rollout")]
        assert len(optimizers) <= 1, self.held
        assert not (optimizers and awake), self.held

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        before = self.held[name]
        self.hold(name, max(before, Holds.WEIGHTS))
        yield
        self.hold(name, before)

    def call(self, name: str, what: str) -> None:
        self.calls.append(f"{name} {what}")
        if len(self.calls) in self.faults:
            self.end(name)
            self.died.append(f"{name} {what}")
            raise WorkerDied(name, f"fake end in {what}")

    def end(self, name: str) -> None:
        self.held.pop(name, None)


class Engine:
    def __init__(self, name: str, gpu: Gpu) -> None:
        self.name, self.gpu, self.version, self.tokens = name, gpu, -1, 0
        gpu.call(name, "start")
        gpu.hold(name, Holds.ALL)

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Trajectory]]:
        for request in requests:
            self.gpu.call(self.name, "generate")
            await asyncio.sleep(0)
            assert self.gpu.held[self.name] is Holds.ALL, "a sleeping engine generates"
            self.tokens += 2
            yield [_trajectory(request, self.version, self.name)]

    async def pull_weights(self, published: PublishedWeights) -> WeightReceipt:
        for held in (Holds.WEIGHTS, Holds.ALL):
            self.gpu.call(self.name, "pull")
            self.gpu.hold(self.name, max(held, self.gpu.held[self.name]))
            await asyncio.sleep(0)
        self.version = published.manifest.version
        manifest = published.manifest
        return WeightReceipt(self.name, self.version, manifest.digest, 1, published.probe_logprobs, 0.0)

    async def places(self) -> list[str]:
        return ["gpu"]

    async def join_group(self, invitation: Invitation) -> None:
        pass

    async def receive_weights(self, published: PublishedWeights, epoch: int) -> None:
        self.gpu.call(self.name, "receive")
        self.gpu.hold(self.name, max(Holds.WEIGHTS, self.gpu.held[self.name]))

    async def serve_received(self, published: PublishedWeights) -> WeightReceipt:
        assert self.gpu.held.get("learner-0", Holds.NOTHING) is Holds.NOTHING, "it is still there"
        return await self.pull_weights(published)

    async def sleep(self) -> None:
        self.gpu.call(self.name, "sleep")
        self.gpu.hold(self.name, Holds.NOTHING)

    async def ping(self) -> dict[str, Any]:
        return {"tokens_generated": self.tokens}

    async def abort(self) -> None:
        pass

    async def memory(self) -> dict[str, int]:
        return {self.name: 1}

    async def close(self) -> None:
        self.gpu.end(self.name)


def _trajectory(request: RolloutRequest, version: int, worker: str) -> Trajectory:
    return Trajectory(
        request.request_id, request.prompt_id, (5, 0), (-0.1, -0.2), "stop", version, version, worker, 0.1
    )


class Rank:
    """What learner and critic share. `taken`: updates behind its weights."""

    name: str
    gpu: Gpu
    taken: int

    def begin(self) -> None:
        self.gpu.call(self.name, "start")
        self.gpu.hold(self.name, Holds.ALL)

    async def hold(self, wanted: Holds) -> None:
        self.gpu.call(self.name, "hold")
        await asyncio.sleep(0)
        self.gpu.hold(self.name, wanted)

    def works(self, what: str) -> None:
        self.gpu.call(self.name, what)
        assert self.gpu.held[self.name] is Holds.ALL, f"{self.name}: {what} without its optimizer"

    async def load(self, directory: Path) -> None:
        self.works("load")
        self.taken = int((directory / "weights").read_text())

    async def export(self, directory: Path) -> None:
        with self.gpu.reading(self.name):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "weights").write_text(str(self.taken))

    async def watch(self, _: Any) -> NoReturn:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def memory(self) -> dict[str, int]:
        return {self.name: 1}

    async def close(self) -> None:
        self.gpu.end(self.name)


class Learner(Rank, FakeLearner):
    """`sends`: the engines copy the weights out of its memory, as by ipc."""

    name = "learner-0"

    def __init__(self, gpu: Gpu, sends: bool) -> None:
        super().__init__([])
        self.gpu, self.taken, self.sends = gpu, 0, sends
        self.begin()

    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        self.works("update")
        self.taken += 1
        return await super().update(minibatch)

    async def recompute_logprobs(self, minibatch: Minibatch) -> Minibatch:
        with self.gpu.reading(self.name):
            return minibatch

    async def publish(self, version: int) -> PublishedWeights:
        self.gpu.call(self.name, "publish")
        with self.gpu.reading(self.name):
            await asyncio.sleep(0)
            published = await super().publish(version)
            return replace(published, sender=self) if self.sends else published

    async def open_group(self, epoch: int, workers: Sequence[Any]) -> None:
        self.gpu.call(self.name, "open")

    async def send(self, version: int, epoch: int) -> None:
        self.gpu.call(self.name, "send")
        with self.gpu.reading(self.name):
            for _ in range(5):
                await asyncio.sleep(0)

    async def flat(self, version: int) -> PublishedWeights:
        self.gpu.call(self.name, "flat")
        with self.gpu.reading(self.name):
            return await FakeLearner.publish(self, version)

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        self.gpu.call(self.name, "save")
        self.updates = [None] * self.taken  # type: ignore[list-item]
        return await super().save(directory)


class Critic(Rank, FakeCritic):
    name = "critic-0"

    def __init__(self, gpu: Gpu) -> None:
        super().__init__([])
        self.gpu, self.taken = gpu, 0
        self.begin()

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        self.works("update")
        self.taken += 1
        return await super().update(batch)

    async def values(self, prompts: TokenRows) -> list[PromptValue]:
        self.gpu.call(self.name, "values")
        with self.gpu.reading(self.name):
            await asyncio.sleep(0)
            return await super().values(prompts)

    async def token_update(self, batch: TokenCriticBatch) -> Mapping[str, float]:
        self.works("update")
        self.taken += 1
        return await super().token_update(batch)

    async def token_values(self, prompts: TokenRows, responses: TokenRows) -> list[np.ndarray]:
        with self.gpu.reading(self.name):
            return await super().token_values(prompts, responses)

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        self.gpu.call(self.name, "save")
        self.batches = [None] * self.taken
        return await super().save(directory)

    def restore_version(self, version: int) -> None:
        assert version == self.taken


class Reward(FakeRewardClient):
    """Three of four rewards are 1, so some groups of a prompt differ."""

    judged = 0

    async def judge(self, request: ScoreRequest) -> Verdict:
        self.judged += 1
        return Verdict(float(self.judged % 4 > 0), "", 0.0)

    async def memory(self) -> dict[str, int]:
        return {"reward": 1}

    async def watch(self, _: Any) -> NoReturn:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def close(self) -> None:
        pass


class Factory:
    """Starts fake processes on one GPU."""

    def __init__(self, gpu: Gpu, config: RunConfig) -> None:
        self.gpu = gpu
        self._has_critic = config.has_critic
        self._sends = config.transport == "ipc"
        self.places = SimpleNamespace(needs="1 GPU", release=lambda name: None, reserve=self._reserve)

    async def _reserve(self, name: str) -> None:
        pass

    async def rollout_worker(self, name: str, *_: Any) -> Engine:
        await asyncio.sleep(0)
        return Engine(name, self.gpu)

    async def learner(self, _: Path) -> Learner:
        return Learner(self.gpu, self._sends)

    async def critic(self, _: Path, __: Path) -> Critic | None:
        return Critic(self.gpu) if self._has_critic else None

    async def reference(self, _: Path) -> None:
        return None

    async def environment_client(self) -> None:
        return None

    async def reward_client(self) -> Reward:
        return Reward()

    def pending(self) -> list[Any]:
        return []


INPUTS = SimpleNamespace(
    policy_path=Path("policy"),
    critic_path=Path("critic"),
    stop_token_ids=(0,),
    tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: "text"),
    held_out={"task": [prompt(i) for i in range(3)]},
)
SETTINGS = [
    *SMALL,
    f"--loop.steps={STEPS}",
    "--cluster.layout=colocated",
    "--checkpoint.every=1",
    "--eval.every=1",
    "--eval.at_start=true",
    "--recovery.backoff_s=0",
    "--recovery.max_restarts=20",
    "--rollout.max_restarts=20",
    "--weight_sync.verify=true",
    "--weight_sync.max_first_batch_difference=10",
]


@dataclass
class Case:
    gpu: Gpu
    path: Path
    state: TrainerState | None = None
    phases: list[Phase] = field(default_factory=list)

    def run(self, *overrides: str, gate: PauseGate | None = None) -> Case:
        self.state = asyncio.run(asyncio.wait_for(self._run(overrides, gate or PauseGate()), 60))
        return self

    async def _run(self, overrides: Sequence[str], gate: PauseGate) -> TrainerState:
        config = load_config("quickstart", [*SETTINGS, *overrides])
        self.path.mkdir(exist_ok=True)
        run_dir = RunDir(self.path)
        recorder = Recorder(run_dir, config, SilentProgress())
        factory: Any = Factory(self.gpu, config)
        manager = WorkerManager(config, INPUTS, recorder, factory)  # type: ignore[arg-type]
        find = lambda on_skip: find_checkpoint(run_dir.checkpoints, on_skip)  # noqa: E731
        prompts = Prompts(config.data.prompts_per_step)
        loop = RecoveryLoop(
            config, run_dir, recorder, prompts, manager=manager, gate=gate, find=find
        )
        try:
            return (await loop.run(find(lambda text: None))).state
        finally:
            await manager.close()
            recorder.close()

    @property
    def exported(self) -> tuple[int, int]:
        """Updates behind the exported policy and critic."""
        policy, critic = (
            int((self.path / "export" / role / "weights").read_text()) for role in ("policy", "critic")
        )
        return policy, critic


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.rollout.fleet.restart_delay_s", lambda restarts: 0.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(Gpu(), tmp_path_factory.mktemp("case") / "run").run()


def test_a_step_takes_turns(undisturbed: Case) -> None:
    assert undisturbed.exported == (STEPS * MINIBATCHES, STEPS * MINIBATCHES)
    start = [call for call in undisturbed.gpu.calls if call.endswith(("start", "sleep", "hold", "publish"))]
    assert start[:9] == [
        "rollout-0 start", "rollout-0 sleep",
        "learner-0 start", "learner-0 hold",
        "critic-0 start", "critic-0 hold",
        "learner-0 hold", "learner-0 publish", "learner-0 hold",
    ]  # fmt: skip
    begin = undisturbed.gpu.calls.index("rollout-0 sleep", 2)
    step = [call for call in undisturbed.gpu.calls[begin:] if not call.endswith(("generate", "values"))]
    assert step[:12] == [
        "rollout-0 sleep", "learner-0 hold", "learner-0 update", "learner-0 update",
        "learner-0 hold", "critic-0 hold", "critic-0 update", "critic-0 update",
        "critic-0 hold", "learner-0 hold", "learner-0 publish", "learner-0 hold",
    ]  # fmt: skip


IPC = "--weight_sync.transport=ipc"


def test_an_engine_brings_its_kv_cache_when_the_learner_has_sent_the_weights(
    undisturbed: Case, tmp_path: Path
) -> None:
    case = Case(Gpu(), tmp_path / "run").run(IPC)
    assert case.exported == undisturbed.exported
    calls = case.gpu.calls
    assert calls.count("rollout-0 receive") == calls.count("learner-0 send") == STEPS + 1
    assert "learner-0 flat" not in calls


@given(
    faults=st.sets(st.integers(1, 130), min_size=1, max_size=4),
    transport=st.sampled_from([IPC, "--weight_sync.transport=flat"]),
)
@settings(max_examples=40, deadline=None)
def test_every_fault_heals_and_no_gpu_is_overfull(faults: set[int], transport: str) -> None:
    """A process ends in any of its calls: a start, a sleep, a pull, an update, a checkpoint ..."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Gpu(frozenset(faults)), Path(folder) / "run").run("--rollout.workers=1", transport)
        assert case.state is not None and case.state.step == STEPS
        assert case.exported == (STEPS * MINIBATCHES, STEPS * MINIBATCHES)


@pytest.mark.parametrize("what", ["start", "sleep", "pull", "generate"])
def test_an_engine_that_dies_is_started_in_a_generation_phase(
    what: str, undisturbed: Case, tmp_path: Path
) -> None:
    number = [i for i, call in enumerate(undisturbed.gpu.calls, 1) if call == f"rollout-0 {what}"][-1]
    case = Case(Gpu(frozenset({number})), tmp_path / "run").run()
    assert case.gpu.died == [f"rollout-0 {what}"]
    assert case.exported == undisturbed.exported
    events = [event["kind"] for event in read_events(case.path)]
    assert "worker-revived" in events and "recovering" not in events


def test_an_engine_lost_while_others_train_waits_for_its_turn() -> None:
    async def scenario() -> list[str]:
        told: list[str] = []

        async def sleep_engines() -> None:
            told.append("sleep")

        turns = Colocated(sleep_engines)
        await turns.enter(Phase.GENERATE)
        await turns.enter(Phase.POLICY)

        async def revive() -> None:
            async with turns.starting():
                told.append(f"start in {turns.phase}")
                await asyncio.sleep(0.01)
                told.append("started")

        reviving = asyncio.ensure_future(revive())
        for phase in (Phase.CRITIC, Phase.PUBLISH):
            await turns.enter(phase)
            await asyncio.sleep(0)
            told.append(phase)
        await turns.enter(Phase.GENERATE)
        await asyncio.sleep(0)
        await turns.enter(Phase.POLICY)  # waits for the start, then puts the engine to sleep
        told.append(Phase.POLICY)
        await reviving
        return told

    assert asyncio.run(scenario()) == [
        "sleep", "critic", "publish", "start in generate", "started", "sleep", "policy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        ["--algorithm.old_logprobs=learner"],
        ["--critic.warmup_steps=1"],
        ["--data.curriculum.candidates=2"],
        ["--loop.minibatch_order=finish"],
        ["--algorithm.type=remax"],
        ["--algorithm.type=reinforce"],
        ["--algorithm.type=ppo"],
        ["--algorithm.type=grpo", "--data.samples_per_prompt=2"],
        ["--algorithm.type=grpo", "--data.samples_per_prompt=2", "--algorithm.dynamic_sampling.max_rounds=3"],
    ],
    ids=" ".join,
)
def test_every_algorithm_takes_turns(overrides: list[str], tmp_path: Path) -> None:
    """Groups, greedy baselines, further draws, a token critic, a curriculum: all samples are there
    before the engines sleep.
    """
    case = Case(Gpu(), tmp_path / "run").run(*overrides)
    assert case.state is not None and case.state.step == STEPS
    calls = [call for call in case.gpu.calls if call.endswith(("sleep", "update", "publish"))]
    assert "learner-0 update" in calls
    assert calls.count("rollout-0 sleep") == STEPS + 1
    for update in (i for i, call in enumerate(calls) if call == "learner-0 update"):
        assert calls[update - 1] in ("rollout-0 sleep", "learner-0 update")


def test_pause_checkpoint_and_stop_are_legal(tmp_path: Path) -> None:
    """All three meet the run between two steps, with the engines awake."""

    async def scenario(case: Case, gate: PauseGate) -> TrainerState:
        running = asyncio.ensure_future(case._run((), gate))
        while "learner-0 update" not in case.gpu.calls:  # the whole run takes milliseconds
            await asyncio.sleep(0)
        gate.pause("test")
        await asyncio.sleep(0.1)
        gate.resume()
        gate.stop()
        return await running

    case = Case(Gpu(), tmp_path / "run")
    stopped = asyncio.run(asyncio.wait_for(scenario(case, PauseGate()), 60))
    resumed = Case(Gpu(), tmp_path / "run").run()
    assert stopped.step < STEPS
    assert resumed.state is not None and resumed.state.step == STEPS
    assert resumed.exported == (STEPS * MINIBATCHES, STEPS * MINIBATCHES)


def test_the_number_of_engines_is_fixed(tmp_path: Path) -> None:
    config = load_config("quickstart", SETTINGS)
    with closing(Recorder(RunDir(tmp_path), config, SilentProgress())) as recorder:
        manager = WorkerManager(config, INPUTS, recorder, Factory(Gpu(), config))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"2 is more than rollout.max_workers 1"):
            manager.fleet.scale(2)
