"""Wrong programs under ordinary tests: 269 tests in the styles of public data sets, each with a
right program and several wrong ones.

An attack on the verifier found them. About 150 of the 1,069 wrong programs are still paid: where
the tests touch what a program returned (identity, types, operators of objects, exceptions), the
proxies of the tester differ from plain Python.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sppo_ray.config import CodeReward, RewardSettings
from sppo_ray.protocols import ScoreRequest
from sppo_ray.rewards.pool.pool import VerifierPool

ROWS = [json.loads(line) for line in Path(__file__).with_name("code_attacks.jsonl").open()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xfail(reason="the tester's proxies differ from plain Python", strict=True)
def test_no_wrong_program_is_paid() -> None:
    requests = [
        ScoreRequest(f"```python\n{program}\n```", row["tests"], "", "", row.get("extra", {}))
        for row in ROWS
        for program in row["wrong"]
    ]

    async def score() -> list[str]:
        settings = RewardSettings(function=CodeReward(timeout_s=4.0), processes=2, deadline_s=60.0)
        pool = VerifierPool(settings)
        try:
            verdicts = await pool.score_all(requests)
        finally:
            await pool.close()
        scored = zip(requests, verdicts, strict=True)
        return [request.response for request, verdict in scored if verdict.reward == 1.0]

    assert asyncio.run(score()) == []
