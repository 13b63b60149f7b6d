"""docs/settings.md is generated from the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_ray.config.reference import named, reference
from sppo_ray.errors import UserError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: sppo-ray settings > docs/settings.md"


def test_it_names_types_defaults_and_meaning() -> None:
    page = reference()
    clip = "- `clip_low` (float; default `0.2`): Ratios below 1 - clip_low are clipped. Only with loss null."
    assert clip in page
    assert "- `importance_cap` (float or null; default `null`)" in page
    assert "- `path` (str; required): A file, a directory of files, or a glob." in page
    # data.held_out takes the same sources
    types = (
        "running-sum, register-machine, vowels, guess-number, product, environment, parquet, jsonl, "
        "hf-disk, hf or reasoning-gym"
    )
    assert f"As data.train: type {types}." in page


def test_a_word_selects_sections_types_and_settings() -> None:
    assert named("rollout.workers").startswith("## rollout\n\n- `workers` (int; default `1`)")
    assert named("rollout.workers").count("\n- ") == 1
    assert named("grpo").startswith("## algorithm (type: grpo)\n\nGRPO: ")
    assert "## algorithm (type: ppo).kl\n" in named("algorithm.kl")
    assert "clip_low" not in named("algorithm.kl")
    with pytest.raises(UserError, match="no setting has 'quux' in its name"):
        named("quux")
