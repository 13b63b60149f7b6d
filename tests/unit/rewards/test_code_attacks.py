"""Wrong programs under ordinary tests: 269 tests in the styles of public data sets, each with a
right program and several wrong ones, 1,065 in all.

An attack on the verifier found them; the proxies of the tester alone let about 150 pass.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from sppo_ray.config import CodeReward, RewardSettings
from sppo_ray.protocols import ScoreRequest
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.types import Verdict

ROWS = [json.loads(line) for line in Path(__file__).with_name("code_attacks.jsonl").open()]
FEW = ROWS[::9]

# of 269: tests of types and identity of objects, fixtures, functions that judge each other
RIGHT_BUT_NOT_PAID = 27


def score(pairs: Iterable[tuple[dict, str]]) -> list[tuple[str, Verdict]]:
    requests = [
        ScoreRequest(f"```python\n{program}\n```", row["tests"], "", "", row.get("extra", {}))
        for row, program in pairs
    ]

    async def all_of_them() -> list[Verdict]:
        settings = RewardSettings(function=CodeReward(timeout_s=4.0), processes=2, deadline_s=60.0)
        pool = VerifierPool(settings)
        try:
            return await pool.score_all(requests)
        finally:
            await pool.close()

    verdicts = asyncio.run(all_of_them())
    return [(one.response, verdict) for one, verdict in zip(requests, verdicts, strict=True)]


def paid(pairs: Iterable[tuple[dict, str]]) -> list[str]:
    return [program for program, verdict in score(pairs) if verdict.reward == 1.0]


def test_no_wrong_program_of_some_tests_is_paid() -> None:
    assert paid((row, program) for row in FEW for program in row["wrong"]) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_wrong_program_is_paid() -> None:
    assert paid((row, program) for row in ROWS for program in row["wrong"]) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_program_without_a_verdict_has_tests_that_give_none_to_the_right_one() -> None:
    """No program escapes scoring."""
    rights = score((row, row["right"]) for row in ROWS)
    unfit = {id(row) for row, (_, verdict) in zip(ROWS, rights, strict=True) if verdict.reward is None}
    fit = [(row, program) for row in ROWS if id(row) not in unfit for program in row["wrong"]]
    assert [program for program, verdict in score(fit) if verdict.reward is None] == []
    assert sum(verdict.reward == 1.0 for _, verdict in rights) >= len(ROWS) - RIGHT_BUT_NOT_PAID
