"""Converts the output of a critic's head to a value.

The output is a logit after training by binary cross-entropy, and the value itself after training by
squared error. An exported critic records its loss in config.json, as `critic_loss` and
`critic_reads`. This module does not import torch, because the driver uses it.
"""

from __future__ import annotations

import math
import sys
from typing import Literal

from sppo_ray.types import PromptValue

CriticLoss = Literal["bce", "mse"]
CriticReads = Literal["prompt", "prompt and response"]


def prompt_value(output: float, loss: CriticLoss, critic_version: int) -> PromptValue:
    """Convert the head's output at a prompt's last token to a PromptValue.

    After squared error, value_logit and value are both the output.
    """
    return PromptValue(output, sigmoid(output) if loss == "bce" else output, critic_version)


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))


def logit(probability: float) -> float:
    """Inverse of `sigmoid`. It is finite also for 0 and 1, to which large logits round."""
    inside = min(max(probability, sys.float_info.min), 1.0 - sys.float_info.epsilon / 2)
    return math.log(inside) - math.log1p(-inside)
