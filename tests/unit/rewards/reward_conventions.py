"""The same reward as other systems' users write it, for `test_reward_conventions`."""

from __future__ import annotations

import numpy as np


def verl(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "gsm8k" and extra_info["index"] == 7
    return 1.0 if str(ground_truth) in solution_str else 0.0


def verl_with_a_dict(solution_str, ground_truth, **kwargs):
    return {"score": float(kwargs["data_source"] == "gsm8k" and ground_truth in solution_str), "acc": 1}


def trl(prompts, completions, ground_truth, **kwargs):
    assert len(prompts) == len(completions) == len(kwargs["index"]) == 1 and "sum" in prompts[0]
    return [float(truth in text) for text, truth in zip(completions, ground_truth, strict=True)]


def trl_with_answers(completions, answer, **_):
    return [1.0 if a in c else 0.0 for c, a in zip(completions, answer, strict=True)]


def openrlhf(queries, prompts, labels):
    texts = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    return {"rewards": np.array([float(a in text) for a, text in zip(labels, texts, strict=True)])}


def in_numpy(response, ground_truth, extra):
    return np.float32(ground_truth in response)


def as_a_numpy_bool(response, ground_truth, extra):
    return np.bool_(ground_truth in response)


def two_parameters(response, truth):
    return 1.0


def raises(response, ground_truth, extra):
    return 1 / 0


def reads_only_numbers(response, ground_truth, extra):
    return float(int(response.split()[-1]) == int(ground_truth))


def fails_on_empty_responses(response, ground_truth, extra):
    return float(response.split()[-1] == ground_truth)


def fails_on_long_responses(response, ground_truth, extra):
    if len(response) > 200:
        raise ValueError("too long")
    return 0.0


def returns_text(response, ground_truth, extra):
    return "right"


def returns_seven(response, ground_truth, extra):
    return 7.0
