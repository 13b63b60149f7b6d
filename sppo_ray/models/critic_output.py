"""What the number of a critic's head means: a logit after binary cross-entropy, the value itself after squared error.

An exported critic carries both facts in its config.json, as `critic_loss` and `critic_reads`. No torch here: the driver uses it.
"""

from __future__ import annotations

import math
import sys
from typing import Literal

from sppo_ray.types import PromptValue

CriticLoss = Literal["bce", "mse"]
CriticReads = Literal["prompt", "prompt and response"]


def prompt_value(output: float, loss: CriticLoss, critic_version: int) -> PromptValue:
    """The head's output at a prompt's last token as a PromptValue; after squared error value_logit is the value too."""
    return PromptValue(output, sigmoid(output) if loss == "bce" else output, critic_version)


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))


def logit(probability: float) -> float:
    """The inverse of `sigmoid`; finite also for 0 and 1, to which large logits are rounded."""
    inside = min(max(probability, sys.float_info.min), 1.0 - sys.float_info.epsilon / 2)
    return math.log(inside) - math.log1p(-inside)
