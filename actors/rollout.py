"""Rollout worker: generates responses with vLLM and loads new weights between two steps.

    generate(requests) --admit, all at once--> EngineThread --finished, in bursts--> inbox
        --> yield TrajectoryBlock
    pull_weights(manifest, buffer) --> [load, new version, forget every KV block, probe]
        --> WeightReceipt
    sleep() --> [weights and KV cache are gone] --> only pull_weights wakes the engine

Requests in flight during a pull use the new weights from their next token on, with a recomputed KV
cache. Each trajectory has the versions that sampled its first and its last token.
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
from sppo_ray.protocols import Invitation, WeightManifest, WeightReceipt
from sppo_ray.types import RequestId, RolloutRequest, SamplingSettings, TokenRows, TrajectoryBlock

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.engine_sleep import Tag

SHARED_MEMORY = "/dev/shm"
INITIAL_VERSION = 0  # the checkpoint that the engine started from
BURST_S = 0.05
Finished = tuple["RequestOutput", float]
"""The engine's output for a finished request, and the seconds since its submission."""
T = TypeVar("T")


def rollout_env(settings: RolloutSettings, device: str) -> dict[str, str]:
    """Return the environment of a rollout process, for Ray's `runtime_env`.

    vLLM and OpenMP read it on import. On a CPU, an engine has one OpenMP thread per whole CPU. Idle
    threads sleep, because spinning threads slow down this and other busy processes tenfold.
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
        # Ray assigns CPUs; vLLM's own binding requires a NUMA node for each worker process.
        env |= {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return env


@dataclass(slots=True)
class _InFlight:
    request: RolloutRequest
    submitted_at: float  # time.monotonic()
    # finished requests; None = a request was aborted
    inbox: asyncio.Queue[list[Finished | None]]
    loop: asyncio.AbstractEventLoop

    @property
    def key(self) -> str:
        """The id of the request in the engine."""
        return str(self.request.request_id)


class RolloutWorker:
    """One vLLM engine in this process, on CPU or GPU.

    With tensor_parallel_size above 1, vLLM starts worker processes. Each one reads new weights from
    a file in shared memory, and needs this package to be installed, for its entry point. If such a
    worker refuses an update, the engine ends, because vLLM loses the type of the error.
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
        can_sleep: bool = False,
    ) -> None:
        """Start the engine in the background; `ready` waits for it. `stop_token_ids` is the default
        of calls. `can_sleep`: the engine shares its device with other roles.
        """
        self._began = time.monotonic()
        os.environ.update(rollout_env(settings, device))
        # Imported here, because vLLM reads the environment on import and the driver may lack vLLM.
        from actors.engine_sleep import engine_sleep
        from actors.vllm_engine import EngineThread, engine_args

        self.name = name
        self._settings = settings
        self._model_path = model_path
        self._max_model_len = max_model_len
        self._stop_token_ids = stop_token_ids
        self._device = device
        self._version = INITIAL_VERSION
        self._sleep = engine_sleep(device)
        self._is_asleep = False  # changed on the engine's thread
        self._in_flight: dict[str, _InFlight] = {}
        self._received_at = 0.0  # time.monotonic() when the last broadcast began
        self._admitted = 0
        self._finished: dict[int, tuple[_InFlight, list[Finished]]] = {}  # by call, not yet delivered
        self._delivered_at = 0.0
        self._engine = EngineThread(
            lambda: engine_args(
                settings,
                model_path=model_path,
                max_model_len=max_model_len,
                seed=seed,
                device=device,
                can_sleep=can_sleep,
            ),
            self._deliver,
        )

    # ----------------------------------------------------------------------------------- life cycle

    async def ready(self) -> dict[str, Any]:
        """Wait until the engine has started. Raises UserError with worker, model and remedy."""
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
        """Return signs of life. The event loop answers also while the engine is busy or stuck."""
        return {
            "worker": self.name,
            "pid": os.getpid(),
            "alive": self._engine.alive,
            "version": self._version,
            "in_flight": len(self._in_flight),
            "tokens_generated": self._engine.tokens_generated,
            "seconds_since_progress": time.monotonic() - self._engine.progressed_at
            if self._in_flight
            else 0.0,
        }

    async def memory(self) -> int:
        """Return the peak bytes of vLLM's workers on their GPUs, or of this process and its child
        processes (`actors.memory`).
        """
        if self._device == "cpu":
            return peak_bytes("cpu")
        return await self._call(lambda engine: sum(engine.collective_rpc(worker_peak_bytes)))

    async def close(self) -> None:
        """End the engine and its worker processes. Unfinished requests are dropped."""
        if self._engine.alive:
            await self.abort_all()
        await asyncio.to_thread(self._engine.close)

    # ----------------------------------------------------------------------------------- generation

    async def generate(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSettings
    ) -> AsyncIterator[TrajectoryBlock]:
        """Yield the responses as they finish; all requests enter the engine before its next step.

        Responses that finish within BURST_S are one block, because each item of a remote stream has
        a cost. Raises UserError for an invalid request (too long, unknown token, id in flight).
        """
        inbox: asyncio.Queue[list[Finished | None]] = asyncio.Queue()
        loop, now = asyncio.get_running_loop(), time.monotonic()
        batch = {str(request.request_id): _InFlight(request, now, inbox, loop) for request in requests}
        if len(batch) < len(requests):
            raise UserError(
                f"{self.name}: {len(requests) - len(batch)} request ids of one call are repeated: make them "
                "unique"
            )
        await self._call(lambda engine: self._admit(engine, batch, sampling))
        left = len(batch)
        try:
            while left:
                ended = await inbox.get()
                left -= len(ended)
                if finished := [one for one in ended if one is not None]:
                    yield self._block(finished)
        finally:
            if left:  # the caller cancelled the stream
                self._engine.call(lambda engine: self._drop(engine, batch.values()))

    async def abort(self, request_ids: Sequence[RequestId]) -> int:
        """Drop unfinished requests; their streams end without them. Returns the number dropped."""

        def drop(engine: LLMEngine) -> int:
            found = [self._in_flight.get(str(request_id)) for request_id in request_ids]
            return self._drop(engine, [entry for entry in found if entry is not None])

        return await self._call(drop)

    async def abort_all(self) -> int:
        """Drop all unfinished requests."""
        return await self._call(lambda engine: self._drop(engine, list(self._in_flight.values())))

    def _admit(self, engine: LLMEngine, batch: Mapping[str, _InFlight], sampling: SamplingSettings) -> None:
        from actors.vllm_engine import sampling_params

        self._require_awake()
        for entry in batch.values():
            self._require_servable(entry.request, sampling.max_tokens, engine.model_config.get_vocab_size())
        stop = sampling.stop_token_ids or self._stop_token_ids
        for key, entry in batch.items():
            params = sampling_params(
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                stop_token_ids=stop,
                seed=entry.request.seed,
            )
            self._admitted += 1
            prompt = {"prompt_token_ids": entry.request.token_ids.tolist()}
            try:
                # Arrival times order the waiting requests. A counter is unique, a clock may not be.
                engine.add_request(key, prompt, params, arrival_time=float(self._admitted))
            except ValueError as error:
                raise UserError(
                    f"{self.name}: prompt {entry.request.prompt_id} was refused by vLLM: {error}"
                ) from None
            self._in_flight[key] = entry

    def _require_servable(self, request: RolloutRequest, max_tokens: int, vocabulary: int) -> None:
        length = len(request.token_ids)
        if length == 0 or length + max_tokens > self._max_model_len:
            raise UserError(
                f"{self.name}: prompt {request.prompt_id} has {length} tokens; with max_tokens {max_tokens} "
                "that does not fit "
                f"the engine's context of {self._max_model_len}: lower data.max_prompt_tokens or "
                "rollout.max_response_tokens"
            )
        if request.token_ids.min() < 0 or request.token_ids.max() >= vocabulary:
            raise UserError(
                f"{self.name}: prompt {request.prompt_id} has token {request.token_ids.max()}, the policy "
                "knows 0 to "
                f"{vocabulary - 1}: encode prompts with the policy's own tokenizer"
            )
        if str(request.request_id) in self._in_flight:
            raise UserError(
                f"{self.name}: request {request.request_id} is in flight already: request ids must be unique"
            )

    def _drop(self, engine: LLMEngine, entries: Iterable[_InFlight]) -> int:
        mine = [entry for entry in entries if self._in_flight.get(entry.key) is entry]
        self._engine.abort(engine, [entry.key for entry in mine])
        for entry in mine:
            del self._in_flight[entry.key]
            entry.loop.call_soon_threadsafe(entry.inbox.put_nowait, [None])
        self._deliver([])  # there may be no further step
        return len(mine)

    def _deliver(self, finished: list[RequestOutput]) -> None:
        """Pass finished requests to their calls, at most every BURST_S.

        Called on the engine's thread after each step.
        """
        now = time.monotonic()
        for output in finished:
            entry = self._in_flight.pop(output.request_id)
            burst = self._finished.setdefault(id(entry.inbox), (entry, []))[1]
            burst.append((output, now - entry.submitted_at))
        if not self._finished or (self._in_flight and now - self._delivered_at < BURST_S):
            return
        self._delivered_at = now
        for entry, burst in self._finished.values():
            entry.loop.call_soon_threadsafe(entry.inbox.put_nowait, burst)
        self._finished = {}

    def _block(self, finished: Sequence[Finished]) -> TrajectoryBlock:
        responses = [output.outputs[0] for output, _ in finished]
        versions = [
            (int(one.weight_versions[0].version), int(one.weight_versions[-1].version)) for one in responses
        ]
        return TrajectoryBlock(
            worker=self.name,
            request_ids=tuple(output.request_id for output, _ in finished),
            responses=TokenRows.of([one.token_ids for one in responses]),
            logprobs=np.concatenate([np.asarray(one.logprobs.logprobs, np.float32) for one in responses]),
            is_stopped=np.array([one.finish_reason == "stop" for one in responses]),
            versions=np.array(versions, dtype=np.int64),
            seconds=np.array([seconds for _, seconds in finished]),
        )

    # ---------------------------------------------------------------------------------------- sleep

    async def sleep(self) -> None:
        """Free the device for other roles. Until the next pull the engine refuses requests. Raises
        UserError while requests are in flight.
        """
        await self._call(self._fall_asleep)

    def _fall_asleep(self, engine: LLMEngine) -> None:
        if self._in_flight:
            raise UserError(f"{self.name}: {len(self._in_flight)} requests are in flight: drop them first")
        if not self._is_asleep:
            self._deliver(self._engine.drain(engine))
            self._sleep.sleep(engine)
            self._is_asleep = True

    def _wake(self, engine: LLMEngine, tag: Tag) -> None:
        if self._is_asleep:
            self._sleep.wake(engine, tag)

    def _require_awake(self) -> None:
        if self._is_asleep:
            raise UserError(f"{self.name} is asleep: it serves again after it has pulled weights")

    # ---------------------------------------------------------------------------------- weight sync

    async def pull_weights(
        self, manifest: WeightManifest, buffer: np.ndarray, probe_ids: tuple[int, ...]
    ) -> WeightReceipt:
        """Load a version between two steps of generation and return the receipt.

        `buffer` is [num_bytes] uint8, read-only. Raises WeightsRefused when the manifest does not
        match the model or the buffer; the model is then unchanged. Any later failure ends the
        process, because partly loaded weights must not generate.
        """
        return await self._call(lambda engine: self._pull(engine, manifest, buffer, probe_ids))

    def _pull(
        self, engine: LLMEngine, manifest: WeightManifest, buffer: np.ndarray, probe_ids: tuple[int, ...]
    ) -> WeightReceipt:
        began = time.monotonic()
        self._deliver(self._engine.drain(engine))
        self._wake(engine, "weights")
        engine.collective_rpc("start_weight_update")
        if self._settings.tensor_parallel_size == 1:
            engine.collective_rpc("update_weights", args=(_layout(manifest) | {"buffer": buffer},))
            engine.collective_rpc("finish_weight_update")
        else:
            # an unnamed file, which disappears when the process dies
            with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
                buffer.tofile(file)
                file.flush()
                path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
                engine.collective_rpc("update_weights", args=(_layout(manifest) | {"path": path},))
                engine.collective_rpc("finish_weight_update")
        return self._receipt(engine, manifest.version, probe_ids, began)

    async def places(self) -> list[str]:
        """Return the GPU or the host of each of vLLM's workers."""
        from actors.weights.receiver import place

        return await self._call(lambda engine: engine.collective_rpc(place))

    async def join_group(self, invitation: Invitation) -> str:
        """Join the group of an epoch. Returns why that failed, or an empty text."""
        return await self._call(lambda engine: self._join(engine, invitation))

    def _join(self, engine: LLMEngine, invitation: Invitation) -> str:
        from actors.weights.receiver import outcome

        engine.collective_rpc("init_weight_transfer_engine", args=({"invitation": invitation},))
        return _causes(engine.collective_rpc(outcome))

    async def receive_weights(self, manifest: WeightManifest, epoch: int) -> str:
        """Load a version while the learner broadcasts it. Returns why the broadcast broke, or an
        empty text. The engine then generates nothing until `serve_received`; one whose weights are
        partly loaded, until a later pull. A sleeping engine wakes up without its KV cache.
        """
        return await self._call(lambda engine: self._receive(engine, manifest, epoch))

    async def serve_received(self, version: int, probe_ids: tuple[int, ...]) -> WeightReceipt:
        """Serve the version that was received last, with a KV cache, and return the receipt."""
        return await self._call(lambda engine: self._receipt(engine, version, probe_ids, self._received_at))

    def _receive(self, engine: LLMEngine, manifest: WeightManifest, epoch: int) -> str:
        from actors.weights.receiver import Aborted, outcome

        self._received_at = time.monotonic()
        self._deliver(self._engine.drain(engine))
        self._wake(engine, "weights")
        engine.collective_rpc("start_weight_update")
        update = _layout(manifest) | {"version": manifest.version, "epoch": epoch}
        engine.collective_rpc("update_weights", args=(update,))
        engine.collective_rpc("finish_weight_update")
        outcomes = engine.collective_rpc(outcome)
        # a device that loaded the whole version has the new weights, others may have old ones
        self._engine.is_held |= any(not isinstance(one, Aborted) or one.is_torn for one in outcomes)
        return _causes(outcomes)

    def _receipt(
        self, engine: LLMEngine, version: int, probe_ids: tuple[int, ...], began: float
    ) -> WeightReceipt:
        """Serve the version that has been loaded, and return the proof."""
        from actors.weights.flat import load_proof

        proofs = engine.collective_rpc(load_proof)
        self._wake(engine, "kv_cache")
        self._is_asleep = False
        self._engine.is_held = False
        self._serve_version(engine, version)
        return WeightReceipt(
            worker=self.name,
            version=self._version,
            # one digest, unless workers differ
            digest=" ".join(sorted({proof.digest for proof in proofs})),
            num_loaded=min(proof.num_loaded for proof in proofs),
            probe_logprobs=self._probe(engine, probe_ids),
            seconds=time.monotonic() - began,
        )

    def _serve_version(self, engine: LLMEngine, version: int) -> None:
        # The reset removes KV blocks of the old weights. Running requests are preempted, so their
        # blocks are recomputed too.
        engine.reset_prefix_cache(reset_running_requests=True)
        engine.set_weight_version(str(version))
        self._version = version

    def _probe(self, engine: LLMEngine, probe_ids: tuple[int, ...]) -> tuple[float, ...]:
        from actors.vllm_engine import prompt_logprobs

        logprobs, finished = prompt_logprobs(self._engine.step, engine, probe_ids)
        self._deliver(finished)
        return tuple(logprobs)

    # ------------------------------------------------------------------------------------- plumbing

    async def _call(self, job: Any) -> Any:
        return await asyncio.wrap_future(self._engine.call(job))

    def _start_failure(self, error: Exception) -> str:
        what, model = " ".join(str(error).split()), self._model_path
        if not os.path.isfile(os.path.join(model, "config.json")):
            return (
                f"{self.name}: {model} is not a model directory (no config.json in it): give a Transformers "
                "checkpoint"
            )
        if "max_model_len" in what:
            return (
                f"{self.name}: the model in {model} does not support a context of {self._max_model_len} "
                "tokens, which is "
                f"data.max_prompt_tokens + rollout.max_response_tokens: lower them. vLLM says: {what}"
            )
        return (
            f"{self.name}: vLLM cannot run the model in {model} on {self._device}: {type(error).__name__}: "
            f"{what}. It needs "
            "safetensors weights of an architecture that it knows (on a CPU with a head size of 32 or more), "
            "and free memory"
        )


def _layout(manifest: WeightManifest) -> dict[str, Any]:
    return {
        "names": list(manifest.names),
        "shapes": [list(shape) for shape in manifest.shapes],
        "offsets": list(manifest.offsets),
        "dtype": manifest.dtype,
        "num_bytes": manifest.num_bytes,
    }


def _causes(outcomes: Sequence[Any]) -> str:
    """Return why vLLM's workers gave up, or an empty text."""
    return "; ".join(sorted({one.why for one in outcomes if hasattr(one, "why")}))


def _node() -> dict[str, str]:
    if not ray.is_initialized():
        return {"node_id": "", "node_ip": ""}
    return {"node_id": ray.get_runtime_context().get_node_id(), "node_ip": ray.util.get_node_ip_address()}


RolloutActor = ray.remote(RolloutWorker)
