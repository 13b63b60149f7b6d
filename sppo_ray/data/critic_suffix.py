"""The text that only the critic reads after a prompt: its reference answer, or fields of `extra`.

A critic that knows the answer judges the difficulty of a prompt better. Its value stays a baseline
that leaves the gradient unbiased, because the text is fixed before the response is sampled. The
policy never reads it.
"""

from __future__ import annotations

import json

from sppo_ray.config.data import ROW_FIELD
from sppo_ray.errors import UserError
from sppo_ray.types import Example


def filled(suffix: str, example: Example) -> str:
    """Return `suffix` with each `{ground_truth}` and `{extra.NAME}` replaced by the example's.

    Text is used as it is, other values as JSON. Raises UserError naming the prompt and the field
    when the example has none.
    """
    return ROW_FIELD.sub(lambda found: _text(found.group(1), example), suffix)


def _text(name: str, example: Example) -> str:
    is_answer = name == "ground_truth"
    value = example.ground_truth if is_answer else example.extra.get(name.removeprefix("extra."))
    if value is None or value == "":
        raise UserError(
            f"prompt {example.id}: has no {name}, which the critic reads by data.critic_suffix: add it to "
            "the row, remove the row, or use a critic that reads only the prompt"
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
