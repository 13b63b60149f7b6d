"""Checks of a run's files before Ray starts, without torch, Transformers or any code of the user's.

    check_files, check_policy    `sppo-ray train`, as its models are found or made
    check_settings               all of it, for `train --dry-run`, `submit` and the REST server

They read configurations, schemas, small files and first rows; what needs large files whole or the
tokenizer is checked when the inputs are gathered. All functions raise UserError with the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo_ray.config import CustomReward, RunConfig
from sppo_ray.data.sources import peek_sources
from sppo_ray.environments.inspection import require_environment
from sppo_ray.errors import UserError
from sppo_ray.models.bundled import find_model
from sppo_ray.models.exported_critic import critic_directory
from sppo_ray.rewards.custom import require_function

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention on a CPU (`CPUAttentionBackend.get_supported_head_sizes`)."""


def check_settings(config: RunConfig, *, code: bool = True) -> None:
    """Check data, reward function, environment and models. A built-in model that is not in the
    cache is made when the run starts. `code`: whether the modules of reward function and
    environment have to be on this machine.
    """
    check_data(config)
    if code:
        check_code(config)
    policy = find_model(config.learner.model)
    if policy is not None:
        check_policy(config, policy)
    if config.has_critic:
        find_model(str(critic_directory(config.critic.model)))


def check_files(config: RunConfig) -> None:
    """Check data sources, reward function and environment."""
    check_data(config)
    check_code(config)


def check_data(config: RunConfig) -> None:
    peek_sources(config.data.train)
    peek_sources(config.data.held_out, "data.held_out")


def check_code(config: RunConfig) -> None:
    """Read the source of reward functions, environment and tools, without running it."""
    for _, leaf in config.reward.leaves:
        if isinstance(leaf, CustomReward):
            require_function(leaf.function, leaf.packages)
    require_environment(config.environment)


def check_policy(config: RunConfig, directory: Path) -> None:
    """Check that the engine can run the policy's checkpoint with this run's lengths."""
    name = f"learner.model {config.learner.model}"
    model = _read_json(directory / "config.json")
    model = model.get("text_config") or model
    _check_context(config, model, name)
    _check_vocabulary(directory / "tokenizer.json", model.get("vocab_size"), name)
    if config.rollout.gpus_per_worker == 0:
        _check_head_size(model, name)


def check_reward_model(directory: Path, name: str) -> None:
    """Check that a checkpoint is a reward model: a sequence classifier with one output and a chat
    template. `name` is that of its setting.
    """
    name = f"reward model {name}"
    model = _read_json(directory / "config.json")
    kinds = model.get("architectures") or ["no architecture"]
    if not str(kinds[0]).endswith("ForSequenceClassification"):
        raise UserError(
            f"{name}: it is a {kinds[0]}, which has no classification head: use a model of the kind "
            "...ForSequenceClassification that was trained as a reward model"
        )
    labels = model.get("num_labels") or len(model.get("id2label") or (0, 1))
    if labels != 1:
        raise UserError(
            f"{name}: its head has {labels} outputs, and a score is one: use a model that was trained with "
            "num_labels=1"
        )
    settings = directory / "tokenizer_config.json"
    template = _read_json(settings).get("chat_template") if settings.is_file() else None
    if template is None and not any(directory.glob("chat_template.*")):
        raise UserError(
            f"{name}: its tokenizer has no chat template, so it cannot read conversations: save the "
            "tokenizer with the template that the model was trained with (tokenizer.chat_template)"
        )


def _check_context(config: RunConfig, model: Mapping[str, Any], name: str) -> None:
    limit = model.get("max_position_embeddings")
    rope = model.get("rope_parameters") or model.get("rope_scaling") or {}
    is_scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    if isinstance(limit, int) and not is_scaled and prompt + response > limit:
        raise UserError(
            f"{name}: its context is {limit} tokens, and data.max_prompt_tokens {prompt} + "
            f"rollout.max_response_tokens {response} are {prompt + response}: lower one of them"
        )


def _check_head_size(model: Mapping[str, Any], name: str) -> None:
    hidden, heads = model.get("hidden_size"), model.get("num_attention_heads")
    size = model.get("head_dim") or (hidden // heads if hidden and heads else None)
    if size is not None and size not in CPU_HEAD_SIZES:
        raise UserError(
            f"{name}: its head size is {size}, and vLLM's attention on a CPU has kernels for "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}: use another model, or a GPU"
        )


def _check_vocabulary(tokenizer: Path, vocabulary: int | None, name: str) -> None:
    if vocabulary is None or not tokenizer.is_file():
        return
    written = _read_json(tokenizer)
    tokens = written.get("model", {}).get("vocab", ())
    highest = max(tokens.values(), default=-1) if isinstance(tokens, dict) else len(tokens) - 1
    highest = max([highest, *(token.get("id", -1) for token in written.get("added_tokens", ()))])
    if highest >= vocabulary:
        raise UserError(
            f"{name}: its tokenizer has token {highest}, and its embedding has {vocabulary} tokens: give the "
            "tokenizer of this model, or resize the model's embedding (resize_token_embeddings)"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}): fetch or save it again") from None
