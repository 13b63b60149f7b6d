"""Models and batches of the sections: random weights in the shapes of real models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import packed_attention

_NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NAMES += ("num_key_value_heads", "tie_word_embeddings")
SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(_NAMES, values, strict=True))
    for name, values in {
        "tiny": (512, 64, 128, 2, 2, 1, True),
        "150M": (32_768, 1024, 4096, 8, 16, 4, True),
        "1.5B": (151_936, 1536, 8960, 28, 12, 2, True),  # Qwen2.5's
        "7B": (152_064, 3584, 18_944, 28, 28, 4, False),
    }.items()
}
MAX_TOKENS = 10_000  # of a row


def row_lengths(rows: int, longest: int) -> list[int]:
    """Lengths with a long tail, at least 4."""
    return [max(4, int(longest * (index / rows) ** 2)) for index in range(1, rows + 1)]


def micro_batch(lengths: list[int], highest: int) -> Any:
    """Rows of random tokens, the first quarter of each a prompt."""
    import numpy as np

    from sppo_ray.types import MicroBatch

    draw = np.random.default_rng(sum(lengths))
    whole = np.array(lengths, dtype=np.int32)
    prompts = np.maximum(1, whole // 4).astype(np.int32)
    tokens = int((whole - prompts).sum())
    logprobs = np.full(tokens, -math.log(highest), dtype=np.float32)
    return MicroBatch(
        token_ids=draw.integers(4, highest, int(whole.sum()), dtype=np.int32),
        prompt_lengths=prompts,
        response_lengths=whole - prompts,
        old_logprobs=logprobs,
        rollout_logprobs=logprobs,
        advantages=draw.normal(size=tokens).astype(np.float32),
        weights=np.ones(len(lengths), dtype=np.float32),
    )


def random_policy(
    shape: dict[str, Any],
    device: str,
    dtype: str,
    *,
    family: str = "qwen2",
    checkpointing: bool = False,
    initializer_range: float = 0.02,
) -> Any:
    """A policy with random weights, made on the device."""
    import torch
    import transformers

    from sppo_ray.models.loading import DTYPES, enable_gradient_checkpointing
    from sppo_ray.models.policy import MAX_LOGITS, PolicyModel

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            model_config(shape, family, initializer_range),
            dtype=DTYPES[dtype],
            attn_implementation=packed_attention(device)[0],
        )
    if checkpointing:
        enable_gradient_checkpointing(model)
    return PolicyModel(model, MAX_LOGITS)


def policy_gradient(
    policy: Any, lengths: list[int], device: str, backward: Callable[[Any], None] | None = None
) -> tuple[Any, Any]:
    """Forward and backward of -mean(advantage * log-prob); return log-probs and loss."""
    import torch

    from sppo_ray.models.packed import policy_inputs

    batch = micro_batch(lengths, 400)
    logprobs, _ = policy(policy_inputs(batch, device=device), 1.0)
    loss = -(logprobs * torch.from_numpy(batch.advantages).to(device)).mean()
    if backward is None:
        loss.backward()
    else:
        backward(loss)
    return logprobs.detach(), loss.detach()


def model_config(shape: dict[str, Any], family: str, initializer_range: float = 0.02) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(**shape, **special, initializer_range=initializer_range, max_position_embeddings=MAX_TOKENS)


def save_checkpoint(shape: dict[str, Any], folder: Path) -> None:
    """A checkpoint in bfloat16 with a tokenizer of 45 tokens."""
    import torch
    import transformers

    from sppo_ray.models.tiny import character_tokenizer

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(model_config(shape, "qwen2"), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def parameter_sizes(shape: dict[str, Any]) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(shape, "qwen2"))
    return [parameter.numel() for _, parameter in model.named_parameters()]
