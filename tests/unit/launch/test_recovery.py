"""A run that loses FAKE workers: what is restored, when, and how often. Real workers are in
tests/ray/test_train.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.errors import UserError
from sppo_ray.evaluation.sampler import Evaluator
from sppo_ray.file_digests import FileDigest, digest_folder
from sppo_ray.launch.recovery import Ended, RecoveryLoop
from sppo_ray.protocols import FleetExhausted, WorkerDied, WorkerFailure, WorkerTimeout
from sppo_ray.rollout.pipeline import SamplePipeline
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import depends_on_the_clock, read_events, read_metrics
from sppo_ray.trainer.checkpoint import find_checkpoint
from sppo_ray.trainer.guardrails import GuardrailStop
from sppo_ray.trainer.loop import Workers
from sppo_ray.trainer.pause import PauseGate
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.types import CriticBatch, Minibatch
from tests.unit.fakes import FakeCritic, FakeFleet, FakeLearner, FakeRewardClient
from tests.unit.trainer.test_loop import SAMPLING, SMALL, Prompts


@dataclass
class MortalLearner(FakeLearner):
    """Dies in update number n of its life where `faults[n]` says so; its weights are the number of
    updates behind it.
    """

    faults: dict[int, WorkerFailure] = field(default_factory=dict)
    taken: int = 0

    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        if failure := self.faults.pop(self.taken, None):
            raise failure
        self.taken += 1
        return await super().update(minibatch) | {"logprob_difference_mean": 0.01 * self.taken}

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        (directory / "weights").write_text(str(self.taken))
        return digest_folder(directory)

    async def load(self, directory: Path) -> None:
        self.taken = int((directory / "weights").read_text())
        self.log.append(f"load learner {self.taken}")

    async def memory(self) -> dict[str, int]:
        return {"learner-0": 1}

    async def export(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "weights").write_text(str(self.taken))


@dataclass
class MortalCritic(FakeCritic):
    faults: dict[int, WorkerFailure] = field(default_factory=dict)
    taken: int = 0

    async def update(self, batch: CriticBatch) -> Mapping[str, float]:
        if failure := self.faults.pop(self.taken, None):
            raise failure
        self.taken += 1
        return await super().update(batch) | {"loss": 1.0 / self.taken}

    async def load(self, directory: Path) -> None:
        self.taken = int((directory / "weights").read_text())

    async def save(self, directory: Path) -> dict[str, FileDigest]:
        (directory / "weights").write_text(str(self.taken))
        return digest_folder(directory)

    def restore_version(self, version: int) -> None:
        self.log.append(f"critic version {version}")

    async def memory(self) -> dict[str, int]:
        return {"critic-0": 1}

    async def export(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)


class Remembering(FakeRewardClient):
    async def memory(self) -> dict[str, int]:
        return {"reward": 1}


class MortalFleet(FakeFleet):
    async def memory(self) -> dict[str, int]:
        return {}


class FakeManager:
    """New fakes at each start; `lose` is a loss that only the watch sees."""

    def __init__(
        self, config: RunConfig, log: list[str], learner_faults: dict[int, WorkerFailure], critic_faults: Any
    ) -> None:
        self.config, self.log = config, log
        self.fleet = MortalFleet()
        self.fleet.log = log
        self.learner_faults, self.critic_faults = learner_faults, critic_faults
        self.start_faults: list[Exception] = []
        self.starts = 0
        self.watched: asyncio.Future[NoReturn] | None = None
        self.pipeline: SamplePipeline | None = None

    async def start(self) -> Workers:
        self.starts += 1
        self.log.append("start")
        if self.start_faults:
            raise self.start_faults.pop(0)
        learner, critic = (
            MortalLearner(self.log, faults=self.learner_faults),
            MortalCritic(self.log, faults=self.critic_faults),
        )
        common: dict[str, Any] = {
            "fleet": self.fleet,
            "reward_client": Remembering(),
            "decode": lambda rows: ["text"] * len(rows),
            "sampling": SAMPLING,
        }
        self.pipeline = SamplePipeline(**common, critic=critic, order="dispatch", seed=1)
        evaluator = Evaluator({}, **common, critic=critic, samples_per_prompt=1, seed=1)
        return Workers(self.fleet, learner, critic, None, common["reward_client"], self.pipeline, evaluator)

    async def watch(self) -> NoReturn:
        self.watched = asyncio.get_running_loop().create_future()
        return await self.watched

    def lose(self, failure: WorkerFailure) -> None:
        assert self.watched is not None
        self.watched.set_exception(failure)

    async def reset(self, failure: WorkerFailure) -> None:
        self.log.append(f"reset after {failure.worker}")
        if self.pipeline is not None:
            await self.pipeline.close()


class Case:
    def __init__(
        self,
        path: Path,
        *overrides: str,
        learner: dict[int, WorkerFailure] | None = None,
        critic: dict[int, WorkerFailure] | None = None,
    ) -> None:
        settings = [*SMALL, "--loop.steps=4", "--checkpoint.every=2", "--recovery.backoff_s=0", *overrides]
        self.config = load_config("quickstart", settings)
        self.run_dir = RunDir(path)
        path.mkdir()
        self.log: list[str] = []
        self.manager = FakeManager(self.config, self.log, learner or {}, critic or {})
        self.gate = PauseGate()

    def run(self, meanwhile: Callable[[], Any] | None = None) -> Ended:
        return asyncio.run(asyncio.wait_for(self.scenario(meanwhile), 20))

    async def scenario(self, meanwhile: Callable[[], Any] | None = None) -> Ended:
        recorder = Recorder(self.run_dir, self.config, SilentProgress())
        incarnations = RecoveryLoop(
            self.config,
            self.run_dir,
            recorder,
            Prompts(self.config.data.prompts_per_step),
            manager=self.manager,
            gate=self.gate,
            find=lambda on_skip: find_checkpoint(self.run_dir.checkpoints, on_skip),
        )
        beside = asyncio.ensure_future(meanwhile()) if meanwhile else None
        try:
            return await incarnations.run(None)
        finally:
            if beside is not None:
                beside.cancel()
            recorder.close()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        rows = read_metrics(self.run_dir.path)
        return [
            {name: value for name, value in row.items() if not depends_on_the_clock(name)} for row in rows
        ]

    def told(self, kind: str) -> list[str]:
        return [event["message"] for event in read_events(self.run_dir.path) if event["kind"] == kind]

    @property
    def weights(self) -> str:
        return (self.run_dir.export / "policy" / "weights").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Case:
    case = Case(tmp_path_factory.mktemp("case") / "run")
    ended = case.run()
    # 4 steps of 2 minibatches; nothing was lost
    assert (ended.state.step, ended.state.restarts, ended.stopped, case.weights) == (4, 0, False, "8")
    return case


@pytest.mark.parametrize(
    ("role", "failure"),
    [
        ("learner", WorkerDied("learner-1", "died while a policy update: killed")),
        ("learner", WorkerTimeout("learner-0", "answered no probe for 30 s")),
        ("critic", WorkerDied("critic-0", "died while a critic update: killed")),
        ("learner", WorkerFailure("reference-0", "failed at computing reference_logprobs")),
        ("learner", WorkerDied("reward", "died while scoring")),
        ("learner", FleetExhausted("no worker is left after 3 restarts")),
    ],
)
def test_after_any_loss_the_run_becomes_the_undisturbed_one(
    tmp_path: Path, undisturbed: Case, role: str, failure: WorkerFailure
) -> None:
    """A loss in step 3, at update 5: the run returns to the checkpoint of step 2, with the weights
    after 4 updates.
    """
    case = Case(tmp_path / "run", **{role: {5: failure}})
    ended = case.run()
    assert (ended.state.step, ended.state.policy_version, ended.state.critic_version) == (4, 4, 8)
    assert (ended.state.restarts, case.weights) == (1, "8")
    assert case.metrics == undisturbed.metrics
    kind = f"{failure.worker.split()[-1].split('-')[0]}-lost"
    assert case.told(kind) == [f"{failure} (after step 2)"]
    assert case.told("recovering") == [
        "goes back from step 2 to the checkpoint of step 2: restart 1 of 3 without progress"
    ]


def test_weights_are_pushed_before_any_prompt_is_admitted(tmp_path: Path) -> None:
    case = Case(tmp_path / "run", learner={7: WorkerDied("learner-0", "died: killed")})
    case.run()
    after = case.log[case.log.index("reset after learner-0") :]
    order = [
        entry
        for entry in after
        if entry.startswith(("start", "load", "critic version", "publish", "sync", "generate"))
    ]
    # Lost in step 4 (updates 6 and 7); step 3 is taken again from the checkpoint of step 2.
    assert order == [
        "start", "load learner 4", "critic version 4", "publish 2", "sync 2",
        "generate step-2 at version "
        "2", "publish 3", "sync 3", "generate step-3 at version 3", "publish 4", "sync 4",
    ]  # fmt: skip


def test_without_a_checkpoint_the_run_starts_again_from_step_0(tmp_path: Path, undisturbed: Case) -> None:
    case = Case(
        tmp_path / "run", "--checkpoint.every=0", learner={5: WorkerDied("learner-0", "died: killed")}
    )
    ended = case.run()
    assert (ended.state.step, ended.state.restarts, case.weights) == (4, 1, "8")
    assert case.metrics == undisturbed.metrics
    (told,) = case.told("recovering")
    assert told.startswith(
        "goes back from step 2 to its start, for there is no checkpoint yet (checkpoint.every is 0)"
    )


def test_what_kills_it_at_the_same_step_each_time_ends_the_run_with_its_name(tmp_path: Path) -> None:
    class Cursed(dict[int, WorkerFailure]):
        def pop(self, key: int, default: Any = None) -> Any:  # type: ignore[override]
            return self.get(key, default)

    case = Case(tmp_path / "run", learner=Cursed({5: WorkerDied("learner-0", "died: out of memory")}))
    with pytest.raises(WorkerFailure) as failed:
        case.run()
    assert failed.value.worker == "learner-0"
    assert str(failed.value) == (
        "learner-0: died: out of memory (3 restarts in a row brought the run no further than step 2)"
    )
    assert case.manager.starts == 1 + 3
    # `run_workers` closes the workers
    assert case.log[-1] != "reset after learner-0"


def test_progress_gives_the_restarts_back(tmp_path: Path) -> None:
    """One restart allowed, two losses: in step 3 and, a step further, in step 4."""
    lost = WorkerDied("learner-0", "died: killed")
    case = Case(
        tmp_path / "run", "--recovery.max_restarts=1", "--checkpoint.every=1", learner={4: lost, 6: lost}
    )
    ended = case.run()
    assert (ended.state.step, ended.state.restarts) == (4, 2)
    twice = Case(
        tmp_path / "twice",
        "--recovery.max_restarts=1",
        "--checkpoint.every=1",
        learner={4: lost},
        critic={5: lost},
    )
    with pytest.raises(WorkerFailure, match=r"1 restarts in a row brought the run no further than step 2"):
        twice.run()


def test_a_guardrails_pause_keeps_its_limit_over_a_loss(tmp_path: Path) -> None:
    """The learner dies while a guardrail holds the run: the next one is held as well, and no longer
    than the first.
    """
    case = Case(tmp_path / "run", "--guardrails.max_pause_s=0.2")
    case.gate.pause("kl: too large.")

    async def lose_the_learner() -> None:
        while not case.told("paused"):
            await asyncio.sleep(0.01)
        case.manager.lose(WorkerDied("learner-0", "died while a ping: killed"))

    with pytest.raises(GuardrailStop, match=r"^kl: too large\. The pause timed out after 0.2 s"):
        case.run(lose_the_learner)
    assert case.manager.starts == 2 and len(case.told("learner-lost")) == 1


def test_none_allowed_ends_at_the_first_loss(tmp_path: Path) -> None:
    case = Case(
        tmp_path / "run", "--recovery.max_restarts=0", critic={5: WorkerDied("critic-0", "died: killed")}
    )
    with pytest.raises(WorkerDied, match=r"^critic-0: died: killed$"):
        case.run()


def test_back_off_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float, result: Any = None) -> Any:
        if result is True:
            waited.append(seconds)
        return await sleep(0, result)

    monkeypatch.setattr("sppo_ray.launch.recovery.asyncio.sleep", note)
    case = Case(tmp_path / "run", "--recovery.backoff_s=2")
    case.manager.start_faults = [WorkerDied("critic-0", "died while start-up: killed")] * 3
    case.run()
    assert waited == [2.0, 4.0, 8.0]


def test_a_loss_between_calls_is_seen_by_the_watch(tmp_path: Path, undisturbed: Case) -> None:
    case = Case(tmp_path / "run")

    async def lose_it() -> None:
        while case.log.count("sync 3") == 0:
            await asyncio.sleep(0)
        case.manager.lose(WorkerTimeout("critic-0", "answered no probe for 30 s: frozen"))

    ended = case.run(lose_it)
    assert (ended.state.step, ended.state.restarts) == (4, 1)
    assert case.metrics == undisturbed.metrics
    assert case.told("critic-lost")


def test_what_cannot_start_ends_the_run_at_once(tmp_path: Path) -> None:
    for failure in (
        WorkerTimeout("learner-0", "gave no answer to start-up in 600 s"),
        UserError("the model does not load"),
    ):
        case = Case(tmp_path / type(failure).__name__)
        case.manager.start_faults = [failure]
        with pytest.raises(type(failure)):
            case.run()
        assert case.manager.starts == 1


def test_a_stop_that_comes_while_it_restarts_ends_it_there(tmp_path: Path) -> None:
    case = Case(
        tmp_path / "run", "--recovery.backoff_s=1000", learner={5: WorkerDied("learner-0", "died: killed")}
    )

    async def stop_it() -> None:
        while not case.told("recovering"):
            await asyncio.sleep(0.01)
        case.gate.stop()

    ended = case.run(stop_it)
    # the checkpoint that it can be resumed from
    assert (ended.stopped, ended.state.step) == (True, 2)
    assert case.manager.starts == 1
