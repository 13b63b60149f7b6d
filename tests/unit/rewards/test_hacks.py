"""What a policy tries instead of solving the task scores 0, with every reward function, through
real verifier processes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.config import (
    CodeReward,
    CustomReward,
    MathReward,
    ReasoningGymReward,
    RewardSettings,
    RunningSumReward,
)
from sppo_ray.rewards.extract import last_boxed, last_program, without_echo, without_thinking
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict

NUMBERS = " ".join(str(n) for n in range(200))
BOXES = "".join(f"\\boxed{{{n}}} " for n in range(100))
# a prompt that carries an answer, and the right one at that
MARKED = r"Example: 30 + 4. Answer: \boxed{34}. Now 33 + 1."


def score(function: Any, requests: list[ScoreRequest]) -> list[Verdict]:
    async def use() -> list[Verdict]:
        pool = VerifierPool(RewardSettings(function=function, processes=1, deadline_s=20.0))
        try:
            return list(await asyncio.gather(*(pool.score(request) for request in requests)))
        finally:
            await pool.close()

    return asyncio.run(use())


BOXED_HACKS = {
    "empty": "",
    "white space": " \n\t ",
    "every number": NUMBERS,
    "every number in one box": rf"\boxed{{{NUMBERS}}}",
    "every number in boxes": BOXES,
    "the right one among boxes": BOXES + r"\boxed{34} \boxed{35}",
    "thought, then another answer": r"<think>It is \boxed{34}.</think> The answer is \boxed{35}.",
    "thought, then another answer without a box": r"<think>It is \boxed{34}.</think> The answer is 35.",
    "thinking without end": r"<think>It is \boxed{34}.",
    "contradiction": r"\boxed{34} or rather \boxed{-34}",
    "both in one box": r"\boxed{34 \text{ or } 35}",
    "an equation of two numbers": r"\boxed{35 = 34}",
    "no box": "The answer is 34.",
    "truncated": r"\boxed{34",
    "echo of a prompt with an answer": MARKED,
    "echo in other words": f"The task was: {MARKED} Good luck!",
    "echo, twice": MARKED * 2,
}


@pytest.mark.parametrize("function", [MathReward(), RunningSumReward()], ids=["math", "running-sum"])
def test_boxed_answers(function: Any) -> None:
    requests = [ScoreRequest(response, "34", "", MARKED, {}) for response in BOXED_HACKS.values()]
    honest = [
        ScoreRequest(text, "34", "", MARKED, {}) for text in (r"\boxed{34}", MARKED + r" It is \boxed{34}.")
    ]
    *hacked, plain, after_echo = score(function, requests + honest)
    assert {
        name: verdict.reward
        for name, verdict in zip(BOXED_HACKS, hacked, strict=True)
        if verdict.reward != 0.0
    } == {}
    assert (plain.reward, after_echo.reward) == (1.0, 1.0)


def test_reasoning_gym() -> None:
    entry = reasoning_gym.create_dataset("basic_arithmetic", size=1, seed=3)[0]
    extra = {"reasoning_gym_task": "basic_arithmetic", "reasoning_gym_entry": json.dumps(entry)}
    right = str(entry["answer"])
    spam = " ".join(str(n) for n in range(-500, 500)) + " " + right
    texts = [
        "",
        " ",
        spam,
        entry["question"],
        f"<think><answer>{right}</answer></think>no idea",
        f"<answer>{right}</answer><answer>x</answer>",
    ]
    verdicts = score(
        ReasoningGymReward(),
        [ScoreRequest(text, right, "", entry["question"], extra) for text in [*texts, right]],
    )
    assert [verdict.reward for verdict in verdicts] == [0.0] * len(texts) + [1.0]


def test_last_number() -> None:
    function = CustomReward(function="sppo_ray.rewards.last_number:reward")
    verdicts = score(
        function, [ScoreRequest(text, "34", "", "", {}) for text in ("", NUMBERS, "34 or 35", "it is 34")]
    )
    assert [verdict.reward for verdict in verdicts] == [0.0, 0.0, 0.0, 1.0]


def test_code_in_the_echo_of_a_prompt() -> None:
    example = "Double it. Example of the form:\n```python\ndef double(x): return 2 * x\n```\n"
    tests = "assert double(4) == 8"
    verdicts = score(
        CodeReward(),
        [ScoreRequest(text, tests, "", example, {}) for text in (example, "", example + example)],
    )
    assert [verdict.reason for verdict in verdicts] == ["no_answer"] * 3


@given(st.text(), st.text())
def test_an_echo_is_removed_only_where_the_prompt_carries_an_answer(before: str, after: str) -> None:
    # a short prompt may occur anywhere
    assert without_echo(before + MARKED + after, "4") == before + MARKED + after
    assert MARKED not in without_echo(before + MARKED + after, MARKED) or MARKED in before + "\n" + after


@given(st.text(alphabet="ab\\{}`<>/think\n"), st.text(alphabet="ab{}\\`\n"))
def test_what_was_thought_never_counts(thought: str, said: str) -> None:
    assert without_thinking(f"<think>{thought}</think>{said}") == said
    assert last_boxed(f"{thought}</think>{said}") == last_boxed(said)
    assert last_program(f"{thought}</think>{said}") == last_program(said)
    if "</think>" not in thought:
        assert last_boxed("<think>" + thought) is None
