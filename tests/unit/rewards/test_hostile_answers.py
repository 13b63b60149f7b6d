"""The corpus of hostile answers (tests/hostile_rewards.py) and fuzzed ones, through real verifier
processes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from sppo_ray.config import MathReward, RewardSettings
from sppo_ray.rewards.math import answer
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict
from tests.fuzz_rewards import DEADLINE_S, Case, draw_cases, find_faults, score_cases
from tests.hostile_rewards import FAMILIES, FILE, cases

MARGIN_S = 3.0
"""Beside the deadline: replacing a process, the sample's own work, and a machine that does other
things.
"""
WAVE = 2  # attacks at a time, as many as there are processes

CORPUS = cases()
INNOCENT = ScoreRequest(r"so \boxed{34.0}", "34", "", "", {})


def request(case: dict[str, Any]) -> ScoreRequest:
    return ScoreRequest(case["response"], case["truth"], "", "", {})


def name_of(case: dict[str, Any]) -> str:
    return (
        f"{case['family']}: {case['response'][:80]!r} ({len(case['response'])} characters) against "
        f"{case['truth'][:40]!r}"
    )


def is_as_expected(verdict: Verdict, expect: object) -> bool:
    if expect == "any":
        return verdict.reward in (0.0, 1.0, None)
    return verdict.reward in (0.0, None) if expect == "not 1" else verdict.reward == expect


async def timed(pool: VerifierPool, one: ScoreRequest) -> tuple[Verdict, float]:
    started = time.monotonic()
    return await pool.score(one), time.monotonic() - started


def attack(corpus: Sequence[dict[str, Any]], deadline_s: float) -> None:
    """Waves of attacks, each with an innocent sample beside it; all verdicts, times and counts are
    checked.
    """

    async def use() -> None:
        pool = VerifierPool(
            RewardSettings(function=MathReward(), processes=2, deadline_s=deadline_s, memory_mib=1024)
        )
        await pool.ready()
        try:
            errors = 0
            for start in range(0, len(corpus), WAVE):
                wave = corpus[start : start + WAVE]
                *attacks, innocent = await asyncio.gather(
                    *(timed(pool, request(one)) for one in wave), timed(pool, INNOCENT)
                )
                beside = f"{innocent} beside {[name_of(one) for one in wave]}"
                assert innocent[0].reward == 1.0 and innocent[1] < deadline_s + MARGIN_S, beside
                for case, (verdict, seconds) in zip(wave, attacks, strict=True):
                    assert is_as_expected(verdict, case["expect"]), f"{name_of(case)}: {verdict}"
                    assert verdict.is_error == verdict.reason.startswith("error: "), name_of(case)
                    assert verdict.seconds < deadline_s + MARGIN_S, name_of(case)
                    # it may have waited for its neighbour
                    assert seconds < 2 * (deadline_s + MARGIN_S), name_of(case)
                    errors += verdict.is_error
            assert pool.counters.errors == errors and pool.counters.scored == len(corpus) + -(
                -len(corpus) // WAVE
            )
        finally:
            await pool.close()

    asyncio.run(use())


def test_the_corpus_is_what_its_script_makes() -> None:
    assert len(CORPUS) >= 400 and len({name_of(case) for case in CORPUS}) > 0.9 * len(CORPUS)
    assert [case["family"] for case in CORPUS] == [
        family for family, make in FAMILIES.items() for _ in make()
    ]
    made = json.loads(json.dumps([case["parts"] for make in FAMILIES.values() for case in make()]))
    assert [case["parts"] for case in CORPUS] == made, f"run it again: {FILE}"


def test_what_must_be_decided_is_decided() -> None:
    attack([case for case in CORPUS if case["expect"] in (0, 1)], 15.0)


def test_every_third_attack_is_survived() -> None:
    """The whole corpus runs among the slow tests."""
    attack([case for case in CORPUS if case["expect"] not in (0, 1)][::3], 0.7)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_attack_is_survived() -> None:
    attack([case for case in CORPUS if case["expect"] not in (0, 1)], 2.0)


def test_reading_the_answer_of_an_attack_neither_fails_nor_takes_long() -> None:
    """Of those below a megabyte; with the longer ones it happens in the verifier processes, under
    the deadline.
    """
    slowest = 0.0
    for case in CORPUS:
        if len(case["response"]) < 1_000_000:
            started = time.process_time()
            answer(case["response"])
            slowest = max(slowest, time.process_time() - started)
    assert slowest < 1.0


def test_fuzzed_answers_are_survived() -> None:
    drawn = draw_cases(150, seed=0)
    faults = find_faults(drawn, asyncio.run(score_cases(drawn)))
    assert not faults, faults[:5]


def test_the_fuzzer_finds_faults() -> None:
    case = Case(r"\boxed{34}", "34", 1.0)
    silent_zero, slow = Verdict(0.0, "wrong", 0.1), Verdict(None, "error: timeout", DEADLINE_S + 60.0)
    assert len(find_faults([case, case], [silent_zero, slow])) == 2
    # an error that does not say so
    assert len(find_faults([case], [Verdict(None, "wrong", 0.1)])) == 1
    assert find_faults([case], [Verdict(1.0, "correct", 0.1)]) == []
