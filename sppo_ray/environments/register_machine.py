r"""A register machine: long responses to short prompts, most of them hopeless for the base policy.

    prompt    a0b2c1x3=
    response  a+0=00;b+2=02;c+1=03;x2;a+0=03;b+2=05;c+1=06;x1;a+0=06;b+2=08;c+1=09;x0;\boxed{09}

The program adds each operand to one register and runs as often as the counter x says. The response
is its trace: the register after each addition, and the rounds that are left after each round. With
7 to 9 operands and 6 to 9 rounds it has 317 to 599 tokens.

The register ends at 6 to 99 and carries once for every ten of it. A base policy that gets each
carry right with probability q solves a prompt of total t with about q^(t // 10): nearly all prompts
below ten, and almost none above forty. The total is a product of two numbers of the prompt, so a
critic can learn to predict the difficulty, and one that reads the answer sees it.

Pure standard library: the configuration and the command line may import this.
"""

from __future__ import annotations

import random

from sppo_ray.environments.running_sum import HELD_OUT_SEED, LABELS, add, is_held_out, operands

OPERANDS = (7, 9)  # of a program, both ends included
LARGEST_TOTAL = 99
FEWER_ROUNDS = 3  # of a prompt than max_rounds, at most


def generate_example(index: int, *, seed: int, max_rounds: int) -> tuple[str, str]:
    """Generate prompt text and ground truth (the last register) of example `index`.

    A pure function of its arguments. Two seeds on different sides of HELD_OUT_SEED have no prompt
    in common.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed are counted from 0, given {index} and {seed}")
    if not 1 <= max_rounds <= 9:
        raise ValueError(f"max_rounds is {max_rounds}, possible are 1 to 9")
    rng = random.Random(f"register-machine/{seed}/{index}")
    want_held_out = seed >= HELD_OUT_SEED
    while True:
        rounds = rng.randint(max(1, max_rounds - FEWER_ROUNDS), max_rounds)
        prompt = draw_prompt(rng, rng.randint(*OPERANDS), rounds)
        if is_held_out(prompt) == want_held_out:
            return prompt, str(total_of(prompt))


def draw_prompt(rng: random.Random, num_operands: int, rounds: int) -> str:
    """Draw a prompt whose sum of a round is equally likely anything from 1 to LARGEST_TOTAL /
    rounds, spread over the operands at random.
    """
    digits = [0] * num_operands
    for _ in range(rng.randint(1, min(LARGEST_TOTAL // rounds, 9 * num_operands))):
        digits[rng.choice([place for place, digit in enumerate(digits) if digit < 9])] += 1
    program = "".join(f"{label}{digit}" for label, digit in zip(LABELS, digits, strict=False))
    return f"{program}x{rounds}="


def parse(prompt: str) -> tuple[list[tuple[str, int]], int]:
    """`a0b2x3=` -> ([("a", 0), ("b", 2)], 3). Raises ValueError on any other shape."""
    *program, (counter, rounds) = operands(prompt)
    if counter != "x" or not program or not rounds:
        raise ValueError(f"{prompt!r} is no register-machine prompt, which looks like 'a0b2c1x3='")
    return program, rounds


def total_of(prompt: str) -> int:
    program, rounds = parse(prompt)
    return rounds * sum(digit for _, digit in program)


def solution(prompt: str, rng: random.Random, p_drop_carry: float = 0.0) -> str:
    """Write the trace of a machine that forgets each carry with probability `p_drop_carry`; errors
    propagate.
    """
    program, rounds = parse(prompt)
    register = 0
    trace = []
    for left in reversed(range(rounds)):
        for label, digit in program:
            register = add(register, digit, rng, p_drop_carry)
            trace.append(f"{label}+{digit}={register:02d};")
        trace.append(f"x{left};")
    return "".join(trace) + f"\\boxed{{{register:02d}}}"
