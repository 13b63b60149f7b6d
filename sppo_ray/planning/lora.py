"""The trained parameters of a model with LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.config import LoraSettings
from sppo_ray.planning.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Adapters:
    """What adapters add to a model, and what of it is trained."""

    parameters: int  # trained, with a critic's head
    largest: int  # numbers of the largest trained matrix
    saved: int  # numbers a token that a layer's adapters save for the backward pass


def trained_parameters(lora: LoraSettings | None, shape: ModelShape, *, is_critic: bool) -> int:
    adapters = adapters_of(lora, shape, is_critic=is_critic)
    if adapters is not None:
        return adapters.parameters
    return shape.critic_parameters if is_critic else shape.parameters


def adapters_of(lora: LoraSettings | None, shape: ModelShape, *, is_critic: bool) -> Adapters | None:
    """Return the adapters of a dense Llama-like model; None when the whole model is trained. An
    adapter has rank x (in + out) numbers and saves the output of A.
    """
    if lora is None:
        return None
    hidden, query, key_value, mlp = shape.hidden, shape.query, shape.key_value, shape.intermediate
    widths = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, mlp),
        "up_proj": (hidden, mlp),
        "down_proj": (mlp, hidden),
    }
    if lora.target_modules != "all-linear":
        widths = {name: pair for name, pair in widths.items() if name in lora.target_modules}
    layer = lora.rank * sum(sum(pair) for pair in widths.values())
    largest = lora.rank * max((max(pair) for pair in widths.values()), default=0)
    return Adapters(
        parameters=shape.layers * layer + hidden * is_critic,
        largest=largest,
        saved=lora.rank * len(widths),
    )
