"""The section `data`: sources of prompts, and the number of samples in a step and in an update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from sppo_ray.settings import PositiveInt, Settings


class RunningSumData(Settings):
    """The package's own task: add labelled numbers step by step
    (`sppo_ray.environments.running_sum`).
    """

    type: Literal["running-sum"] = "running-sum"
    name: str = "running-sum"
    size: PositiveInt = 100_000
    """Number of prompts. Prompt i is generated from (seed, i); short prompts repeat."""
    seed: Annotated[int, Field(ge=0)] = 0
    max_operands: Annotated[int, Field(ge=2, le=26)] = 8


class VowelsData(Settings):
    """The package's task of preferences: write vowels, neither too few nor too many
    (`sppo_ray.environments.vowels`).
    """

    type: Literal["vowels"] = "vowels"
    name: str = "vowels"
    size: PositiveInt = 100_000
    """Number of prompts. Prompt i is generated from (seed, i)."""
    seed: Annotated[int, Field(ge=0)] = 0


class ParquetData(Settings):
    """Parquet in the field's common format: data_source, prompt (chat messages or a string),
    reward_model.ground_truth, extra_info. Other columns are named by the keys.
    """

    type: Literal["parquet"] = "parquet"
    name: str | None = None
    """Overrides `data_source` in metrics when given."""
    path: str
    """A file, a directory of files, or a glob."""
    prompt_key: str = "prompt"
    ground_truth_key: str = "reward_model.ground_truth"
    """A dot separates a struct from its field."""


class JsonlData(Settings):
    """One JSON object a line, or one array of objects in a .json file: `prompt` (a string or chat
    messages) and `ground_truth` (keys configurable).
    """

    type: Literal["jsonl"] = "jsonl"
    name: str | None = None
    path: str
    prompt_key: str = "prompt"
    ground_truth_key: str = "ground_truth"


class HFDiskData(Settings):
    """A Hugging Face dataset written by `save_to_disk`."""

    type: Literal["hf-disk"] = "hf-disk"
    name: str | None = None
    path: str
    split: str | None = None
    prompt_key: str = "prompt"
    ground_truth_key: str = "ground_truth"


class ReasoningGymData(Settings):
    """A procedural task of the reasoning-gym package, scored by its own verifier."""

    type: Literal["reasoning-gym"] = "reasoning-gym"
    task: str
    size: PositiveInt = 10_000
    seed: Annotated[int, Field(ge=0)] = 0
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Passed to `reasoning_gym.create_dataset`."""

    @property
    def name(self) -> str:
        return f"reasoning-gym/{self.task}"


DataSource = Annotated[
    Union[RunningSumData, VowelsData, ParquetData, JsonlData, HFDiskData, ReasoningGymData],
    Field(discriminator="type"),
]


class CurriculumSettings(Settings):
    """Prefer prompts of uncertain outcome: draw without replacement in proportion to (V (1 - V)) **
    sharpness.
    """

    candidates: Annotated[int, Field(ge=2)] = 4
    """Prompts that the critic reads for each prompt that is trained on."""
    sharpness: Annotated[float, Field(gt=0)] = 1.0


class DataSettings(Settings):
    train: tuple[DataSource, ...]
    held_out: tuple[DataSource, ...] = ()
    """Evaluation sets; see held_out_overlap."""
    held_out_overlap: Literal["refuse", "drop", "allow"] = "refuse"
    """When a training prompt from a file is also held out: refuse = stop and name it; drop = leave
    it out of training and count it; allow = train on it. Procedural sources always leave it out.
    """
    prompts_per_step: PositiveInt = 256
    samples_per_prompt: PositiveInt = 1
    """N. sppo, ppo, remax and reinforce need one; grpo and rloo need 2 or more, as the baseline is
    the other samples.
    """
    minibatch_size: PositiveInt = 64
    """Samples per optimizer step, over all learner ranks."""
    max_prompt_tokens: PositiveInt = 1024
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """When a prompt is longer than max_prompt_tokens: refuse = stop and name it; drop = leave it
    out and count it. Prompts are never cut.
    """
    shuffle: bool = True
    curriculum: CurriculumSettings | None = None
    """Chooses the prompts of a step; null = all, in order. Needs a prompt critic (sppo)."""
    system_prompt: str | None = None
    """Added before messages that have no system message."""
    prompt_suffix: str | None = None
    """Appended to the last user message, e.g. how to mark the final answer."""

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def minibatches_per_step(self) -> int:
        return self.samples_per_step // self.minibatch_size

    @model_validator(mode="after")
    def _batches_divide(self) -> DataSettings:
        if not self.train:
            raise ValueError("train names no data source: give at least one")
        if self.samples_per_step % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} does not divide the {self.samples_per_step} samples "
                "of a step "
                "(prompts_per_step x samples_per_prompt): nearest that do are "
                f"{_near_divisors(self.samples_per_step, self.minibatch_size)}"
            )
        return self


def _near_divisors(total: int, near: int) -> str:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return ", ".join(str(d) for d in sorted(sorted(divisors, key=lambda d: abs(d - near))[:3]))
