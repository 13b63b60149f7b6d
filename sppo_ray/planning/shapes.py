"""Shapes of models: from a checkpoint's config.json, or from a table of known models by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sppo_ray.errors import UserError
from sppo_ray.models import tiny
from sppo_ray.models.hub import cached_file, hub_model

DENSE = ("llama", "mistral", "qwen2", "qwen3")
"""Values of model_type whose layers have the parameters that `ModelShape.parameters` counts."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The dimensions of a Llama-like decoder."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool  # the head shares the embedding's weight
    attention_bias: bool = False  # biases of the query, key and value projections
    query_key_norm: bool = False

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key_value
        biases = (self.query + 2 * self.key_value) * self.attention_bias
        norms = 2 * self.hidden + 2 * self.head_dim * self.query_key_norm
        return attention + biases + 3 * self.hidden * self.intermediate + norms

    @property
    def body_parameters(self) -> int:
        """Parameters without the embedding and the head."""
        return self.layers * self.layer_parameters + self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the causal LM; a tied head counts once."""
        return self.body_parameters + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def critic_parameters(self) -> int:
        """Parameters of the classifier with one label, whose head is [1, hidden]."""
        return self.body_parameters + self.vocabulary * self.hidden + self.hidden

    @property
    def largest_parameter(self) -> int:
        return self.hidden * max(self.vocabulary, self.intermediate)


def _shape(
    vocabulary: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    tied: bool = False,
    bias: bool = False,
) -> ModelShape:
    return ModelShape(
        vocabulary, hidden, intermediate, layers, heads, kv_heads, hidden // heads, tied, attention_bias=bias
    )


def _bundled(shape: Mapping[str, Any], vocabulary: int) -> ModelShape:
    return shape_of({"model_type": "llama", "vocab_size": vocabulary, **shape}, "builtin")


# From each model's config.json on the Hugging Face hub.
_QWEN_7B = _shape(152064, 3584, 18944, 28, 28, 4, bias=True)
KNOWN = {
    "smollm2-135m": _shape(49152, 576, 1536, 30, 9, 3, tied=True),
    "qwen2.5-0.5b": _shape(151936, 896, 4864, 24, 14, 2, tied=True, bias=True),
    "qwen2.5-1.5b": _shape(151936, 1536, 8960, 28, 12, 2, tied=True, bias=True),
    "qwen2.5-math-1.5b": _shape(151936, 1536, 8960, 28, 12, 2, tied=True, bias=True),
    # The distilled model has a head of its own.
    "deepseek-r1-distill-qwen-1.5b": _shape(151936, 1536, 8960, 28, 12, 2, bias=True),
    "llama-3.2-1b": _shape(128256, 2048, 8192, 16, 32, 8, tied=True),
    "qwen2.5-3b": _shape(151936, 2048, 11008, 36, 16, 2, tied=True, bias=True),
    "qwen2.5-7b": _QWEN_7B,
    "qwen2.5-math-7b": _QWEN_7B,
    "deepseek-r1-distill-qwen-7b": _QWEN_7B,
    "llama-3.1-8b": _shape(128256, 4096, 14336, 32, 32, 8),
    "qwen2.5-14b": _shape(152064, 5120, 13824, 48, 40, 8, bias=True),
    "qwen2.5-32b": _shape(152064, 5120, 27648, 64, 40, 8, bias=True),
    "llama-3.1-70b": _shape(128256, 8192, 28672, 80, 64, 8),
}


def find_shape(model: str) -> ModelShape:
    """Return the shape of a model setting: its config.json (also in the hub's cache), a built-in
    model, or a known name.

    Raises:
        UserError: none of these says it.
    """
    if Path(model).is_dir():
        return read_shape(Path(model) / "config.json")
    name = re.sub(r"-(instruct|base|it)$", "", model.partition("@")[0].rstrip("/").split("/")[-1].lower())
    name = name.removeprefix("builtin:").removeprefix("meta-")
    if model.startswith("builtin:"):
        return _builtin(name, model)
    if name in KNOWN:
        return KNOWN[name]
    on_hub = hub_model(model)
    cached = None if on_hub is None else cached_file(on_hub, "config.json")
    if cached is not None:
        return read_shape(cached)
    raise UserError(
        f"the shape of model {model!r} is not known: there is no such directory on this machine, and the "
        f"planner knows {', '.join(sorted(KNOWN))} by name: give its config.json with --model-config PATH (a "
        "critic's with --critic-config PATH)"
    )


def read_shape(path: Path) -> ModelShape:
    """Read a config.json. Raises UserError naming the file and what is missing."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a model's config.json ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: cannot be read as a model's config.json (it is not a mapping)")
    return shape_of(tree.get("text_config", tree), str(path))


def shape_of(config: Mapping[str, Any], origin: str) -> ModelShape:
    """Return the shape that a config.json describes. Raises UserError naming `origin`."""
    kind = config.get("model_type")
    if kind not in DENSE:
        raise UserError(
            f"{origin}: the planner counts the parameters of {', '.join(DENSE)}, and model_type is {kind!r}"
        )
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return ModelShape(
            vocabulary=int(config["vocab_size"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=kind == "qwen2" or bool(config.get("attention_bias", False)),
            query_key_norm=kind == "qwen3",
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{origin}: lacks a dimension of a {kind} model, or has it wrong: {error}") from None


def _builtin(name: str, model: str) -> ModelShape:
    characters, byte_tokens = len(tiny.CHARACTERS), len(tiny.SPECIALS) + 256
    shapes = {
        "running-sum": (tiny.RUNNING_SUM_SHAPE, characters),
        "running-sum-long": (tiny.RUNNING_SUM_SHAPE, characters),
        "register-machine": (tiny.LONG_RESPONSE_SHAPE, characters),
        "calculator-tool": (tiny.RUNNING_SUM_SHAPE, len(tiny.TOOL_CHARACTERS)),
        "guess-number": (tiny.RUNNING_SUM_SHAPE, len(tiny.TOOL_CHARACTERS)),
        **dict.fromkeys(
            ("vowels", "vowels-reward", "vowels-reward-weak"), (tiny.RUNNING_SUM_SHAPE, characters)
        ),
        "byte-critic": (tiny.BYTE_CRITIC_SHAPE, byte_tokens),
        "tiny-critic": (tiny.TINY_CRITIC_SHAPE, byte_tokens),
    }
    if name == "smollm2-135m":
        return replace(KNOWN[name])
    if name not in shapes:
        raise UserError(f"model {model}: no such built-in model")
    return _bundled(*shapes[name])
