"""Samples, micro-batches and small models for tests of training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sppo_ray.models.tiny import character_tokenizer
from sppo_ray.types import (
    MicroBatch,
    Prompt,
    PromptValue,
    RequestId,
    ScoredTrajectory,
    TokenRows,
    TrainingSample,
    Trajectory,
)

VOCABULARY = 45


def training_sample(
    name: str,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    logprobs: Sequence[float],
    reward: float,
    value: float,
) -> TrainingSample:
    prompt = Prompt(name, "test", "", tuple(prompt_ids), tuple(prompt_ids), "")
    ids, own = tuple(response_ids), tuple(logprobs)
    trajectory = Trajectory(RequestId(name, 0, 0), name, ids, own, "stop", 0, 0, "rollout-0", 0.0)
    scored = ScoredTrajectory(prompt, trajectory, "", reward, "", 0.0, PromptValue(0.0, value, 0))
    return TrainingSample(scored, reward - value, reward)


def flat(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """float32, row after row."""
    return np.concatenate([np.asarray(row, dtype=np.float32) for row in rows])


def micro_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    old: Sequence[Sequence[float]],
    rollout: Sequence[Sequence[float]],
    advantages: Sequence[Sequence[float]],
    weights: Sequence[float],
    reference: Sequence[Sequence[float]] = (),
) -> MicroBatch:
    """A micro-batch from one row a sample."""
    rows = TokenRows.of([[*p, *r] for p, r in zip(prompts, responses, strict=True)])
    return MicroBatch(
        token_ids=rows.token_ids,
        prompt_lengths=np.array([len(ids) for ids in prompts], dtype=np.int32),
        response_lengths=np.array([len(ids) for ids in responses], dtype=np.int32),
        old_logprobs=flat(old),
        rollout_logprobs=flat(rollout),
        advantages=flat(advantages),
        weights=np.array(weights, dtype=np.float32),
        reference_logprobs=flat(reference) if reference else None,
    )


def random_samples(
    count: int, seed: int, longest_prompt: int = 12, longest_response: int = 20
) -> list[TrainingSample]:
    """Log-probs near -log 45, the uniform ones of a fresh model, so that ratios fall on both sides
    of the clip range.
    """
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(4, VOCABULARY) for _ in range(draw.randint(1, most))]

    samples = []
    for index in range(count):
        response = tokens(longest_response)
        logprobs = [-3.8 + draw.uniform(-0.5, 0.5) for _ in response]
        reward, value = float(draw.randrange(2)), draw.random()
        samples.append(
            training_sample(f"s{index}", tokens(longest_prompt), response, logprobs, reward, value)
        )
    return samples


def save_llama(directory: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """About 13k parameters, with a tokenizer."""
    config = LlamaConfig(**_SHAPE, tie_word_embeddings=tied)
    return _save(LlamaForCausalLM, config, directory, seed)


def save_qwen(directory: Path, *, seed: int = 0) -> Path:
    """A tied Qwen2 with attention biases."""
    return _save(Qwen2ForCausalLM, Qwen2Config(**_SHAPE, tie_word_embeddings=True), directory, seed)


_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _save(model_class: type, config: LlamaConfig | Qwen2Config, directory: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    # Transformers starts small; spread the distributions so that mistakes show
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
    model.save_pretrained(directory)
    character_tokenizer().save_pretrained(directory)
    return directory
