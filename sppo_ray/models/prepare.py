"""Trains the base policy of the running sum by imitation of a procedure that makes mistakes.

Reinforcement learning must be able to improve the base policy. The policy learns the format and
copies correctly, but only about 0.43 of its samples at temperature 1 are correct, because the
imitated procedure forgets more than half of the carries.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sppo_ray.environments import running_sum
from sppo_ray.models import tiny

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class SupervisedStart:
    """Settings of the base; part of its cache key."""

    max_operands: int = 8
    p_drop_carry: float = 0.6
    p_slip: float = 0.01
    steps: int = 1200
    # at equal cost, many small steps learn to copy faster than few large ones
    batch_size: int = 32
    lr: float = 6e-3
    warmup_steps: int = 30
    final_lr_fraction: float = 0.05  # reached at the last step of the cosine
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0


LONG = SupervisedStart(max_operands=20, p_drop_carry=0.4, p_slip=0.004, steps=2400, batch_size=48, lr=5e-3)
"""For responses of up to 144 tokens: errors accumulate over twenty steps, so the imitated procedure
makes fewer.
"""


def build_running_sum(directory: Path, settings: SupervisedStart, report: Callable[[str], None]) -> None:
    """Write the base checkpoint to `directory`. Equal settings, machine and versions give equal
    bytes.
    """
    tokenizer = tiny.character_tokenizer()
    with one_thread():
        model = imitate(
            settings,
            tokenizer,
            report,
            lambda model, rng: response_loss(model, *draw_batch(rng, settings, tokenizer)),
        )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def imitate(
    settings: Imitation,
    tokenizer: PreTrainedTokenizerFast,
    report: Callable[[str], None],
    loss_of: Callable[[LlamaForCausalLM, random.Random], Tensor],
    *,
    shape: dict[str, Any] = tiny.RUNNING_SUM_SHAPE,
) -> LlamaForCausalLM:
    """Train a new tiny model; `loss_of` draws a batch and returns its mean loss, a scalar."""
    import torch

    model = tiny.new_model(shape, tokenizer, seed=settings.seed).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, settings))
    rng = random.Random(f"supervised-start/{settings.seed}")
    for step in range(1, settings.steps + 1):
        loss = loss_of(model, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == settings.steps:
            report(f"supervised start: step {step}/{settings.steps}, loss {loss.item():.3f}")
    return model.eval()


def lr_factor(step: int, settings: Schedule) -> float:
    """Linear warm-up, then a cosine from 1 to `final_lr_fraction`."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.final_lr_fraction + (1 - settings.final_lr_fraction) * cosine


def draw_batch(
    rng: random.Random, settings: SupervisedStart, tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """Return prompt ids [B, P] and response ids [B, R], int64, EOS included.

    All prompts of a batch have the same number of operands and the same length, so there is no
    padding. No prompt is held out.
    """
    num_operands = rng.randint(running_sum.MIN_OPERANDS, settings.max_operands)
    prompts = draw_training_prompts(settings.batch_size, lambda: running_sum.draw_prompt(rng, num_operands))
    responses = [running_sum.solution(p, rng, settings.p_drop_carry, settings.p_slip) for p in prompts]
    return encode_batch(prompts, responses, tokenizer)


def draw_training_prompts(count: int, draw: Callable[[], str]) -> list[str]:
    """Draw prompts, none of them held out."""
    prompts: list[str] = []
    while len(prompts) < count:
        prompt = draw()
        if not running_sum.is_held_out(prompt):
            prompts.append(prompt)
    return prompts


def encode_batch(
    prompts: Sequence[str], responses: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """Return prompt ids [B, P] and response ids [B, R], int64, EOS included; all prompts and all
    responses have the same length.
    """
    import torch

    prompt_ids = tokenizer([tiny.BOS + prompt for prompt in prompts])["input_ids"]
    response_ids = tokenizer([response + tiny.EOS for response in responses])["input_ids"]
    return torch.tensor(prompt_ids), torch.tensor(response_ids)


def response_loss(model: LlamaForCausalLM, prompt_ids: Tensor, response_ids: Tensor) -> Tensor:
    """Return the mean cross-entropy of the response tokens; ids as in `draw_batch`."""
    import torch

    token_ids = torch.cat([prompt_ids, response_ids], dim=1)
    # [B, R, vocab]
    logits = model(input_ids=token_ids[:, :-1], use_cache=False, logits_to_keep=response_ids.shape[1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), response_ids.flatten())


class Schedule(Protocol):
    """The settings of `lr_factor`."""

    @property
    def steps(self) -> int: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def final_lr_fraction(self) -> float: ...


class Imitation(Schedule, Protocol):
    """The settings of `imitate`."""

    @property
    def lr(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def grad_clip(self) -> float: ...

    @property
    def seed(self) -> int: ...


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread within the block."""
    # Sums over several threads differ in their last bits, but the base must be reproducible.
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
