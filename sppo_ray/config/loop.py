"""The sections `loop`, `eval` and `checkpoint`: length of a run, and its evaluations and
checkpoints.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo_ray.settings import PositiveInt, Settings


class LoopSettings(Settings):
    steps: PositiveInt = 100
    """Steps of the run. A resumed run may have more or fewer."""
    budget_s: Annotated[float, Field(gt=0)] | None = None
    """End after the step that reaches this many seconds of training (without evaluations and
    checkpoints), even if steps are left.
    """
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Maximum number of policy versions between sample and learner. 0 = synchronous; on CPUs, with
    minibatch_order dispatch, reproducible bit for bit.
    """
    minibatch_order: Literal["dispatch", "finish"] = "dispatch"
    """How samples are assigned to minibatches. dispatch = in the (random) order of the prompts;
    reproducible with any number of rollout workers. finish = in the order in which samples finish:
    the first update starts earlier, but short responses come first, so a minibatch is not a fair
    sample of the prompts (docs/architecture.md).
    """


class EvalSettings(Settings):
    every: Annotated[int, Field(ge=0)] = 10
    """Steps between evaluations; 0 = only at the start and the end."""
    every_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds of training between evaluations, in place of `every`; for comparisons at equal
    time.
    """
    prompts: PositiveInt | None = None
    """Use only the first N prompts of each held-out set; null = all."""
    samples_per_prompt: PositiveInt = 1
    """k of avg@k, pass@k and maj@k."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """null = the temperature of training."""
    at_start: bool = True
    """Evaluate before the first step."""

    @model_validator(mode="after")
    def _samples_differ(self) -> EvalSettings:
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"at temperature 0 the {self.samples_per_prompt} samples of a prompt are one and the same "
                "response: set "
                "samples_per_prompt to 1, or the temperature above 0"
            )
        return self


class CheckpointSettings(Settings):
    every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0 = only at the end, so a run that loses its learner starts from
    the beginning.
    """
    keep: PositiveInt = 2
    """Newest checkpoints that stay on the disk."""
    export: bool = True
    """Write policy and critic as plain Transformers checkpoints at the end."""
