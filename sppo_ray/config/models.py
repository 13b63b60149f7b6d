"""The sections `learner`, `critic` and `reference`: model, optimizer and processes of each."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sppo_ray.config.devices import BY_DEVICE, ByDevice
from sppo_ray.settings import PositiveInt, Probability, Settings

Dtype = Literal["float32", "bfloat16"]


def _null_if_auto(given: object) -> object:
    return None if given == "auto" else given


# validators run from the right
Attention = Annotated[Literal["sdpa", "flash_attention_2"], ByDevice, BeforeValidator(_null_if_auto)]


class OptimizerSettings(Settings):
    """AdamW and its schedule. Steps of the schedule are optimizer steps (minibatches)."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    """Learning rate: that of constant, the highest of linear."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon, added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Global gradient norm bound; null = no clipping."""
    schedule: Literal["constant", "linear"] = "constant"
    """constant = lr after the warm-up; linear = falls to final_lr_fraction of it."""
    final_lr_fraction: Probability = 0.1
    """linear: the learning rate falls linearly to this fraction of lr at the last update of a full
    run. A minibatch without samples (dropped by dynamic sampling, or none scored) makes no update,
    so such a run ends at a higher rate. An update skipped for a non-finite gradient counts.
    """
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps in which the learning rate rises linearly to lr."""


class LoraSettings(Settings):
    """Low-rank adapters (LoRA, arXiv 2106.09685): the model is frozen, and two small matrices
    beside each linear layer are trained, with the role's learning rate, which has to be about 10
    times as high as for a whole model. null (the default) trains the whole model.
    """

    rank: int = 16
    """Inner dimension of the two matrices."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapter's product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Only 0: the learner's log-probs have to equal the engine's."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers with an adapter, e.g. [q_proj, v_proj]; all-linear = every linear layer
    except the head.
    """

    @model_validator(mode="after")
    def _can_be_trained(self) -> LoraSettings:
        if self.rank < 1:
            raise ValueError(
                f"rank is {self.rank}, and an adapter has at least rank 1: set it to e.g. 16, or lora to "
                "null to train the whole model"
            )
        if self.dropout != 0.0:
            raise ValueError(
                f"dropout is {self.dropout:g}: it would make the learner's log-probs random and different "
                "from those of the engine, which serves the merged weights: set it to 0"
            )
        if not self.target_modules:
            raise ValueError("target_modules is empty: name layers, e.g. [q_proj, v_proj], or use all-linear")
        if heads := sorted({"lm_head", "score", "embed_tokens"}.intersection(self.target_modules)):
            raise ValueError(
                f"target_modules names {', '.join(heads)}: heads and embeddings take no adapter (the "
                "critic's head is trained as a whole): name linear layers, e.g. [q_proj, v_proj]"
            )
        return self


class ModelSettings(Settings):
    model: str
    """A Transformers checkpoint directory, `org/name` or `org/name@revision` of the Hugging Face
    hub, or `builtin:NAME` for one that the package makes (both listed in docs/tools.md).
    """
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    """0 = the ranks run on CPUs. A rank uses one GPU. It may share that GPU (0.5) if it is the only
    rank of its role.
    """
    dtype: Annotated[Dtype, ByDevice] = BY_DEVICE
    """In bfloat16 DeepSpeed keeps float32 master weights and accumulates gradients in float32."""
    attention: Attention = BY_DEVICE
    """Kernel of packed rows: flash_attention_2 = torch's own variable-length kernel, on GPUs in
    bfloat16; sdpa = scaled_dot_product_attention. "auto" is null.
    """
    optimizer: OptimizerSettings = OptimizerSettings()
    lora: LoraSettings | None = None
    """null = train the whole model."""
    ranks: PositiveInt = 1
    """Processes that train the model; each takes a share of every minibatch."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed's ZeRO stage: 1 = the ranks share the optimizer's state, 2 = also gradients, 3
    = also weights. In bfloat16, 0 becomes 2.
    """
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory. Needs zero_stage 1, 2 or 3."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    max_tokens_per_microbatch: PositiveInt = 8192
    """Tokens of one forward on one rank; determines gradient accumulation."""
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs that Ray reserves for a rank."""
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """Deadline of one call (an update, a checkpoint); a rank that exceeds it counts as dead even if
    it answers probes.
    """

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> ModelSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "offload_optimizer needs a partitioned optimizer: set zero_stage to 1, 2 or 3, or turn it off"
            )
        return self


class LearnerSettings(ModelSettings):
    """The policy and its optimizer."""


def _pattern(given: str) -> str:
    try:
        re.compile(given)
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error}): write e.g. self_attn") from None
    return given


class CriticSettings(ModelSettings):
    """The value model. For sppo it reads only the prompt: any Transformers causal LM of any size
    and tokenizer, an exported critic, or the directory of the run that exported it. For ppo and sao
    it also reads responses and needs the policy's vocabulary.
    """

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Initial steps in which only the critic learns."""
    updates_per_minibatch: PositiveInt = 1
    """Updates of the critic for each update of the policy, on the same minibatch (SAO: 2)."""
    frozen_parameters: Annotated[str, AfterValidator(_pattern)] | None = None
    """Regular expression. Parameters with a match anywhere in their name keep their starting
    values, e.g. self_attn; null = none. The head is always trained.
    """

    @model_validator(mode="after")
    def _adapters_freeze_by_themselves(self) -> CriticSettings:
        if self.frozen_parameters is not None and self.lora is not None:
            raise ValueError(
                "lora already freezes the whole model: name the trained layers in lora.target_modules, and "
                "set frozen_parameters to null"
            )
        return self


class ReferenceSettings(Settings):
    """The frozen starting policy of algorithm.kl: one copy for each learner rank, loaded only when
    the coefficient is above 0.
    """

    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    """At most 1; 0 = on CPUs."""
    dtype: Annotated[Dtype, ByDevice] = BY_DEVICE
    """Of its weights and computations."""
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs that Ray reserves for a copy."""
