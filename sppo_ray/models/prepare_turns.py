"""Trains the base policies of the games of several turns, by imitation of players that err.

As for the running sum (`prepare.py`), reinforcement learning must be able to improve them: one
calls its calculator in a third of its episodes, the other mostly ignores the answers to its
guesses. Only actions are imitated; observations are context.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sppo_ray.environments import guess_number, product
from sppo_ray.models import tiny
from sppo_ray.models.prepare import imitate, one_thread

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Episode = list[str]
"""Prompt, action, observation, action, ..., action."""


@dataclass(frozen=True, slots=True)
class TurnsStart:
    """Settings of a base; part of its cache key."""

    game: str  # "product" or "guess-number"
    steps: int = 700
    batch_size: int = 48
    lr: float = 5e-3
    warmup_steps: int = 30
    final_lr_fraction: float = 0.05
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0


def play_product(rng: random.Random) -> Episode:
    """Call the calculator in a third of the episodes, now and then with a wrong digit; else
    guess.
    """
    while product.is_held_out(prompt := product.draw_prompt(rng)):
        pass
    left, right = product.numbers(prompt)
    if rng.random() < 0.35:
        called = left if rng.random() > 0.1 else max(1, left + rng.choice((-1, 1)))
        result = str(called * right)
        return [prompt, f"<calculator>{called}*{right}</calculator>", result, f"\\boxed{{{result}}}"]
    exact = left * right
    guess = exact if exact < 100 else rng.randint(10 ** (len(str(exact)) - 1), 10 ** len(str(exact)) - 1)
    return [prompt, f"\\boxed{{{guess}}}"]


def play_guess_number(rng: random.Random) -> Episode:
    """Guess anything in the range in half of the turns, else anything that the answers leave."""
    ceiling = rng.randint(*guess_number.CEILINGS)
    number = rng.randint(1, ceiling)
    low, high = 1, ceiling
    episode = [f"{ceiling}?"]
    for turn in range(guess_number.TURNS):
        guess = rng.randint(low, high) if rng.random() < 0.5 else rng.randint(1, ceiling)
        episode.append(str(guess))
        if guess == number or turn == guess_number.TURNS - 1:
            break
        is_higher = guess < number
        low, high = (max(low, guess + 1), high) if is_higher else (low, min(high, guess - 1))
        episode.append(guess_number.HIGHER if is_higher else guess_number.LOWER)
    return episode


PLAYERS: dict[str, Callable[[random.Random], Episode]] = {
    "product": play_product,
    "guess-number": play_guess_number,
}


def build_game(directory: Path, settings: TurnsStart, report: Callable[[str], None]) -> None:
    """Write the base checkpoint to `directory`. Equal settings, machine and versions give equal
    bytes.
    """
    tokenizer, play = tiny.tool_tokenizer(), PLAYERS[settings.game]

    def loss_of(model: LlamaForCausalLM, rng: random.Random) -> Tensor:
        episodes = [play(rng) for _ in range(settings.batch_size)]
        return action_loss(model, *batch_of(episodes, tokenizer))

    with one_thread():
        model = imitate(settings, tokenizer, report, loss_of)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def action_loss(model: LlamaForCausalLM, token_ids: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the actions' tokens; arguments as of `batch_of`."""
    import torch

    logits = model(input_ids=token_ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())


def batch_of(episodes: Sequence[Episode], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Return token ids [B, T], padded on the right, and targets [B, T], -100 except at actions;
    int64. Each action ends with EOS.
    """
    import torch

    rows, masks = [], []
    for prompt, *turns in episodes:
        ids = tokenizer(tiny.BOS + prompt)["input_ids"]
        mask = [False] * len(ids)
        for number, text in enumerate(turns):
            is_action = number % 2 == 0
            part = tokenizer(text + tiny.EOS if is_action else text)["input_ids"]
            ids, mask = ids + part, mask + [is_action] * len(part)
        rows.append(torch.tensor(ids))
        masks.append(torch.tensor(mask))
    token_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    is_action = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True, padding_value=False)
    return token_ids, torch.where(is_action, token_ids, -100)
