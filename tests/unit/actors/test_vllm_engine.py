"""The engine's arguments by device, and the wait for batches in flight. No engine is started."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.llm_engine import LLMEngine

from actors.engine_sleep import CpuSleep, VllmSleep, engine_sleep
from actors.vllm_engine import GIB, drain, engine_args
from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError

BATCHES = 2  # in flight at most, as vLLM has it with asynchronous scheduling


class FakeScheduler:
    """Schedules one token of every request at each step, like vLLM's scheduler. A request ends
    after `length` tokens.
    """

    def __init__(self, lengths: dict[str, int]) -> None:
        self.left = dict(lengths)  # tokens still to schedule
        self.missing = dict(lengths)  # tokens still to arrive
        self.pause_state = PauseState.UNPAUSED
        self.unreported = False  # requests that finished are reported to the workers in a batch

    def set_pause_state(self, state: PauseState) -> None:
        self.pause_state = state

    def has_requests(self) -> bool:
        return self.unreported or (self.pause_state != PauseState.PAUSED_ALL and any(self.left.values()))

    def schedule(self, _: bool) -> Any:
        names = [name for name, left in self.left.items() if left]
        if self.pause_state == PauseState.PAUSED_ALL:
            names = []
        for name in names:
            self.left[name] -= 1
        self.unreported = False
        return SimpleNamespace(
            total_num_scheduled_tokens=len(names), names=names, pending_structured_output_tokens=False
        )

    def get_grammar_bitmask(self, _: Any) -> None:
        return None

    def update_from_output(self, batch: Any, _: Any) -> dict[int, list[str]]:
        for name in batch.names:
            self.missing[name] -= 1
        ended = [name for name in batch.names if not self.missing[name]]
        self.unreported |= bool(ended)
        return {0: ended}


class FakeEngineCore:
    """vLLM's own step over a queue of batches, on a fake scheduler and a device that is always
    ready.
    """

    step_with_batch_queue = EngineCore.step_with_batch_queue

    def __init__(self, scheduler: FakeScheduler, *, asynchronous: bool = True) -> None:
        self.scheduler = scheduler
        self.batch_queue: deque[Any] | None = deque(maxlen=BATCHES) if asynchronous else None
        self.batch_queue_size = BATCHES
        self.is_mm_encoder_only = self.is_pooling_model = self.check_for_draft_tokens = False
        done: Future[object] = Future()
        done.set_result(object())
        self.model_executor = SimpleNamespace(
            execute_model=lambda batch, non_block: done, sample_tokens=lambda grammar, non_block: done
        )

    def log_error_detail(self, _: Any) -> Any:
        return nullcontext()

    capture_iteration_details = log_error_detail

    def _should_throttle_prefills(self) -> bool:
        return False

    def _process_aborts_queue(self) -> None:
        pass

    def _attach_iteration_details(self, *_: Any) -> None:
        pass

    _attach_weight_version = _attach_iteration_details


class FakeEngine:
    """The part of LLMEngine and its in-process client that `drain` uses."""

    def __init__(self, core: FakeEngineCore) -> None:
        self.engine_core = SimpleNamespace(engine_core=core)
        self.core = core
        self.steps = 0

    def step(self) -> list[Any]:
        self.steps += 1
        outputs, _ = self.core.step_with_batch_queue()
        return (outputs or {}).get(0, [])


def engine_with(lengths: dict[str, int]) -> FakeEngine:
    return FakeEngine(FakeEngineCore(FakeScheduler(lengths)))


@pytest.mark.parametrize("steps", range(1, 9))
def test_no_batch_is_in_flight_after_a_drain(steps: int) -> None:
    engine = engine_with({"short": 3, "long": 20})
    scheduler, core = engine.core.scheduler, engine.core
    finished = [name for _ in range(steps) for name in engine.step()]
    assert core.batch_queue  # a batch is in flight, with the weights of before
    scheduled = dict(scheduler.left)
    finished += drain(engine, FakeEngine.step)
    assert not core.batch_queue
    assert scheduler.left == scheduled == scheduler.missing  # no token was scheduled, all have arrived
    assert finished == (["short"] if scheduler.left["short"] == 0 else [])
    assert scheduler.pause_state == PauseState.UNPAUSED
    while any(scheduler.missing.values()):  # generation goes on
        engine.step()


def test_the_last_batch_of_the_last_request_is_drained() -> None:
    engine = engine_with({"only": 1})
    engine.step()
    assert drain(engine, FakeEngine.step) == ["only"]
    assert not engine.core.batch_queue


def test_an_engine_without_asynchronous_scheduling_does_no_step() -> None:
    engine = FakeEngine(FakeEngineCore(FakeScheduler({"a": 3}), asynchronous=False))
    assert drain(engine, FakeEngine.step) == [] and engine.steps == 0


# ---------------------------------------------------------------------------------------- arguments


def arguments(settings: RolloutSettings, device: str, monkeypatch: pytest.MonkeyPatch) -> EngineArgs:
    monkeypatch.setattr(type(current_platform), "device_type", device)
    return engine_args(settings, model_path="/", max_model_len=64, seed=1, device=device)


def test_an_engine_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(RolloutSettings(), "cpu", monkeypatch)
    assert (args.dtype, args.enforce_eager, args.async_scheduling) == ("float32", True, False)
    assert args.kv_cache_memory_bytes == GIB
    assert args.enable_chunked_prefill is False


def test_an_engine_on_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(RolloutSettings(gpus_per_worker=1), "cuda", monkeypatch)
    assert (args.dtype, args.enforce_eager, args.async_scheduling) == ("bfloat16", False, True)
    assert (args.kv_cache_memory_bytes, args.gpu_memory_utilization) == (None, 0.85)


def test_an_engine_that_shares_its_gpu_does_not_measure_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(RolloutSettings(gpus_per_worker=0.5, kv_cache_gib=2), "cuda", monkeypatch)
    assert args.kv_cache_memory_bytes == 2 * GIB
    # vLLM refuses to start when less than this share of the GPU is free
    assert args.gpu_memory_utilization <= 0.01


@pytest.mark.parametrize(("device", "enabled"), [("cuda", True), ("cpu", False)])
def test_an_engine_that_takes_turns_has_sleep_mode_on_a_gpu(
    device: str, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(current_platform), "device_type", device)
    settings = RolloutSettings(gpus_per_worker=float(enabled), kv_cache_gib=2)
    common: Any = {"model_path": "/", "max_model_len": 64, "seed": 1, "device": device}
    assert engine_args(settings, **common, can_sleep=True).enable_sleep_mode is enabled
    assert engine_args(settings, **common).enable_sleep_mode is False


def test_the_calls_of_sleep_mode() -> None:
    """A FAKE engine notes what real vLLM is asked for; on a GPU nothing else happens."""
    engine: Any = Mock(spec=LLMEngine)
    sleep = engine_sleep("cuda")
    sleep.sleep(engine)
    sleep.wake(engine, "weights")
    sleep.wake(engine, "kv_cache")
    assert type(sleep) is VllmSleep
    assert engine.mock_calls == [
        call.sleep(level=2, mode="keep"), call.wake_up(tags=["weights"]), call.wake_up(tags=["kv_cache"]),
    ]  # fmt: skip
    assert type(engine_sleep("cpu")) is CpuSleep


@pytest.mark.parametrize(
    ("installed", "device", "remedy"),
    [("cuda", "cpu", "set rollout.gpus_per_worker"), ("cpu", "cuda", "install requirements/cuda.lock")],
)
def test_a_vllm_for_another_device_is_refused(
    installed: str, device: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(current_platform), "device_type", installed)
    with pytest.raises(UserError, match=remedy):
        engine_args(RolloutSettings(), model_path="/", max_model_len=64, seed=1, device=device)
