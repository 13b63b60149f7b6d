"""Small random models for real vLLM engines, their exact log-probs, and an engine with injectable
faults.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from actors.rollout import RolloutWorker, rollout_env
from sppo_ray.config import RolloutSettings
from sppo_ray.protocols import PublishedWeights, WeightManifest, WeightReceipt
from sppo_ray.rollout.weight_digest import flat_digest
from sppo_ray.types import RequestId, RolloutRequest, SamplingSettings, Trajectory, TrajectoryBlock

VOCABULARY = 96
STOP = 2
CONTEXT = 512
PROBE = tuple(range(10, 42))  # 32 tokens, all different
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": STOP,
    "pad_token_id": 0,
}
SETTINGS = RolloutSettings(max_sequences=128, kv_cache_gib=0.25)


def untied_llama() -> PreTrainedModel:
    return _sharpened(LlamaForCausalLM, LlamaConfig(**SHAPE, head_dim=32, tie_word_embeddings=False))


def tied_qwen() -> PreTrainedModel:
    """Biases on query, key and value; the head shares the embedding's weight."""
    return _sharpened(Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True))


def _sharpened(kind: Any, config: Any) -> PreTrainedModel:
    """Weights four times as large as initialised, and biases that are not 0: predictions that
    depend on the context.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = kind(config).eval()
        for parameter in model.parameters():
            parameter.data.mul_(4.0) if parameter.dim() > 1 else parameter.data.add_(
                0.1 * torch.randn_like(parameter)
            )
    return model


def perturbed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy whose every parameter moved by 0.3 of its own spread: a policy that plainly
    differs.
    """
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.data.add_(0.3 * parameter.data.std() * torch.randn(parameter.shape, generator=generator))
    return other


@torch.no_grad()
def exact_logprobs(model: PreTrainedModel, token_ids: Sequence[int], temperature: float = 1.0) -> list[float]:
    """log p(token_ids[t] | token_ids[:t]) for t >= 1 under softmax(logits / temperature)."""
    ids = torch.tensor([list(token_ids)])
    logprobs = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist()


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def publish(model: PreTrainedModel, version: int) -> PublishedWeights:
    """What a learner publishes; the handle is the flat buffer itself."""
    names, shapes, offsets, chunks, position = [], [], [], [], 0
    for name, parameter in model.named_parameters():
        chunk = parameter.detach().contiguous().numpy().view(np.uint8).reshape(-1)
        names.append(name)
        shapes.append(tuple(parameter.shape))
        offsets.append(position)
        chunks.append(chunk)
        position += chunk.nbytes
    buffer = np.concatenate(chunks)
    manifest = WeightManifest(
        version, tuple(names), tuple(shapes), tuple(offsets), "float32", position, flat_digest(buffer)
    )
    return PublishedWeights(manifest, buffer, PROBE, tuple(exact_logprobs(model, PROBE)))


def pull(actor: Any, published: PublishedWeights) -> WeightReceipt:
    """Ship the version through Ray's object store, as in a run."""
    return ray.get(
        actor.pull_weights.remote(published.manifest, ray.put(published.handle), published.probe_ids),
        timeout=120,
    )


def requests(count: int, *, length: int = 12, tag: str = "r") -> list[RolloutRequest]:
    """Return random prompts. Request i does not depend on `count`."""
    prompts = [tuple(random.Random(i).choices(range(3, VOCABULARY), k=length)) for i in range(count)]
    return [
        RolloutRequest(RequestId(tag, i, 0), f"prompt/{i}", prompt, seed=1000 + i)
        for i, prompt in enumerate(prompts)
    ]


def stream(
    actor: Any,
    batch: Sequence[RolloutRequest],
    *,
    temperature: float = 1.0,
    max_tokens: int = 24,
    stop: tuple[int, ...] = (STOP,),
) -> Iterator[Trajectory]:
    """Starts at once; yields trajectories as they arrive."""
    arriving = actor.generate.options(num_returns="streaming").remote(
        list(batch), SamplingSettings(temperature, max_tokens, stop)
    )
    prompt_ids = {str(request.request_id): request.prompt_id for request in batch}
    return (
        trajectory
        for reference in arriving
        for trajectory in ray.get(reference, timeout=120).trajectories(prompt_ids)
    )


def generate(actor: Any, batch: Sequence[RolloutRequest], **sampling: Any) -> list[Trajectory]:
    """All trajectories in the order of their arrival."""
    return list(stream(actor, batch, **sampling))


def wait_until(actor: Any, vital: str, least: int) -> None:
    while ray.get(actor.ping.remote())[vital] < least:
        time.sleep(0.005)


class DamagedWorker(RolloutWorker):
    """The real worker, with faults that can be switched on: what a check must catch has to be able
    to happen.
    """

    async def first_of(self, batch: Sequence[RolloutRequest], sampling: SamplingSettings) -> TrajectoryBlock:
        """Take one block and cancel the stream."""
        async with aclosing(self.generate(batch, sampling)) as arriving:
            return await anext(arriving)

    async def damage(self, fault: str) -> None:
        await self._call(lambda engine: _FAULTS[fault](engine))

    async def repair(self) -> None:
        def undo(engine: Any) -> None:
            import actors.weights.flat as transfer

            model = engine.model_executor.driver_worker.worker.model_runner.model
            model.__dict__.pop("load_weights", None)
            engine.__dict__.pop("reset_prefix_cache", None)
            engine.__dict__.pop("collective_rpc", None)
            transfer._pack_tied_heads = _ORIGINAL.pop("pack", transfer._pack_tied_heads)

        await self._call(undo)


class ReadableWorker(DamagedWorker):
    """The real worker, whose linear layers compute with their parameters, as on a GPU, and not with
    packed copies.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        from vllm.model_executor.layers import utils

        utils.check_cpu_sgl_kernel = lambda *_: False
        utils.ops._supports_onednn = False
        super().__init__(*arguments, **settings)


_ORIGINAL: dict[str, Any] = {}


def _skip_a_layer(engine: Any) -> None:
    model = engine.model_executor.driver_worker.worker.model_runner.model
    load = type(model).load_weights
    model.load_weights = lambda weights: load(
        model, ((n, w) for n, w in weights if "layers.1.mlp.down_proj" not in n)
    )


def _keep_prefix_cache(engine: Any) -> None:
    engine.reset_prefix_cache = lambda **_: True


def _leave_head_packed(engine: Any) -> None:
    import actors.weights.flat as transfer

    _ORIGINAL["pack"] = transfer._pack_tied_heads
    transfer._pack_tied_heads = lambda model: None


def _stay_behind(engine: Any) -> None:
    """The engine says yes to every update and loads none; its proof is that of the version
    before.
    """
    ask, updates = engine.collective_rpc, ("start_weight_update", "update_weights", "finish_weight_update")
    engine.collective_rpc = lambda method, *args, **kwargs: (
        None if method in updates else ask(method, *args, **kwargs)
    )


def _keep_old_memory(engine: Any) -> None:
    """After each load a part of a fused parameter is what it was before."""
    import actors.weights.flat as transfer

    finalize = transfer.finalize_layerwise_reload
    model = engine.model_executor.driver_worker.worker.model_runner.model
    old = model.model.layers[1].self_attn.qkv_proj.weight.detach().clone()

    def late(model: Any, config: Any) -> None:
        finalize(model, config)
        model.model.layers[1].self_attn.qkv_proj.weight.data[:64].copy_(old[:64])  # q_proj

    transfer.finalize_layerwise_reload = late


_FAULTS = {
    "keep old memory": _keep_old_memory,
    "skip a layer": _skip_a_layer,
    "keep prefix cache": _keep_prefix_cache,
    "leave head packed": _leave_head_packed,
    "stay behind": _stay_behind,
}


def start_engine(
    name: str,
    directory: Path,
    *,
    context: int = CONTEXT,
    kind: type[DamagedWorker] = DamagedWorker,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Any:
    """An actor that is starting; wait for its `ready`."""
    settings = SETTINGS.model_copy(update={"dtype": dtype})
    return (
        ray.remote(kind)
        .options(num_cpus=0.1, runtime_env={"env_vars": rollout_env(settings, "cpu")})
        .remote(
            name,
            settings,
            model_path=str(directory),
            max_model_len=context,
            stop_token_ids=(),
            seed=0,
            device="cpu",
        )
    )
