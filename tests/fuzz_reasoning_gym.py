"""Fuzzes the reasoning-gym verifier with answers that try to run code, and with wrong answers.

    python -m tests.fuzz_reasoning_gym --cases 1500

A grammar generates Python that tries to reach commands, files, keys and the scorer: alone, inside
an expected answer, or in a modified correct answer. Every tenth sample is correct and every tenth
is garbage. Then each task gets a right answer, and wrong ones made from it: words around it, a
changed sign or digit, two neighbours swapped, and the like. No file may be written, and no key may
be returned. Every answer must get a reward without an error: 1 if right, 0 for garbage, less than 1
if wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from sppo_ray.config import ReasoningGymReward, RewardSettings
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.rewards.reasoning_gym.evaluated import ANSWERS, ENTRIES
from sppo_ray.types import ScoreRequest, Verdict

KEY, SECRET = "KEY_OF_A_JUDGE", "sk-of-a-judge"
TASKS = sorted(
    [*ANSWERS, *ENTRIES, "complex_arithmetic", "jugs", "survo", "sokoban", "word_ladder", "codeio"]
)
DEADLINE_S = 5.0
MUTANTS_PER_TASK = 11

MANY_RIGHT = {
    "boxnet", "countdown", "cryptarithm", "decimal_arithmetic", "graph_color", "group_anagrams",
    "intermediate_integration", "jugs", "kakurasu", "knight_swap", "knights_knaves", "n_queens",
    "palindrome_generation", "palindrome_partitioning", "polynomial_equations",
    "polynomial_multiplication", "power_function", "prime_factorization", "propositional_logic",
    "puzzle24", "quantum_lock", "rubiks_cube", "rush_hour", "shortest_path", "simple_integration",
    "sokoban", "time_intervals", "tower_of_hanoi", "word_ladder"
}  # fmt: skip
"""Tasks where a right answer may stay right when a piece of it changes."""

SOLVED: dict[str, tuple[dict[str, Any], str]] = {
    "boxnet": (
        {"initial_state": {"0.5_0.5": ["box_red"], "0.5_1.5": ["target_red"]}},
        '[{"Agent[0.5, 0.5]": "move(box_red, square[0.5, 1.5])"}, '
        '{"Agent[0.5, 1.5]": "move(box_red, target_red)"}]',
    ),
    "rush_hour": ({"board_config": "oooooooooooBAAoooBoooooooooooooooooo"}, "B+2 A+4"),
}
"""For each task whose entries carry no answer at all: the metadata of one, and an answer."""


@dataclass(frozen=True)
class Case:
    """An answer to an entry of a task; `due` is the reward that it must get, None = any, and
    `is_wrong` allows any reward below 1.
    """

    task: str
    answer: str
    entry: dict[str, Any]
    due: float | None
    is_wrong: bool = False


def is_unsolved(entry: dict[str, Any]) -> bool:
    """Whether SymPy has left an integral in its solution, which is worth nothing then."""
    return "Integral(" in str(entry["answer"])


def draw_cases(number: int, *, seed: int, canary: Path) -> list[Case]:
    rng = random.Random(seed)
    entries = [
        (task, entry)
        for task in TASKS
        for entry in reasoning_gym.create_dataset(task, size=3, seed=seed)
        if not is_unsolved(entry)
    ]
    return [_draw_case(rng, index, *rng.choice(entries), canary) for index in range(number)]


def _draw_case(rng: random.Random, index: int, task: str, entry: dict[str, Any], canary: Path) -> Case:
    right = str(entry["answer"])
    if index % 10 == 0:
        return Case(task, right, entry, 1.0)
    if index % 10 == 1:
        return Case(task, "no answer of any kind", entry, 0.0)
    code = _code(rng, canary)
    return Case(
        task,
        rng.choice([code, *_wrapped(rng, code, right), _mutated(rng, right), _mutated(rng, code)]),
        entry,
        None,
    )


def draw_mutants(*, seed: int) -> list[Case]:
    """For every task: a right answer and wrong ones made from it."""
    rng = random.Random(seed)
    drawn = []
    for task in DATASETS:
        if task == "composite":  # needs datasets of its own
            continue
        entry, right = solved_entry(task, seed)
        mutants = sorted({one for one in wrong_answers(rng, task, right) if one.split() != right.split()})
        drawn.append(Case(task, right, entry, 1.0))
        drawn += [
            Case(task, text, entry, None, is_wrong=True)
            for text in rng.sample(mutants, min(MUTANTS_PER_TASK, len(mutants)))
        ]
    return drawn


def solved_entry(task: str, seed: int) -> tuple[dict[str, Any], str]:
    """An entry as a data source writes it, and a right answer."""
    if task in SOLVED:
        metadata, right = SOLVED[task]
        return {"question": "", "answer": None, "metadata": metadata}, right
    drawn = reasoning_gym.create_dataset(task, size=9, seed=seed)
    entry = json.loads(json.dumps(next(one for one in drawn if not is_unsolved(one))))
    metadata = entry["metadata"]
    match task:
        case "graph_color":
            return entry, json.dumps(metadata["possible_answer"])
        case "propositional_logic":
            return entry, metadata["example_answer"]
        case "rubiks_cube":
            return entry, metadata["example_correct_answer"]
    return entry, entry["answer"]


def wrong_answers(rng: random.Random, task: str, right: str) -> Iterator[str]:
    """Answers that are wrong for every right answer of the task; they may repeat."""
    yield from (f"{right} or 12345", f"{right}\nor 12345", f"12345 or {right}", f"{right}, 12345")
    yield from (f"{right} 12345", f"{right} {right}", f"{right}\n{right}", f"The answer is {right}")
    yield from (f"{right} maybe", f"{right} # not", f"{right}%", f"not {right}", f"It is not {right}")
    yield from (f"[{right}]", right.replace(" is ", " is not "))
    digits = [place for place, one in enumerate(right) if one.isascii() and one.isdigit()]
    if not re.match(r"0[.0x]*\b", right):  # -0 is 0
        yield f"-{right}"
    if task in MANY_RIGHT:
        return
    # the sign of each number but 0
    yield re.sub(r"(?<![-\w.])(?=[0-9.]*[1-9])(?=[0-9])", "-", right)
    for place in rng.sample(digits, min(3, len(digits))):
        other = str((int(right[place]) + rng.choice((1, 9))) % 10)
        yield right[:place] + other + right[place + 1 :]
    for separator in (", ", ",", "\n", " "):
        parts = right.split(separator)
        place = rng.randrange(len(parts))
        before, after = parts[:place], parts[place + 1 :]
        if parts[-1] != parts[0]:
            yield separator.join([parts[-1], *parts[1:-1], parts[0]])
        if len(parts) > 1:
            yield separator.join(before + after)
            yield separator.join([*before, parts[place], parts[place], *after])


def _code(rng: random.Random, canary: Path) -> str:
    module = rng.choice(["os", "pathlib", "builtins", "sys", "subprocess"])
    reach = rng.choice(
        [
            f"__import__('{module}')",
            "().__class__.__base__.__subclasses__()",
            "self.score_answer.__globals__['__builtins__']['__import__']('os')",
            "entry.__class__.__mro__[1].__subclasses__()",
            "Integer.__init__.__globals__",
            "(lambda: 0).__globals__",
            "getattr(x, '__class__')",
        ]
    )
    act = rng.choice(
        [
            f".system('touch {canary}')",
            f".Path('{canary}').write_text('x')",
            f".exec(\"open('{canary}', 'w')\")",
            f".environ['{KEY}']",
            ".modules['sppo_ray.rewards.reasoning_gym.verifier']._score_function.cache_clear()",
            f".run(['touch', '{canary}'])",
            "",
        ]
    )
    alone = [
        f"eval(\"__import__('os').system('touch {canary}')\")",
        f"exec(\"import os; os.system('touch {canary}')\")",
        f"sympify(\"__import__('os').system('touch {canary}')\")",
        "oracle_answer", "valid_solutions[0]", "entry['answer']", "metadata", "9**9**9", "9" * 5000,
        "(" * 150 + ")" * 150,
        "[" * 3000, "Lambda(x, x)(1)", "Symbol('x').__class__", "print(1)", "breakpoint()", "input()",
        "-" * 3000 + "1", "1" + "+1" * 2000,
    ]  # fmt: skip
    return rng.choice([reach + act, reach + act, rng.choice(alone)])


def _wrapped(rng: random.Random, code: str, right: str) -> Iterator[str]:
    yield from (
        f"[{code}]",
        f"[[{code}]]",
        f"({code}, {right!r})",
        f"{right} + {code}",
        f"({right})*({code})",
        f"sin({code})",
    )
    yield from (
        f"[x for x in [{code}]]",
        f"{code} or {right!r}",
        f"f'{{{code}}}'",
        f"{right}**{code}",
        f"exp({code}) + C",
    )
    cut = rng.randrange(len(right) + 1)
    yield right[:cut] + code + right[cut:]


def _mutated(rng: random.Random, text: str) -> str:
    characters = list(text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(characters) + 1)
        characters[place : place + rng.randint(0, 2)] = rng.choice(
            ["(", ")", "[", "]", "'", "**", "__", ".", ",", "9", "x", "\n", "\\", "\x00", "é"]
        )
    return "".join(characters)


async def score_cases(drawn: Sequence[Case]) -> tuple[list[Verdict], int]:
    """The verdicts, and how many answers made a verifier fail."""
    pool = VerifierPool(
        RewardSettings(function=ReasoningGymReward(), processes=2, deadline_s=DEADLINE_S, memory_mib=1024)
    )
    try:
        verdicts = await asyncio.gather(*(pool.score(_request(case)) for case in drawn))
        return list(verdicts), pool.counters.wrong_by_failure
    finally:
        await pool.close()


def _request(case: Case) -> ScoreRequest:
    extra = {"reasoning_gym_task": case.task, "reasoning_gym_entry": json.dumps(case.entry)}
    return ScoreRequest(f"<answer>{case.answer}</answer>", "", "", "", extra)


def find_faults(drawn: Sequence[Case], verdicts: Sequence[Verdict], canary: Path) -> list[str]:
    """What breaks a promise."""
    faults = ["the canary was touched"] if canary.exists() else []
    for case, verdict in zip(drawn, verdicts, strict=True):
        told = f"{verdict.reason} {verdict.answer if SECRET not in case.answer else ''}"
        is_undue = case.due is not None and verdict.reward != case.due
        is_undue |= case.is_wrong and verdict.reward == 1.0
        if verdict.is_error or SECRET in told or is_undue:
            faults.append(f"{case.task} {case.answer[:200]!r} {case.due}: {verdict}")
    return faults


def run(number: int, seed: int) -> int:
    """Draw, score, tell; 1 when there are faults."""
    os.environ[KEY] = SECRET
    with tempfile.TemporaryDirectory() as place:
        canary = Path(place) / "canary"
        drawn = draw_cases(number, seed=seed, canary=canary) + draw_mutants(seed=seed)
        verdicts, failures = asyncio.run(score_cases(drawn))
        faults = find_faults(drawn, verdicts, canary)
    print(f"{len(drawn)} answers to reasoning-gym: {failures} made a scorer fail, {len(faults)} faults")
    for fault in faults:
        print(fault.encode("ascii", "backslashreplace").decode())
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return run(options.cases, options.seed)


if __name__ == "__main__":
    sys.exit(main())
