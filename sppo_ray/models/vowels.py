"""Trains the bundled models of the vowels task: a base policy by imitation, and reward models from
pairs of responses.

Pairs are labelled by the Bradley-Terry model of the true preference p (Biometrika 39, 1952): a is
chosen over b with probability sigmoid(SHARPNESS (p_a - p_b)). The reward model's score s minimises
-log sigmoid(s_chosen - s_rejected), so that it estimates SHARPNESS p up to a constant; a small
penalty on the sum of both scores sets the constant (as in TRL's RewardTrainer).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.environments import vowels
from sppo_ray.models import tiny
from sppo_ray.models.prepare import SupervisedStart, lr_factor, one_thread

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

SHARPNESS = 10.0
CENTRE = 0.01
"""Coefficient of the penalty (s_chosen + s_rejected)^2."""
Report = Callable[[str], None]
Draw = Callable[[str, random.Random], str]
Pair = tuple[str, str, str]
"""Prompt, chosen and rejected response."""


@dataclass(frozen=True, slots=True)
class RewardModelStart:
    """Settings of a reward model; part of its cache key."""

    few: int | None = None
    """Number of distinct pairs, of responses of the base policy; None = new ones in each step, half
    of the responses of any kind.
    """
    steps: int = 600
    batch_size: int = 48
    lr: float = 3e-3
    warmup_steps: int = 30
    final_lr_fraction: float = 0.05
    weight_decay: float = 0.01
    seed: int = 0


WEAK = RewardModelStart(few=200, steps=30, lr=2e-3)
POLICY = SupervisedStart(steps=300, batch_size=64, lr=4e-3)


def build_vowels(directory: Path, settings: SupervisedStart, report: Report) -> None:
    """Write the base policy to `directory`. Equal settings, machine and versions give equal
    bytes.
    """
    import torch

    tokenizer = tiny.character_tokenizer()
    rng = random.Random(f"vowels/policy/{settings.seed}")
    with one_thread():
        model = tiny.new_model(tiny.RUNNING_SUM_SHAPE, tokenizer, seed=settings.seed).train()

        def loss_of_batch() -> Tensor:
            prompts = [_training_prompt(rng) for _ in range(settings.batch_size)]
            texts = [tiny.BOS + p + vowels.base_response(p, rng) + tiny.EOS for p in prompts]
            rows, _ = _padded(tokenizer, texts)
            targets = rows[:, 1:].clone()
            for row, prompt in zip(targets, prompts, strict=True):
                row[: len(prompt)] = -100  # the prompt's own letters
            targets[rows[:, 1:] == tokenizer.pad_token_id] = -100
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

        _optimise(model, settings, loss_of_batch, "supervised start", report)
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_vowels_reward(directory: Path, settings: RewardModelStart, report: Report) -> None:
    """Write a reward model to `directory`; reproducible as the policy."""
    tokenizer = tiny.character_tokenizer()
    rng = random.Random(f"vowels/reward/{settings.seed}")
    few = [draw_pair(rng, any_kind=False) for _ in range(settings.few or 0)]
    with one_thread():
        model = _new_classifier(tokenizer, settings.seed).train()

        def loss_of_batch() -> Tensor:
            count = settings.batch_size
            pairs = rng.sample(few, count) if few else [draw_pair(rng, any_kind=True) for _ in range(count)]
            return pair_loss(model, tokenizer, pairs)

        _optimise(model, settings, loss_of_batch, "reward model", report)
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def pair_loss(model: Any, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> Tensor:
    """Return the mean of -log sigmoid(s_chosen - s_rejected) + CENTRE (s_chosen + s_rejected)^2."""
    import torch

    texts = [tiny.BOS + prompt + response for prompt, *both in pairs for response in both]
    rows, real = _padded(tokenizer, texts)
    scores = model(input_ids=rows, attention_mask=real, use_cache=False).logits.view(-1, 2)
    likelihood = torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1])
    return (CENTRE * scores.sum(dim=1) ** 2 - likelihood).mean()


def draw_pair(rng: random.Random, *, any_kind: bool) -> Pair:
    """Draw a prompt with two responses, and choose one of them by the Bradley-Terry model.
    `any_kind`: half of the responses are of any kind, and the others of the base policy.
    """
    prompt = _training_prompt(rng)
    draws: list[Draw] = [vowels.base_response] + [vowels.any_response] * any_kind
    first, second = (rng.choice(draws)(prompt, rng) for _ in range(2))
    gap = vowels.preference(first) - vowels.preference(second)
    is_first = rng.random() < 1.0 / (1.0 + math.exp(-SHARPNESS * gap))
    return (prompt, first, second) if is_first else (prompt, second, first)


def _training_prompt(rng: random.Random) -> str:
    while vowels.is_held_out(prompt := vowels.draw_prompt(rng)):
        pass
    return prompt


def _padded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, [B, T] int64 each, padded on the right."""
    import torch

    rows = tokenizer(texts)["input_ids"]
    width = max(map(len, rows))
    ids = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
    real = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(real)


def _new_classifier(tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    """Create a float32 Llama classifier with one output, initialised from `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        dtype="float32",
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **tiny.RUNNING_SUM_SHAPE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(config)


def _optimise(
    model: Any,
    settings: SupervisedStart | RewardModelStart,
    loss_of_batch: Callable[[], Tensor],
    name: str,
    report: Report,
) -> None:
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, settings))
    for step in range(1, settings.steps + 1):
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == settings.steps:
            report(f"{name}: step {step}/{settings.steps}, loss {loss.item():.3f}")
