"""The sections `learner`, `critic` and `reference`: a model each, with its optimizer and the processes that hold it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo_ray.settings import PositiveInt, Probability, Settings

Dtype = Literal["float32", "bfloat16"]


class OptimizerSettings(Settings):
    """AdamW and its schedule. Steps of the schedule are optimizer steps (minibatches)."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Global gradient norm bound; null = no clipping."""
    schedule: Literal["constant", "linear"] = "constant"
    final_lr_fraction: Probability = 0.1
    """linear: the learning rate falls in a straight line to this fraction of lr at the last of the updates that the run has room
    for. A minibatch without samples (dropped by dynamic sampling, or none of it scored) makes no update, so that such a run ends
    above it; one that is skipped for a gradient that is not finite counts."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0


class ModelSettings(Settings):
    model: str
    """A Transformers checkpoint directory, or `builtin:NAME` for one that the package makes (sppo-ray prepare)."""
    dtype: Dtype = "float32"
    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"
    optimizer: OptimizerSettings = OptimizerSettings()
    ranks: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    offload_optimizer: bool = False
    gradient_checkpointing: bool = False
    max_tokens_per_microbatch: PositiveInt = 8192
    """Padded tokens of one forward on one rank; gradient accumulation follows from it."""
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """A rank that does not answer one call (an update, a checkpoint) for so long is taken for dead, though it answers probes."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> ModelSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs a partitioned optimizer: set zero_stage to 1, 2 or 3, or turn it off")
        return self


class LearnerSettings(ModelSettings):
    """The policy and its optimizer."""


class CriticSettings(ModelSettings):
    """The value model. sppo's reads the prompt only: any Transformers causal LM, of any size and with any tokenizer, or an
    exported critic (or the directory of the run that exported it). ppo's reads responses too: the policy's vocabulary."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which only the critic learns."""


class ReferenceSettings(Settings):
    """The frozen starting policy of algorithm.kl: one copy for each learner rank, only when its coefficient is above 0."""

    dtype: Dtype = "float32"
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
