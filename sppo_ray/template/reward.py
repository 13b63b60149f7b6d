"""The reward of a response, a number from 0 to 1."""

import re


def reward(response: str, ground_truth: str, extra: dict) -> float:
    """1 for the right number in the last box, else 0. `extra` has the row's other columns."""
    boxes = re.findall(r"\\boxed\{(\d+)\}", response)
    return float(bool(boxes) and int(boxes[-1]) == int(ground_truth))
