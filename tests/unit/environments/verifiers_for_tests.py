"""Environments of the package verifiers, for tests."""

from __future__ import annotations

from typing import Any

import verifiers as vf
from datasets import Dataset


class Guess(vf.MultiTurnEnv):
    """Find the number in the answer, by higher and lower."""

    async def env_response(self, messages: Any, state: Any, **more: Any) -> list[dict[str, str]]:
        guess, number = int(messages[-1].content), int(state["answer"])
        if guess == number:
            state["final_env_response"] = [{"role": "user", "content": "found"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if guess < number else "lower"}]


def found(completion: Any, answer: str) -> float:
    """1 when the last guess is right."""
    guesses = [message for message in completion if message["role"] == "assistant"]
    return float(guesses[-1]["content"] == answer)


def rows(*numbers: int) -> Dataset:
    return Dataset.from_list([{"question": f"Guess {n}?", "answer": str(n)} for n in numbers])


def load_environment(tools: bool = False) -> vf.Environment:
    rubric = vf.Rubric(funcs=[found])
    if tools:
        return vf.ToolEnv(tools=[add], dataset=rows(1), rubric=rubric)
    sets = {"dataset": rows(5, 9), "eval_dataset": rows(7)}
    return Guess(**sets, rubric=rubric, max_turns=3, system_prompt="Play.")


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b
