"""The task itself: worked examples, then properties of every prompt it can draw."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.environments.running_sum import (
    HELD_OUT_SEED,
    LABELS,
    draw_prompt,
    generate_example,
    is_held_out,
    operands,
    solution,
)

SEEDS = st.integers(0, 2**31)


class Always:
    """Random numbers that make every chance happen, and every slip go down."""

    def random(self) -> float:
        return 0.0

    def choice(self, options: tuple[int, ...]) -> int:
        return options[0]


def test_the_exact_solution_writes_each_step_and_the_boxed_answer() -> None:
    # 7; 7 + 5 = 12; 12 + 9 = 21
    assert solution("a7b5c9=", random.Random(0)) == r"a+7=07;b+5=12;c+9=21;\boxed{21}"


def test_a_forgotten_carry_is_carried_on() -> None:
    # 7; 7 + 5 = 12 without its carry is 2; 2 + 9 = 11 without its carry is 1; 1 + 3 = 4 has none to
    # forget
    assert solution("a7b5c9d3=", Always(), p_drop_carry=1.0) == r"a+7=07;b+5=02;c+9=01;d+3=04;\boxed{04}"


def test_a_slip_is_off_by_one_and_goes_round_the_modulus() -> None:
    # 1 - 1 = 0; 0 + 0 - 1 = 99; 99 + 2 - 1 = 100 -> 0
    assert solution("a1b0c2=", Always(), p_slip=1.0) == r"a+1=00;b+0=99;c+2=00;\boxed{00}"


def test_sums_are_modulo_100() -> None:
    # twelve nines: 108
    prompt = "".join(f"{label}9" for label in LABELS[:12]) + "="
    assert solution(prompt, random.Random(0)).endswith(r"l+9=08;\boxed{08}")


@settings(deadline=None, max_examples=50)
@given(index=st.integers(0, 10**9), seed=SEEDS, max_operands=st.integers(2, 26))
def test_an_example_is_a_function_of_its_arguments_and_solved_by_the_exact_procedure(
    index: int, seed: int, max_operands: int
) -> None:
    prompt, answer = generate_example(index, seed=seed, max_operands=max_operands)
    assert (prompt, answer) == generate_example(index, seed=seed, max_operands=max_operands)
    pairs = operands(prompt)
    labels = [label for label, _ in pairs]
    assert 2 <= len(pairs) <= max_operands
    assert len(set(labels)) == len(labels)
    assert all(1 <= digit <= 9 for _, digit in pairs)
    assert int(answer) == sum(digit for _, digit in pairs) % 100
    assert solution(prompt, random.Random(0)).endswith(f"\\boxed{{{int(answer):02d}}}")


@settings(deadline=None, max_examples=50)
@given(
    indices=st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
    train_seed=st.integers(0, HELD_OUT_SEED - 1),
)
def test_held_out_seeds_share_no_prompt_with_training_seeds(indices: list[int], train_seed: int) -> None:
    train = {generate_example(i, seed=train_seed, max_operands=8)[0] for i in indices}
    held_out = {generate_example(i, seed=HELD_OUT_SEED, max_operands=8)[0] for i in indices}
    assert not train & held_out
    assert all(is_held_out(prompt) for prompt in held_out)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, p_drop_carry=st.floats(0, 1), p_slip=st.floats(0, 1))
def test_a_fallible_solution_copies_its_operands_and_boxes_what_it_wrote(
    seed: int, p_drop_carry: float, p_slip: float
) -> None:
    rng = random.Random(seed)
    prompt = draw_prompt(rng, rng.randint(2, 26))
    *steps, answer = solution(prompt, rng, p_drop_carry, p_slip).split(";")
    assert [(step[0], int(step[2])) for step in steps] == operands(prompt)
    assert answer == f"\\boxed{{{steps[-1][-2:]}}}"


def test_difficulty_spreads_and_only_the_short_prompts_repeat() -> None:
    prompts = [generate_example(i, seed=0, max_operands=8)[0] for i in range(2000)]
    counts = [len(operands(prompt)) for prompt in prompts]
    # 2..8 operands equally often: 2000 / 7 = 286 each, standard deviation 16
    assert all(abs(counts.count(k) - 286) < 80 for k in range(2, 9))
    # two operands from 1..9 allow 81 prompts, three 729: those repeat, which leaves most of 2000
    # distinct
    assert len(set(prompts)) > 1500


@pytest.mark.parametrize("text", ["", "=", "a7b5", "a7b=", "77=", "ab=", "a7b5=c="])
def test_what_is_no_prompt_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="no running-sum prompt"):
        operands(text)


@pytest.mark.parametrize(("index", "seed", "max_operands"), [(-1, 0, 8), (0, -1, 8), (0, 0, 1), (0, 0, 27)])
def test_impossible_arguments_are_refused(index: int, seed: int, max_operands: int) -> None:
    with pytest.raises(ValueError):
        generate_example(index, seed=seed, max_operands=max_operands)
