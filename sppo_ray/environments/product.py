"""The product of two numbers: a task that a tiny transformer solves with a calculator only.

    prompt        347*862=
    action        <calculator>347*862</calculator>
    observation   299114
    action        \\boxed{299114}

The supervised start seldom calls the tool and mostly guesses, which is right for two digits only.
Reinforcement learning must find that calling pays. How many digits there are is in the prompt, so a
critic can predict the difficulty.

Pure standard library.
"""

from __future__ import annotations

import hashlib
import random

DIGITS = (1, 3)  # of each number, both ends included
HELD_OUT_SEED = 1_000_000
"""Seeds from this value on draw prompts that smaller seeds never draw."""
_HELD_OUT_SHARE = 8  # one prompt in this many is held out, chosen by a hash of its text


def generate_example(index: int, *, seed: int) -> tuple[str, str]:
    """Generate prompt text and product of example `index`. Pure."""
    rng = random.Random(f"product/{seed}/{index}")
    while True:
        prompt = draw_prompt(rng)
        if is_held_out(prompt) == (seed >= HELD_OUT_SEED):
            left, right = numbers(prompt)
            return prompt, str(left * right)


def draw_prompt(rng: random.Random) -> str:
    left, right = (rng.randint(10 ** (digits - 1), 10**digits - 1) for digits in _lengths(rng))
    return f"{left}*{right}="


def _lengths(rng: random.Random) -> tuple[int, int]:
    return rng.randint(*DIGITS), rng.randint(*DIGITS)


def is_held_out(prompt: str) -> bool:
    return hashlib.blake2b(prompt.encode(), digest_size=2).digest()[0] % _HELD_OUT_SHARE == 0


def numbers(prompt: str) -> tuple[int, int]:
    """`347*862=` -> (347, 862)."""
    left, _, right = prompt.removesuffix("=").partition("*")
    return int(left), int(right)
