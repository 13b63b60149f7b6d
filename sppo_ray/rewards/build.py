"""Builds the scorer that the settings choose.

    build_scorer(settings, ask, keys) --> Scorer --score_all--> Verdict per response

A scorer runs in one event loop: that of the reward actor, or of `sppo-ray score`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from sppo_ray.config import JudgeReward, ModelReward, ProductReward, RewardSettings, RoutedReward, SumReward
from sppo_ray.errors import UserError
from sppo_ray.rewards.combined import CombinedScorer, RoutedScorer, product, weighted_mean
from sppo_ray.rewards.judge import JudgeScorer
from sppo_ray.rewards.model import ModelScorer
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.rewards.scorer import Ask, Scorer


def build_scorer(settings: RewardSettings, ask: Ask, keys: Mapping[str, SecretStr]) -> Scorer:
    """Build the scorer of `reward.function`. `ask` reaches the reward models; `keys` are those of
    judges, by environment variable (`judge_keys`).
    """

    def build(function: Any) -> Scorer:
        if isinstance(function, ModelReward):
            return ModelScorer(function, lambda conversations: ask(function, conversations))
        if isinstance(function, JudgeReward):
            return JudgeScorer(function, keys.get(function.key_variable or ""))
        if isinstance(function, SumReward):
            return CombinedScorer(all_of(function.parts), weighted_mean(function))
        if isinstance(function, ProductReward):
            return CombinedScorer(all_of(function.parts), product(function))
        if isinstance(function, RoutedReward):
            return RoutedScorer(function, all_of(function.routes))
        return VerifierPool(settings.model_copy(update={"function": function}))

    def all_of(parts: Sequence[Any]) -> dict[str, Scorer]:
        return {part.name: build(part.function) for part in parts}

    return build(settings.function)


def judge_keys(settings: RewardSettings) -> dict[str, SecretStr]:
    """Read the keys of the judges from the environment. Raises UserError for a missing one."""
    names = {judge.key_variable for judge in settings.judges if judge.key_variable is not None}
    for name in sorted(names):
        if not os.environ.get(name):
            raise UserError(
                f"the key of the judge is to be in the environment variable {name}, which is not set: set it "
                "where the run starts, or correct key_variable"
            )
    return {name: SecretStr(os.environ[name]) for name in names}
