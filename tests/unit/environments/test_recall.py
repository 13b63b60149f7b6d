"""The recall task: its true preference by hand, its prompts, and what its pairs prefer."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from sppo_ray.environments import recall
from sppo_ray.models import tiny
from sppo_ray.models.recall import (
    RewardModelStart,
    _new_classifier,
    build_recall_reward,
    draw_pair,
    pair_loss,
    prefix_pairs,
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("abc", 1.0),
        ("cab", 1.0),
        ("ab", 0.8),  # 2 x 2 / (3 + 2)
        ("abb", 2 / 3),  # the second b is not matched: 2 x 2 / (3 + 3)
        ("abcx", 6 / 7),
        ("abcabc", 2 / 3),
        ("", 0.0),
        ("xyz", 0.0),
    ],
)
def test_the_preference_is_an_f1(response: str, expected: float) -> None:
    assert recall.preference("abc=", response) == pytest.approx(expected)
    assert recall.reward(response, "abc=", {}) == pytest.approx(expected)


def test_prompts_follow_from_their_seed_and_held_out_ones_are_others() -> None:
    prompts = {seed: [recall.generate_prompt(i, seed=seed) for i in range(200)] for seed in (0, 1_000_000)}
    assert prompts[0] == [recall.generate_prompt(i, seed=0) for i in range(200)]
    assert not set(prompts[0]) & set(prompts[1_000_000])
    for prompt in prompts[0]:
        assert 3 <= len(prompt) - 1 == len(set(prompt[:-1])) <= 8 and prompt[-1] == "="


def test_pairs_prefer_what_is_truly_better() -> None:
    rng = random.Random(0)
    pairs = [draw_pair(rng, any_kind=True) for _ in range(2000)]
    gaps = [recall.preference(p, chosen) - recall.preference(p, other) for p, chosen, other in pairs]
    clear = [gap > 0 for gap in gaps if abs(gap) > 0.2]
    # at a gap of 0.2 the better one is chosen with probability sigmoid(10 x 0.2) = 0.88
    assert sum(clear) / len(clear) > 0.88
    # a base response is longer where it is better: what the weak reward model learns
    base = [draw_pair(rng, any_kind=False) for _ in range(2000)]
    longer = [len(chosen) > len(other) for _, chosen, other in base if len(chosen) != len(other)]
    assert sum(longer) / len(longer) > 0.6


def test_prefixes_are_scored_as_texts_of_their_own() -> None:
    tokenizer = tiny.character_tokenizer()
    model = _new_classifier(tokenizer, 0).eval()
    torch.nn.init.normal_(model.score.weight)
    pairs = prefix_pairs("abc=", "abd", "xbcc", random.Random(0))
    # the whole responses, and their prefixes of 1 and 2 letters
    assert [{len(a), len(b)} for _, a, b in pairs] == [{3, 4}, {1}, {2}]
    alone = []
    for prompt, *both in pairs:
        texts = tokenizer([tiny.BOS + prompt + response for response in both])["input_ids"]
        with torch.no_grad():
            alone.append([model(input_ids=torch.tensor([row])).logits.item() for row in texts])
    expected = [math.log1p(math.exp(r - c)) + 0.01 * (c + r) ** 2 for c, r in alone]
    loss = pair_loss(model, tokenizer, pairs).item()
    assert loss == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_a_short_start_gives_the_same_bytes(tmp_path: Path) -> None:
    settings = RewardModelStart(steps=2, batch_size=4)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_recall_reward(tmp_path / name, settings, lambda line: None)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
