"""vLLM's engine in this process, owned by one thread: everything else is a closure that runs between two steps.

    any thread --call(closure)--> queue --> engine thread: [closures] step [closures] step ... --finished--> on_finished

Because closures run between steps, whatever one of them does (admit a batch, load weights) is atomic to generation.
No engine subprocess: half the start-up time, no pickling, and a dead engine is a dead process that Ray reports at once.
"""

from __future__ import annotations

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
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from actors.flat_layout import WeightsRefused
from actors.vllm_plugin import BACKEND, register
from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError

ENGINE_DIED = 17  # exit code of a process whose engine failed
PROGRESS_EVERY_S = 0.25
MIN_BATCHED_TOKENS = 8192
PROBE_ID = "weight-sync-probe"
GIB = 2**30

T = TypeVar("T")


def engine_args(settings: RolloutSettings, *, model_path: str, max_model_len: int, seed: int, device: str) -> EngineArgs:
    """What vLLM is told: token ids in and out, exact log-probs of what was sampled from, reproducible scheduling."""
    cpu = device == "cpu"
    return EngineArgs(
        model=model_path,
        load_format="safetensors",  # pickled checkpoints can run code
        trust_remote_code=False,
        skip_tokenizer_init=True,
        generation_config="vllm",  # sampling and stop tokens are ours, not the checkpoint's
        dtype=settings.dtype,
        seed=seed,
        max_model_len=max_model_len,
        max_num_seqs=settings.max_sequences,
        max_num_batched_tokens=max(MIN_BATCHED_TOKENS, max_model_len),
        # A prompt cut in two would sample and discard once more; vLLM then winds the request's generator back, which
        # torch's CPU generator cannot do.
        enable_chunked_prefill=False if cpu else None,
        enable_prefix_caching=True,
        block_size=settings.block_size,
        enforce_eager=settings.enforce_eager,
        kv_cache_memory_bytes=int(settings.kv_cache_gib * GIB) if cpu and settings.kv_cache_gib else None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        distributed_executor_backend="uni" if settings.tensor_parallel_size == 1 else "mp",
        logprobs_mode="processed_logprobs",  # after temperature: the distribution that the token was drawn from
        async_scheduling=False,  # a step in flight during a weight update would be labelled with the wrong version
        scheduling_policy="priority",  # lets the probe of a weight sync pass the requests in front of it
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )


class EngineThread:
    """Owns an LLMEngine. A failure of the engine ends the process, so that it is seen as a death and not as a hang."""

    def __init__(self, describe: Callable[[], EngineArgs], on_finished: Callable[[list[RequestOutput]], None]) -> None:
        """`describe` is called on the thread, where what it raises is a failed start like any other.

        `on_finished` is called on the thread with the requests that finished in a step.
        """
        self._describe = describe
        self._on_finished = on_finished
        self._jobs: queue.SimpleQueue[tuple[Callable[[LLMEngine], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._ended: BaseException | None = None  # why no further job will run
        self._finished_tokens = 0
        self.tokens_generated = 0  # in all, unfinished responses included; read 4 times a second
        self.progressed_at = time.monotonic()
        self.started: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="vllm-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def call(self, job: Callable[[LLMEngine], T]) -> Future[T]:
        """Run `job(engine)` on the engine's thread between two steps.

        UserError and WeightsRefused, raised before a job changed anything, go to the caller; so does the reason why an
        engine never started. Any other exception ends the process.
        """
        future: Future[T] = Future()
        self._jobs.put((job, future))
        if self._ended is not None:
            self._refuse_jobs(self._ended)
        return future

    def close(self) -> None:
        """End the engine and vLLM's worker processes; waits for the step that is running."""
        self._jobs.put(None)
        self._thread.join()

    def step(self, engine: LLMEngine) -> list[RequestOutput]:
        """One step of generation, on the engine's thread only. Returns the requests that it finished."""
        done = [output for output in engine.step() if output.finished]
        self._finished_tokens += sum(len(output.outputs[0].token_ids) for output in done)
        if done or time.monotonic() - self.progressed_at >= PROGRESS_EVERY_S:
            self._note_progress(engine)
        return done

    def _main(self) -> None:
        try:
            register()
            engine = LLMEngine.from_engine_args(self._describe())
            _warm_up(engine)
        except Exception as error:  # boundary: whatever vLLM raises while it starts is told to whoever waits for the start
            self.started.set_exception(error)
            self._refuse_jobs(error)
            return
        self.started.set_result(None)
        try:
            self._run(engine)
        except BaseException:  # boundary: the engine's state is unknown now, and nothing may be generated from it
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(ENGINE_DIED)
        self._refuse_jobs(RuntimeError("the engine is closed"))

    def _run(self, engine: LLMEngine) -> None:
        while True:
            while not engine.has_unfinished_requests() or not self._jobs.empty():
                entry = self._jobs.get()
                if entry is None:
                    engine.engine_core.shutdown()
                    return
                _answer(engine, *entry)
                self.progressed_at = time.monotonic()
            if done := self.step(engine):
                self._on_finished(done)

    def _refuse_jobs(self, reason: BaseException) -> None:
        self._ended = reason
        while not self._jobs.empty():
            if (entry := self._jobs.get()) is not None:
                entry[1].set_exception(reason)

    def _note_progress(self, engine: LLMEngine) -> None:
        running = sum(state.detokenizer.num_output_tokens() for state in engine.output_processor.request_states.values())
        if (total := self._finished_tokens + running) > self.tokens_generated:
            self.tokens_generated, self.progressed_at = total, time.monotonic()


def _answer(engine: LLMEngine, job: Callable[[LLMEngine], Any], future: Future[Any]) -> None:
    try:
        result = job(engine)
    except (UserError, WeightsRefused) as refused:
        future.set_exception(refused)
    else:
        future.set_result(result)


def sampling_params(*, temperature: float, max_tokens: int, stop_token_ids: tuple[int, ...], seed: int) -> SamplingParams:
    """One response: softmax(logits / temperature) untruncated, or the argmax at temperature 0; its log-probs with it."""
    return SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed if temperature > 0 else None,
        stop_token_ids=list(stop_token_ids),
        ignore_eos=True,  # the stop tokens are those given, whatever the checkpoint's configuration lists
        logprobs=0,  # the sampled token's only
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_logprobs(
    step: Callable[[LLMEngine], list[RequestOutput]], engine: LLMEngine, token_ids: tuple[int, ...]
) -> tuple[list[float], list[RequestOutput]]:
    """log p(token_ids[t] | token_ids[:t]) for t >= 1 at temperature 1, and the other requests that finished meanwhile.

    It goes in before every waiting request, and what runs goes on. Prompt log-probs never read the prefix cache.
    """
    params = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    engine.add_request(PROBE_ID, {"prompt_token_ids": list(token_ids)}, params, priority=-1)
    others: list[RequestOutput] = []
    while True:
        done = step(engine)
        others += [output for output in done if output.request_id != PROBE_ID]
        probe: Any = next((output for output in done if output.request_id == PROBE_ID), None)
        if probe is not None:
            return [row[token].logprob for token, row in zip(token_ids[1:], probe.prompt_logprobs[1:], strict=True)], others


def _warm_up(engine: LLMEngine) -> None:
    """Run the model once, so that what it lacks (a head size without a kernel, say) shows at the start."""
    params = sampling_params(temperature=1.0, max_tokens=2, stop_token_ids=(), seed=0)
    engine.add_request("warm-up", {"prompt_token_ids": [0]}, params)
    while engine.has_unfinished_requests():
        engine.step()
    engine.reset_prefix_cache()
