"""The labelled running sum: a task that a tiny transformer partly learns from supervision, and
fully with RL.

    prompt    a7b5c9=
    response  a+7=07;b+5=12;c+9=21;\\boxed{21}

Each operand is a letter and a digit; the response adds them one by one and writes each sum (two
digits, modulo 100). Difficulty depends on the number of operands and the size of the digits (small
ones never carry), so a critic can predict it from the prompt. The supervised start imitates a
FALLIBLE procedure that often forgets the carry; reinforcement learning must find the carry rule
from 0/1 rewards.

Pure standard library: the configuration and the command line may import this.
"""

from __future__ import annotations

import hashlib
import random

LABELS = "abcdefghijklmnopqrstuvwxyz"
MODULUS = 100
MIN_OPERANDS = 2
DIGIT_CEILINGS = (3, 9)  # a prompt's largest digit is drawn from this range, both ends included
HELD_OUT_SEED = 1_000_000
"""Seeds from this value on draw prompts that smaller seeds never draw, so that held-out sets are
disjoint.
"""
_HELD_OUT_SHARE = 8  # one prompt in this many is held out, chosen by a hash of its text


def generate_example(index: int, *, seed: int, max_operands: int) -> tuple[str, str]:
    """Generate prompt text and ground truth (the sum modulo 100, as a plain integer) of example
    `index`.

    A pure function of its arguments. Two seeds on different sides of HELD_OUT_SEED have no prompt
    in common.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed are counted from 0, given {index} and {seed}")
    if not MIN_OPERANDS <= max_operands <= len(LABELS):
        raise ValueError(f"max_operands is {max_operands}, possible are {MIN_OPERANDS} to {len(LABELS)}")
    rng = random.Random(f"running-sum/{seed}/{index}")
    want_held_out = seed >= HELD_OUT_SEED
    while True:
        prompt = draw_prompt(rng, rng.randint(MIN_OPERANDS, max_operands))
        if is_held_out(prompt) == want_held_out:
            return prompt, str(sum(digit for _, digit in operands(prompt)) % MODULUS)


def draw_prompt(rng: random.Random, num_operands: int) -> str:
    """Draw a prompt of `num_operands` operands, labelled a, b, c, and so on.

    Labels start at a because the reward reads only the answer: with other starts, the labels in
    responses would drift away from their operands.
    """
    ceiling = rng.randint(*DIGIT_CEILINGS)
    return "".join(f"{label}{rng.randint(1, ceiling)}" for label in LABELS[:num_operands]) + "="


def is_held_out(prompt: str) -> bool:
    # Not a CRC: it is linear, so the short prompts would all fall on one side.
    return hashlib.blake2b(prompt.encode(), digest_size=2).digest()[0] % _HELD_OUT_SHARE == 0


def operands(prompt: str) -> list[tuple[str, int]]:
    """`a7b5=` -> [("a", 7), ("b", 5)]. Raises ValueError on any other shape."""
    body = prompt.removesuffix("=")
    labels, digits = body[::2], body[1::2]
    if (
        body == prompt
        or not body
        or len(labels) != len(digits)
        or not digits.isdecimal()
        or not labels.isalpha()
    ):
        raise ValueError(f"{prompt!r} is no running-sum prompt, which looks like 'a7b5c9='")
    return [(label, int(digit)) for label, digit in zip(labels, digits, strict=True)]


def solution(prompt: str, rng: random.Random, p_drop_carry: float = 0.0, p_slip: float = 0.0) -> str:
    """Write the response of a fallible procedure; it is exact when both probabilities are 0.

    `p_drop_carry` is the probability of forgetting the carry at each step that has one, `p_slip` of
    writing a sum that is off by one at each step. Errors propagate: later steps add to the written
    sum.
    """
    total = 0
    steps = []
    for label, digit in operands(prompt):
        total = add(total, digit, rng, p_drop_carry)
        if rng.random() < p_slip:
            total = (total + rng.choice((-1, 1))) % MODULUS
        steps.append(f"{label}+{digit}={total:02d};")
    return "".join(steps) + f"\\boxed{{{total:02d}}}"


def add(total: int, digit: int, rng: random.Random, p_drop_carry: float) -> int:
    """Add a digit modulo 100; a carry is forgotten with probability `p_drop_carry`."""
    tens, units = divmod(total, 10)
    carry, units = divmod(units + digit, 10)
    if carry and rng.random() < p_drop_carry:
        carry = 0
    return (10 * (tens + carry) + units) % MODULUS
