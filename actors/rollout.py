"""Rollout worker: generates responses with vLLM and takes over new weights between two steps of it.

    generate(requests) --admit, all at once--> EngineThread --finished, one by one--> inbox --> yield Trajectory
    pull_weights(manifest, buffer) --> [load, new version, forget every KV block, probe] --> WeightReceipt

Requests in flight during a pull go on under the new weights from their next token; their KV cache is recomputed, and
each trajectory says which versions sampled its first and its last token.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray

from actors.memory import peak_bytes, worker_peak_bytes
from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError
from sppo_ray.trainer.interfaces import WeightManifest, WeightReceipt
from sppo_ray.types import RolloutRequest, SamplingSettings, Trajectory

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

SHARED_MEMORY = "/dev/shm"
INITIAL_VERSION = 0  # the checkpoint that the engine started from
T = TypeVar("T")


def rollout_env(settings: RolloutSettings, device: str) -> dict[str, str]:
    """Environment of a rollout process, for Ray's `runtime_env`: vLLM and OpenMP read it when they are imported.

    On a CPU an engine has as many OpenMP threads as whole CPUs, and idle ones sleep: threads that spin at a barrier
    beside another busy process slow both down tenfold and more.
    """
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu":
        threads = max(1, int(settings.cpus_per_worker) // settings.tensor_parallel_size)
        # Ray decides what runs where; vLLM's own binding wants a NUMA node for each worker process.
        env |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return env


@dataclass(slots=True)
class _InFlight:
    request: RolloutRequest
    submitted_at: float  # time.monotonic()
    inbox: asyncio.Queue[list[Trajectory | None]]  # what a step finished; None = a request was aborted
    loop: asyncio.AbstractEventLoop


class RolloutWorker:
    """One vLLM engine in this process, on CPU or GPU.

    With tensor_parallel_size above 1, vLLM's own worker processes compute; each reads new weights from a file in shared
    memory and needs this package's entry point installed, not only importable. The tests run size 1; size 2 has been
    run on a CPU. An update that such a worker refuses ends the engine, since the refusal crosses as a plain error.
    """

    def __init__(
        self,
        name: str,
        settings: RolloutSettings,
        *,
        model_path: str,
        max_model_len: int,
        stop_token_ids: tuple[int, ...],
        seed: int,
        device: str,
    ) -> None:
        """Starts the engine in the background; `ready` waits for it. `stop_token_ids` hold where a call names none."""
        self._began = time.monotonic()
        os.environ.update(rollout_env(settings, device))
        # Imported here: vLLM reads the environment at import, and the driver that ships this class needs no vLLM.
        from actors.vllm_engine import EngineThread, engine_args

        self.name = name
        self._settings = settings
        self._model_path = model_path
        self._max_model_len = max_model_len
        self._stop_token_ids = stop_token_ids
        self._device = device
        self._version = INITIAL_VERSION
        self._in_flight: dict[str, _InFlight] = {}
        self._admitted = 0
        self._engine = EngineThread(
            lambda: engine_args(
                settings,
                model_path=model_path,
                max_model_len=max_model_len,
                seed=seed,
                device=device,
            ),
            self._deliver,
        )

    # ------------------------------------------------------------------------------------------------ life cycle

    async def ready(self) -> dict[str, Any]:
        """Wait until the engine has generated its first token. Raises UserError naming worker, model and remedy."""
        import vllm

        try:
            await asyncio.wrap_future(self._engine.started)
        except Exception as error:  # boundary: any failure of vLLM's start becomes one message
            raise UserError(self._start_failure(error)) from None
        await self._call(lambda engine: engine.set_weight_version(str(self._version)))
        return {
            "worker": self.name,
            "pid": os.getpid(),
            "device": self._device,
            "vllm": vllm.__version__,
            "seconds": time.monotonic() - self._began,
            **_node(),
        }

    async def ping(self) -> dict[str, Any]:
        """Vital signs, answered by the event loop even while the engine is busy or wedged."""
        return {
            "worker": self.name,
            "pid": os.getpid(),
            "alive": self._engine.alive,
            "version": self._version,
            "in_flight": len(self._in_flight),
            "tokens_generated": self._engine.tokens_generated,
            "seconds_since_progress": time.monotonic() - self._engine.progressed_at if self._in_flight else 0.0,
        }

    async def memory(self) -> int:
        """Peak bytes: of vLLM's workers on their GPUs, or of this process and those below it (`actors.memory`)."""
        if self._device == "cpu":
            return peak_bytes("cpu")
        return await self._call(lambda engine: sum(engine.collective_rpc(worker_peak_bytes)))

    async def close(self) -> None:
        """End the engine, its worker processes included. Unfinished requests are dropped: their streams end."""
        if self._engine.alive:
            await self.abort(list(self._in_flight))
        await asyncio.to_thread(self._engine.close)

    # ------------------------------------------------------------------------------------------------ generation

    async def generate(self, requests: Sequence[RolloutRequest], sampling: SamplingSettings) -> AsyncIterator[Trajectory]:
        """Yield each request's trajectory as it finishes; all of them enter the engine before its next step.

        Raises UserError for a request that can never be served (too long, an unknown token, an id that is in flight).
        """
        async for burst in self.generate_bursts(requests, sampling):
            for trajectory in burst:
                yield trajectory

    async def generate_bursts(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Trajectory]]:
        """As `generate`, but what one engine step finished comes together: a remote stream pays for each item."""
        inbox: asyncio.Queue[list[Trajectory | None]] = asyncio.Queue()
        loop, now = asyncio.get_running_loop(), time.monotonic()
        batch = {request.request_id: _InFlight(request, now, inbox, loop) for request in requests}
        if len(batch) < len(requests):
            raise UserError(f"{self.name}: {len(requests) - len(batch)} request ids of one call are repeated: make them unique")
        await self._call(lambda engine: self._admit(engine, batch, sampling))
        left = len(batch)
        try:
            while left:
                ended = await inbox.get()
                left -= len(ended)
                if burst := [trajectory for trajectory in ended if trajectory is not None]:
                    yield burst
        finally:
            if left:  # the caller lost interest
                self._engine.call(lambda engine: self._drop(engine, batch.values()))

    async def abort(self, request_ids: Sequence[str]) -> int:
        """Drop unfinished requests: their streams end without them. Returns how many there were."""

        def drop(engine: LLMEngine) -> int:
            return self._drop(engine, [self._in_flight[key] for key in request_ids if key in self._in_flight])

        return await self._call(drop)

    async def abort_all(self) -> int:
        """`abort` of whatever is unfinished."""
        return await self._call(lambda engine: self._drop(engine, list(self._in_flight.values())))

    def _admit(self, engine: LLMEngine, batch: Mapping[str, _InFlight], sampling: SamplingSettings) -> None:
        from actors.vllm_engine import sampling_params

        for entry in batch.values():
            self._require_servable(entry.request, sampling.max_tokens, engine.model_config.get_vocab_size())
        stop = sampling.stop_token_ids or self._stop_token_ids
        for request_id, entry in batch.items():
            params = sampling_params(
                temperature=sampling.temperature, max_tokens=sampling.max_tokens, stop_token_ids=stop, seed=entry.request.seed
            )
            self._admitted += 1
            prompt = {"prompt_token_ids": list(entry.request.token_ids)}
            try:
                # Arrival orders the waiting requests: a counter, where two readings of a clock may be equal.
                engine.add_request(request_id, prompt, params, arrival_time=float(self._admitted))
            except ValueError as error:
                raise UserError(f"{self.name}: prompt {entry.request.prompt_id} was refused by vLLM: {error}") from None
            self._in_flight[request_id] = entry

    def _require_servable(self, request: RolloutRequest, max_tokens: int, vocabulary: int) -> None:
        length = len(request.token_ids)
        if length == 0 or length + max_tokens > self._max_model_len:
            raise UserError(
                f"{self.name}: prompt {request.prompt_id} has {length} tokens; with max_tokens {max_tokens} that does not fit "
                f"the engine's context of {self._max_model_len}: lower data.max_prompt_tokens or rollout.max_response_tokens"
            )
        if min(request.token_ids) < 0 or max(request.token_ids) >= vocabulary:
            raise UserError(
                f"{self.name}: prompt {request.prompt_id} has token {max(request.token_ids)}, the policy knows 0 to "
                f"{vocabulary - 1}: encode prompts with the policy's own tokenizer"
            )
        if request.request_id in self._in_flight:
            raise UserError(f"{self.name}: request {request.request_id} is in flight already: request ids must be unique")

    def _drop(self, engine: LLMEngine, entries: Iterable[_InFlight]) -> int:
        mine = [entry for entry in entries if self._in_flight.get(entry.request.request_id) is entry]
        engine.abort_request([entry.request.request_id for entry in mine])
        for entry in mine:
            del self._in_flight[entry.request.request_id]
            entry.loop.call_soon_threadsafe(entry.inbox.put_nowait, [None])
        return len(mine)

    def _deliver(self, finished: list[RequestOutput]) -> None:
        """Engine thread: hand what one step finished to the calls that wait for it, one wake-up a call."""
        now = time.monotonic()
        for_call: dict[int, tuple[_InFlight, list[Trajectory | None]]] = {}
        for output in finished:
            entry = self._in_flight.pop(output.request_id)
            for_call.setdefault(id(entry.inbox), (entry, []))[1].append(self._trajectory(output, entry, now))
        for entry, trajectories in for_call.values():
            entry.loop.call_soon_threadsafe(entry.inbox.put_nowait, trajectories)

    def _trajectory(self, output: RequestOutput, entry: _InFlight, now: float) -> Trajectory:
        response = output.outputs[0]
        return Trajectory(
            request_id=entry.request.request_id,
            prompt_id=entry.request.prompt_id,
            response_ids=tuple(response.token_ids),
            response_logprobs=tuple(response.logprobs.logprobs),
            finish_reason=response.finish_reason,
            policy_version=int(response.weight_versions[0].version),
            policy_version_end=int(response.weight_versions[-1].version),
            worker=self.name,
            seconds=now - entry.submitted_at,
        )

    # ----------------------------------------------------------------------------------------------- weight sync

    async def pull_weights(self, manifest: WeightManifest, buffer: np.ndarray, probe_ids: tuple[int, ...]) -> WeightReceipt:
        """Load a version between two steps of generation and prove it. `buffer` is uint8 [num_bytes], read only.

        Raises WeightsRefused, with the model untouched, when the manifest does not fit the model or the buffer. A failure
        after that ends the process: half-loaded weights must not generate.
        """
        return await self._call(lambda engine: self._pull(engine, manifest, buffer, probe_ids))

    def _pull(self, engine: LLMEngine, manifest: WeightManifest, buffer: np.ndarray, probe_ids: tuple[int, ...]) -> WeightReceipt:
        from actors.vllm_weight_transfer import load_proof

        began = time.monotonic()
        engine.collective_rpc("start_weight_update")
        if self._settings.tensor_parallel_size == 1:
            engine.collective_rpc("update_weights", args=(_update(manifest, buffer=buffer),))
            engine.collective_rpc("finish_weight_update")
        else:
            with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:  # without a name: whoever dies, nothing stays behind
                buffer.tofile(file)
                file.flush()
                engine.collective_rpc("update_weights", args=(_update(manifest, path=f"/proc/{os.getpid()}/fd/{file.fileno()}"),))
                engine.collective_rpc("finish_weight_update")
        proofs = engine.collective_rpc(load_proof)
        self._serve_version(engine, manifest.version)
        return WeightReceipt(
            worker=self.name,
            version=self._version,
            digest=" ".join(sorted({proof.digest for proof in proofs})),  # one, unless workers disagree
            num_loaded=min(proof.num_loaded for proof in proofs),
            probe_logprobs=self._probe(engine, probe_ids),
            seconds=time.monotonic() - began,
        )

    def _serve_version(self, engine: LLMEngine, version: int) -> None:
        # Without the reset, prompts would go on from KV blocks that the old weights computed. Running requests are
        # preempted, so that theirs are computed again as well.
        engine.reset_prefix_cache(reset_running_requests=True)
        engine.set_weight_version(str(version))
        self._version = version

    def _probe(self, engine: LLMEngine, probe_ids: tuple[int, ...]) -> tuple[float, ...]:
        from actors.vllm_engine import prompt_logprobs

        logprobs, finished = prompt_logprobs(self._engine.step, engine, probe_ids)
        self._deliver(finished)
        return tuple(logprobs)

    # -------------------------------------------------------------------------------------------------- plumbing

    async def _call(self, job: Any) -> Any:
        return await asyncio.wrap_future(self._engine.call(job))

    def _start_failure(self, error: Exception) -> str:
        what, model = " ".join(str(error).split()), self._model_path
        if not os.path.isfile(os.path.join(model, "config.json")):
            return f"{self.name}: {model} is no model directory (no config.json in it): give a Transformers checkpoint"
        if "max_model_len" in what:
            return (
                f"{self.name}: the model in {model} does not support a context of {self._max_model_len} tokens, which is "
                f"data.max_prompt_tokens + rollout.max_response_tokens: lower them. vLLM says: {what}"
            )
        return (
            f"{self.name}: vLLM cannot run the model in {model} on {self._device}: {type(error).__name__}: {what}. It needs "
            "safetensors weights of an architecture that it knows (on a CPU with a head size of 32 or more), and free memory"
        )


def _update(manifest: WeightManifest, *, buffer: np.ndarray | None = None, path: str | None = None) -> dict[str, Any]:
    return {
        "names": list(manifest.names),
        "shapes": [list(shape) for shape in manifest.shapes],
        "offsets": list(manifest.offsets),
        "dtype": manifest.dtype,
        "num_bytes": manifest.num_bytes,
        "buffer": buffer,
        "path": path,
    }


def _node() -> dict[str, str]:
    if not ray.is_initialized():
        return {"node_id": "", "node_ip": ""}
    return {"node_id": ray.get_runtime_context().get_node_id(), "node_ip": ray.util.get_node_ip_address()}


RolloutActor = ray.remote(RolloutWorker)
