"""The sections `loop`, `eval` and `checkpoint`: how long a run goes on, and what it does every so many steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo_ray.settings import PositiveInt, Settings


class LoopSettings(Settings):
    steps: PositiveInt = 100
    budget_s: Annotated[float, Field(gt=0)] | None = None
    """End after the step in which so many seconds of training are over (evaluations and checkpoints not counted), even if
    steps are left."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Policy versions that a sample may lie behind the learner. 0 = synchronous; on CPUs, with minibatch_order dispatch,
    reproducible bit for bit."""
    minibatch_order: Literal["dispatch", "finish"] = "dispatch"
    """What a step's minibatches are made of. dispatch = the prompts in their (random) order; reproducible with any number
    of rollout workers. finish = the next samples that finish: the first update starts earlier, but short responses then
    come first and long ones last, and a minibatch is no fair sample of the prompts (docs/architecture.md)."""


class EvalSettings(Settings):
    every: Annotated[int, Field(ge=0)] = 10
    """Steps between evaluations; 0 = only at the start and the end."""
    every_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds of training between evaluations, in place of `every`; for comparisons at equal time."""
    prompts: PositiveInt | None = None
    """First so many prompts of each held-out set; null = all."""
    samples_per_prompt: PositiveInt = 1
    """k of avg@k, pass@k and maj@k."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """null = as in training."""
    at_start: bool = True

    @model_validator(mode="after")
    def _samples_differ(self) -> EvalSettings:
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"at temperature 0 the {self.samples_per_prompt} samples of a prompt are one and the same response: set "
                "samples_per_prompt to 1, or the temperature above 0"
            )
        return self


class CheckpointSettings(Settings):
    every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0 = only at the end, so that a run whose learner is lost begins anew."""
    keep: PositiveInt = 2
    export: bool = True
    """Write policy and critic as plain Transformers checkpoints at the end."""
