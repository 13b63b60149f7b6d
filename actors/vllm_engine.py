"""Runs vLLM's engine in this process on one thread. Other threads send closures to it.

    any thread --call(closure)--> queue
        --> engine thread: [closures] step [closures] step ... --finished--> on_step

Closures run between steps, so adding a batch is atomic with respect to generation. With
asynchronous scheduling a batch may be on the device then: a closure that changes weights calls
`drain` first. Without a subprocess for the engine, start-up takes half the time, requests are not
pickled, and the end of the engine ends the process, which Ray reports at once.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine.llm_engine import LLMEngine

from actors.vllm_plugin import BACKEND, register
from actors.weights.layout import WeightsRefused
from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError

ENGINE_DIED = 17  # exit code of a process whose engine failed
PROGRESS_EVERY_S = 0.25
MIN_BATCHED_TOKENS = 8192
PROBE_ID = "weight-sync-probe"
GIB = 2**30
UNCHECKED = 0.01
"""gpu_memory_utilization with a KV cache of a given size. vLLM refuses to start when less than this
share of the GPU is free, and otherwise ignores it.
"""

T = TypeVar("T")


def engine_args(
    settings: RolloutSettings,
    *,
    model_path: str,
    max_model_len: int,
    seed: int,
    device: str,
    can_sleep: bool = False,
) -> EngineArgs:
    """Return vLLM's arguments: token ids as input and output, exact log-probs, reproducible
    scheduling. `can_sleep`: the engine frees its GPU for other roles, in turns.

    Raises UserError when the installed vLLM is for another device.
    """
    if current_platform.device_type != device:
        raise UserError(
            f"the vLLM that is installed runs on {current_platform.device_type}, and the engine was given "
            + (
                "no GPU: set rollout.gpus_per_worker, e.g. to 1, or install requirements/cpu.lock"
                if device == "cpu"
                else "a GPU: install requirements/cuda.lock, or set rollout.gpus_per_worker to 0"
            )
        )
    cpu, kv_cache = device == "cpu", settings.kv_cache_gib
    return EngineArgs(
        model=model_path,
        load_format="safetensors",  # pickled checkpoints can run code
        trust_remote_code=False,
        skip_tokenizer_init=True,
        generation_config="vllm",  # ignore sampling and stop tokens of the checkpoint
        dtype=settings.dtype,
        seed=seed,
        max_model_len=max_model_len,
        max_num_seqs=settings.max_sequences,
        max_num_batched_tokens=max(MIN_BATCHED_TOKENS, max_model_len),
        # A chunked prompt samples a token that is discarded. vLLM then resets the request's
        # generator, which torch's CPU generator does not support.
        enable_chunked_prefill=False if cpu else None,
        enable_prefix_caching=True,
        block_size=settings.block_size,
        enforce_eager=settings.enforce_eager,
        enable_sleep_mode=can_sleep and not cpu,  # on a CPU: actors/engine_sleep.py
        kv_cache_memory_bytes=None if kv_cache is None else int(kv_cache * GIB),
        gpu_memory_utilization=settings.gpu_memory_utilization if cpu or kv_cache is None else UNCHECKED,
        tensor_parallel_size=settings.tensor_parallel_size,
        distributed_executor_backend="uni" if settings.tensor_parallel_size == 1 else "mp",
        # after temperature: the distribution that the token was drawn from
        logprobs_mode="processed_logprobs",
        async_scheduling=settings.async_scheduling,
        # the probe of a weight sync precedes waiting requests
        scheduling_policy="priority",
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )


class EngineThread:
    """Owns an LLMEngine. A failure of the engine ends the process, so it is detected at once."""

    def __init__(
        self, describe: Callable[[], EngineArgs], on_step: Callable[[list[RequestOutput]], None]
    ) -> None:
        """`describe` and `on_step` are called on the engine's thread.

        An error in `describe` is a failed start. `on_step` is called after each step with the
        requests that finished in it.
        """
        self._describe = describe
        self._on_step = on_step
        self._jobs: queue.SimpleQueue[tuple[Callable[[LLMEngine], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._ended: BaseException | None = None  # why no further job will run
        self._finished_tokens = 0
        self.tokens_generated = 0  # total, including unfinished responses; updated 4 times a second
        self.progressed_at = time.monotonic()
        self.is_held = False  # jobs run, but nothing is generated
        self.started: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="vllm-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def call(self, job: Callable[[LLMEngine], T]) -> Future[T]:
        """Run `job(engine)` on the engine's thread between two steps.

        The future gets UserError and WeightsRefused of the job, which must be raised before the job
        changes anything, and the error of a failed start. Any other exception ends the process.
        """
        future: Future[T] = Future()
        self._jobs.put((job, future))
        if self._ended is not None:
            self._refuse_jobs(self._ended)
        return future

    def close(self) -> None:
        """End the engine and vLLM's worker processes after the current step."""
        self._jobs.put(None)
        self._thread.join()

    def step(self, engine: LLMEngine) -> list[RequestOutput]:
        """Do one step of generation and return the finished requests. On the engine's thread
        only.
        """
        done = [output for output in engine.step() if output.finished]
        self._finished_tokens += sum(len(output.outputs[0].token_ids) for output in done)
        if done or time.monotonic() - self.progressed_at >= PROGRESS_EVERY_S:
            self._note_progress(engine)
        return done

    def drain(self, engine: LLMEngine) -> list[RequestOutput]:
        """Wait until no batch is in flight and return the requests that finished meanwhile. On the
        engine's thread only.
        """
        return drain(engine, self.step)

    def _main(self) -> None:
        try:
            register()
            engine = LLMEngine.from_engine_args(self._describe())
            _warm_up(engine)
        except Exception as error:  # boundary
            # `started` passes any error of vLLM's start to the caller
            self.started.set_exception(error)
            self._refuse_jobs(error)
            return
        # Exclude existing objects from garbage collection, which would take a millisecond.
        gc.collect()
        gc.freeze()
        self.started.set_result(None)
        try:
            self._run(engine)
        except BaseException:  # boundary
            # the engine's state is unknown, so it must not generate any more
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(ENGINE_DIED)
        self._refuse_jobs(RuntimeError("the engine is closed"))

    def _run(self, engine: LLMEngine) -> None:
        while True:
            while self.is_held or not engine.has_unfinished_requests() or not self._jobs.empty():
                entry = self._jobs.get()
                if entry is None:
                    engine.engine_core.shutdown()
                    return
                _answer(engine, *entry)
                self.progressed_at = time.monotonic()
            self._on_step(self.step(engine))

    def _refuse_jobs(self, reason: BaseException) -> None:
        self._ended = reason
        while not self._jobs.empty():
            if (entry := self._jobs.get()) is not None:
                entry[1].set_exception(reason)

    def abort(self, engine: LLMEngine, request_ids: list[str]) -> None:
        """Drop requests; their generated tokens still count. On the engine's thread only."""
        running = _running_tokens(engine)
        engine.abort_request(request_ids)
        self._finished_tokens += running - _running_tokens(engine)

    def _note_progress(self, engine: LLMEngine) -> None:
        if (total := self._finished_tokens + _running_tokens(engine)) > self.tokens_generated:
            self.tokens_generated, self.progressed_at = total, time.monotonic()


def drain(engine: LLMEngine, step: Callable[[LLMEngine], list[RequestOutput]]) -> list[RequestOutput]:
    """Do steps that schedule no tokens until no batch is in flight; return the finished requests.

    The weights of a batch in flight are those of its version, and vLLM labels tokens when they
    arrive. Without asynchronous scheduling there is no queue of batches, and nothing to do.
    """
    core: Any = engine.engine_core
    core = core.engine_core  # the client's, in this process
    finished: list[RequestOutput] = []
    if not core.batch_queue:
        return finished
    core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    while core.batch_queue:
        finished += step(engine)
    core.scheduler.set_pause_state(PauseState.UNPAUSED)
    return finished


def _running_tokens(engine: LLMEngine) -> int:
    states = engine.output_processor.request_states.values()
    return sum(state.detokenizer.num_output_tokens() for state in states)


def _answer(engine: LLMEngine, job: Callable[[LLMEngine], Any], future: Future[Any]) -> None:
    try:
        result = job(engine)
    except (UserError, WeightsRefused) as refused:
        future.set_exception(refused)
    else:
        future.set_result(result)


def sampling_params(
    *, temperature: float, max_tokens: int, stop_token_ids: tuple[int, ...], seed: int
) -> SamplingParams:
    """Return the parameters of one response: sampling from softmax(logits / temperature), or argmax
    at temperature 0, with log-probs.
    """
    return SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed if temperature > 0 else None,
        stop_token_ids=list(stop_token_ids),
        # only stop_token_ids end a response, not the checkpoint's eos tokens
        ignore_eos=True,
        logprobs=0,  # the sampled token's only
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_logprobs(
    step: Callable[[LLMEngine], list[RequestOutput]], engine: LLMEngine, token_ids: tuple[int, ...]
) -> tuple[list[float], list[RequestOutput]]:
    """Return log p(token_ids[t] | token_ids[:t]) for t >= 1 at temperature 1.

    Also returns the other requests that finished meanwhile. The probe precedes all waiting
    requests; running requests continue. vLLM computes prompt log-probs without the prefix cache.
    """
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    engine.add_request(PROBE_ID, {"prompt_token_ids": list(token_ids)}, params, priority=-1)
    others: list[RequestOutput] = []
    while True:
        done = step(engine)
        others += [output for output in done if output.request_id != PROBE_ID]
        probe: Any = next((output for output in done if output.request_id == PROBE_ID), None)
        if probe is not None:
            return [
                row[token].logprob
                for token, row in zip(token_ids[1:], probe.prompt_logprobs[1:], strict=True)
            ], others


def _warm_up(engine: LLMEngine) -> None:
    """Run the model once, so that errors such as an unsupported head size appear at the start."""
    params = sampling_params(temperature=1.0, max_tokens=2, stop_token_ids=(), seed=0)
    engine.add_request("warm-up", {"prompt_token_ids": [0]}, params)
    while engine.has_unfinished_requests():
        engine.step()
    drain(engine, lambda engine: engine.step())
    engine.reset_prefix_cache()
