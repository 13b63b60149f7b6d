"""The register machine: worked traces, the prompts and their difficulty, the base's batches."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sppo_ray.environments.register_machine import draw_prompt, generate_example, parse, solution, total_of
from sppo_ray.models import tiny
from sppo_ray.models.bundled import weights_digest
from sppo_ray.models.prepare_machine import MachineStart, build_register_machine, draw_batch
from sppo_ray.rewards.running_sum import verify_running_sum


class Always:
    """Random numbers that make every chance happen."""

    def random(self) -> float:
        return 0.0


def test_the_trace_counts_down_and_boxes_the_register() -> None:
    # 0 + 2 + 1 = 3 a round, three rounds
    trace = r"a+0=00;b+2=02;c+1=03;x2;a+0=03;b+2=05;c+1=06;x1;a+0=06;b+2=08;c+1=09;x0;\boxed{09}"
    assert solution("a0b2c1x3=", random.Random(0)) == trace
    assert verify_running_sum(trace, str(total_of("a0b2c1x3=")), {}) == (1.0, "correct")


def test_a_forgotten_carry_is_carried_on() -> None:
    # 7; 7 + 7 = 14 without its carry is 4
    assert solution("a7x2=", Always(), p_drop_carry=1.0) == r"a+7=07;x1;a+7=04;x0;\boxed{04}"


def test_a_register_carries_once_for_every_ten_of_it() -> None:
    """So a policy that gets a carry right with probability q solves a prompt with q^(t // 10)."""
    rng = random.Random(1)
    for _ in range(200):
        prompt = draw_prompt(rng, 8, rng.randint(6, 9))
        exact, none = (solution(prompt, Always(), p)[-3:-1] for p in (0.0, 1.0))
        # without any carry only the tens are missing
        assert int(exact) == total_of(prompt) and int(none) == total_of(prompt) % 10


def test_examples_follow_from_their_seed_and_have_their_length() -> None:
    tokenizer = tiny.character_tokenizer()
    rng, lengths, carries = random.Random(0), [], []
    for index in range(600):
        prompt, truth = generate_example(index, seed=0, max_rounds=9)
        assert (prompt, truth) == generate_example(index, seed=0, max_rounds=9)
        program, rounds = parse(prompt)
        assert 7 <= len(program) <= 9 and 6 <= rounds <= 9 and 6 <= int(truth) <= 99
        carries.append(int(truth) // 10)
        if index < 100:
            ids = tokenizer(solution(prompt, rng) + tiny.EOS)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            lengths.append(len(ids))
    # 7 x 6 steps of 7 tokens, 6 counters of 3, the answer of 4 and the end; 9 x 9 and 9
    assert 7 * 6 * 7 + 6 * 3 + 5 == 317 <= min(lengths) and max(lengths) <= 599 == 9 * 9 * 7 + 9 * 3 + 5
    # every number of carries is about equally frequent: the base (q = .4) gets 15 % of all, and
    # less than one in fifty of those with more than four
    assert all(20 < carries.count(count) < 100 for count in range(10))
    assert sum(0.4**count for count in carries) / len(carries) == pytest.approx(0.15, abs=0.05)


def test_held_out_seeds_share_no_prompt_with_training_seeds() -> None:
    train, held_out = (
        {generate_example(index, seed=seed, max_rounds=9)[0] for index in range(300)}
        for seed in (0, 1_000_000)
    )
    assert not train & held_out


@pytest.mark.parametrize("text", ["a7b5=", "x3=", "a7x0=", "a7x3"])
def test_what_is_no_prompt_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no (register-machine|running-sum) prompt"):
        parse(text)


@pytest.mark.parametrize(("index", "seed", "max_rounds"), [(-1, 0, 9), (0, -1, 9), (0, 0, 0), (0, 0, 10)])
def test_impossible_arguments_are_refused(index: int, seed: int, max_rounds: int) -> None:
    with pytest.raises(ValueError):
        generate_example(index, seed=seed, max_rounds=max_rounds)


def test_batches_need_no_padding_and_cost_the_same() -> None:
    tokenizer, rng = tiny.character_tokenizer(), random.Random(0)
    for _ in range(10):
        prompts, responses = draw_batch(rng, MachineStart(), tokenizer)
        assert len(prompts) == len(responses) and 1500 < prompts.numel() + responses.numel() < 3500
        assert (responses[:, -1] == tokenizer.eos_token_id).all()


def test_a_short_start_gives_the_same_bytes_again(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_register_machine(tmp_path / name, MachineStart(steps=2), report=lambda line: None)
        digests.append(weights_digest(tmp_path / name))
    assert digests[0] == digests[1]
