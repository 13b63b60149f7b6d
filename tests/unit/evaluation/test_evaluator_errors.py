"""An evaluation whose verifier fails on many responses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sppo_ray.errors import UserError
from sppo_ray.evaluation.sampler import Evaluator
from sppo_ray.types import SamplingSettings, ScoreRequest, Verdict
from tests.unit.fakes import FakeFleet, prompt


class PartlyFailing:
    """A fake that cannot score the first `failures` responses."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        return [self.judge() for _ in requests]

    def judge(self) -> Verdict:
        self.left -= 1
        if self.left >= 0:
            return Verdict(None, "error: KeyError: 'x' (mine.py, line 2)", 0.1)
        return Verdict(1.0, "correct", 0.1)


@pytest.mark.parametrize(
    ("failures", "step", "is_stopped"),
    [(1, 0, False), (3, 0, True), (3, 5, False), (4, 5, True)],
)
def test_an_evaluation_with_many_errors(failures: int, step: int, is_stopped: bool) -> None:
    evaluator = Evaluator(
        {"held-out": [prompt(0), prompt(1)]},
        fleet=FakeFleet(),
        critic=None,
        reward_client=PartlyFailing(failures),
        decode=lambda rows: ["text"] * len(rows),
        sampling=SamplingSettings(1.0, 4, (0,)),
        samples_per_prompt=2,
        seed=1,
        max_error_rate=0.5,
    )
    if not is_stopped:
        assert asyncio.run(evaluator.evaluate(step, step)).overall.reward_errors == failures
        return
    told = f"at step {step}: the verifier failed on {failures} of 4 .* line 2.*: correct what fails"
    with pytest.raises(UserError, match=told):
        asyncio.run(evaluator.evaluate(step, step))
