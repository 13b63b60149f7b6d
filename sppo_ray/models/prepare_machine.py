"""Trains the base policy of the register machine by imitation of one that forgets carries.

As for the running sum (`prepare.py`), reinforcement learning must be able to improve it: the base
copies correctly over 600 tokens, and forgets more than half of the carries.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sppo_ray.environments import register_machine
from sppo_ray.models import tiny
from sppo_ray.models.prepare import draw_training_prompts, encode_batch, imitate, one_thread, response_loss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class MachineStart:
    """Settings of the base; part of its cache key."""

    max_rounds: int = 9
    p_drop_carry: float = 0.6
    steps: int = 1500
    # of all responses of a batch: batches of few rounds hold more responses, and all cost the same
    batch_rounds: int = 36
    lr: float = 5e-3
    warmup_steps: int = 30
    final_lr_fraction: float = 0.05
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0


def build_register_machine(directory: Path, settings: MachineStart, report: Callable[[str], None]) -> None:
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
            shape=tiny.LONG_RESPONSE_SHAPE,
        )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def draw_batch(
    rng: random.Random, settings: MachineStart, tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """Return prompt ids [B, P] and response ids [B, R], int64, EOS included.

    All prompts of a batch have equally many operands and rounds, so there is no padding. Machines
    of few rounds teach the steps at a fraction of the tokens. No prompt is held out.
    """
    num_operands = rng.randint(*register_machine.OPERANDS)
    rounds = rng.randint(1, settings.max_rounds)
    prompts = draw_training_prompts(
        settings.batch_rounds // rounds, lambda: register_machine.draw_prompt(rng, num_operands, rounds)
    )
    responses = [register_machine.solution(prompt, rng, settings.p_drop_carry) for prompt in prompts]
    return encode_batch(prompts, responses, tokenizer)
