"""Reward functions that ask a model: a reward model of this run (`type: model`), or a judge behind
an API (`type: judge`).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Union
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from sppo_ray.config.devices import BY_DEVICE, ByDevice
from sppo_ray.config.models import Dtype
from sppo_ray.settings import PositiveInt, Settings


class SigmoidTransform(Settings):
    """reward = sigmoid((score - center) / scale)."""

    type: Literal["sigmoid"] = "sigmoid"
    center: float = 0.0
    """The score whose reward is 0.5."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """The larger, the flatter."""


class AffineTransform(Settings):
    """reward = (score - low) / (high - low), clipped to [0, 1]."""

    type: Literal["affine"] = "affine"
    low: float
    """The score whose reward is 0; a lower one has this reward, too."""
    high: float
    """The score whose reward is 1; a higher one has this reward, too."""

    @model_validator(mode="after")
    def _rises(self) -> AffineTransform:
        if self.low >= self.high:
            raise ValueError(
                f"low is {self.low:g} and high {self.high:g}: give the score of reward 0 first, then the one "
                "of reward 1"
            )
        return self


Transform = Annotated[Union[SigmoidTransform, AffineTransform], Field(discriminator="type")]


class ModelReward(Settings):
    """A reward model: a Transformers sequence classifier with one output, the score. It reads the
    prompt's messages and the response through its own tokenizer and chat template. `transform` maps
    a score to a reward in [0, 1]; with null the score itself is the reward, which a critic trained
    by binary cross-entropy (sppo; ppo with critic_loss bce) refuses.
    """

    type: Literal["model"] = "model"
    model: str
    """A Transformers checkpoint directory, or `builtin:NAME`."""
    transform: Transform | None = None
    gpus_per_replica: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 = on CPUs."""
    dtype: Annotated[Dtype, ByDevice] = BY_DEVICE
    """Of its weights and computations."""
    max_tokens_per_microbatch: PositiveInt = 8192
    """Tokens of one forward pass, padding included. A longer conversation is a reward error."""
    replicas: PositiveInt = 1
    """Copies of the model, each in its own process."""
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs that Ray reserves for a copy."""

    @property
    def range(self) -> tuple[float, float]:
        return (-math.inf, math.inf) if self.transform is None else (0.0, 1.0)


PLACEHOLDERS = ("prompt", "response", "ground_truth")
_NO_URL = "it is not the base URL of an API: write it as http://HOST:PORT/v1, without a query"


class JudgeReward(Settings):
    """A generative judge behind an OpenAI-compatible API. It reads the rubric and ends its reply in
    the line `Verdict: N`; the reward is N on the scale, from 0 to 1. A reply without that line is a
    reward error.
    """

    type: Literal["judge"] = "judge"
    url: str
    """The API's base URL, e.g. http://127.0.0.1:8000/v1."""
    model: str
    """The judge's name at the API."""
    rubric: str
    """What the judge is asked, with {response} and, if wanted, {prompt} and {ground_truth}. The
    form of the verdict is added to it.
    """
    scale: tuple[float, float] = (0.0, 10.0)
    """The verdicts of reward 0 and of reward 1. Any other verdict is a reward error."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable with the API's key, read where the run starts. null = no key."""
    max_tokens: PositiveInt = 1024
    """Of a reply."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of the judge's replies."""
    concurrency: PositiveInt = 16
    """Requests at the same time."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Limit of one request."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Further requests after a lost connection, a time-out, or HTTP 408, 429 and 5xx; 0.5, 1, 2,
    ... seconds apart, or as long as the server asks.
    """
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    """Limit of a sample with all its requests, and its wait for one of the `concurrency` places;
    after it the sample is a reward error.
    """
    cache: Annotated[int, Field(ge=0)] = 10_000
    """Verdicts that are kept; equal texts are judged once."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, given: str) -> str:
        parsed = urlsplit(given)
        if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.query or parsed.fragment:
            raise ValueError(_NO_URL)
        try:
            parsed.port  # noqa: B018 (it is read when asked for)
        except ValueError:
            raise ValueError(_NO_URL) from None
        if parsed.username or parsed.password:
            raise ValueError("it holds a user or password: give a key by key_variable")
        return given.rstrip("/")

    @field_validator("rubric")
    @classmethod
    def _has_a_response(cls, given: str) -> str:
        if "{response}" not in given:
            raise ValueError(
                "it does not show the response to the judge: write {response} where it belongs; {prompt} and "
                "{ground_truth} are replaced too"
            )
        return given

    @model_validator(mode="after")
    def _scale_rises(self) -> JudgeReward:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(
                f"scale is [{self.scale[0]:g}, {self.scale[1]:g}]: give the verdict of reward 0 first, then "
                "the one of reward 1"
            )
        return self

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc
