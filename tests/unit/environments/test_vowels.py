"""The vowels task: its true preference by hand, its prompts, and what its pairs prefer."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from sppo_ray.environments import vowels
from sppo_ray.models import tiny
from sppo_ray.models.vowels import (
    RewardModelStart,
    _new_classifier,
    build_vowels_reward,
    draw_pair,
    pair_loss,
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("aeioua", 1.0),
        ("aab", 1 / 3),  # 2/3 x 3/6
        ("aaaaaabb", 9 / 16),  # 6/8 x 6/8
        ("a" * 12, 0.5),
        ("", 0.0),
        ("xyz", 0.0),
    ],
)
def test_the_preference(response: str, expected: float) -> None:
    assert vowels.preference(response) == pytest.approx(expected)
    assert vowels.reward(response, "", {}) == pytest.approx(expected)


def test_prompts_follow_from_their_seed_and_held_out_ones_are_others() -> None:
    prompts = {seed: [vowels.generate_prompt(i, seed=seed) for i in range(200)] for seed in (0, 1_000_000)}
    assert prompts[0] == [vowels.generate_prompt(i, seed=0) for i in range(200)]
    assert not set(prompts[0]) & set(prompts[1_000_000])
    assert all(2 <= len(prompt) - 1 <= 5 and prompt[-1] == "=" for prompt in prompts[0])


def test_pairs_prefer_what_is_truly_better() -> None:
    rng = random.Random(0)
    pairs = [draw_pair(rng, any_kind=True) for _ in range(2000)]
    gaps = [vowels.preference(chosen) - vowels.preference(other) for _, chosen, other in pairs]
    clear = [gap > 0 for gap in gaps if abs(gap) > 0.2]
    # at a gap of 0.2 the better one is chosen with probability sigmoid(10 x 0.2) = 0.88
    assert sum(clear) / len(clear) > 0.88
    # of base responses the longer one is better: what a weak reward model learns
    base = [draw_pair(rng, any_kind=False) for _ in range(2000)]
    longer = [len(chosen) > len(other) for _, chosen, other in base if len(chosen) != len(other)]
    assert sum(longer) / len(longer) > 0.6


def test_the_loss_of_pairs_by_hand() -> None:
    tokenizer = tiny.character_tokenizer()
    model = _new_classifier(tokenizer, 0).eval()
    torch.nn.init.normal_(model.score.weight)
    pairs = [("12=", "abd", "xbcca"), ("345=", "e", "io")]
    losses = []
    for prompt, *both in pairs:
        rows = tokenizer([tiny.BOS + prompt + response for response in both])["input_ids"]
        with torch.no_grad():
            chosen, rejected = (model(input_ids=torch.tensor([row])).logits.item() for row in rows)
        losses.append(math.log1p(math.exp(rejected - chosen)) + 0.01 * (chosen + rejected) ** 2)
    assert pair_loss(model, tokenizer, pairs).item() == pytest.approx(sum(losses) / 2, abs=1e-5)


def test_a_short_start_gives_the_same_bytes(tmp_path: Path) -> None:
    settings = RewardModelStart(steps=2, batch_size=4)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_vowels_reward(tmp_path / name, settings, lambda line: None)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
