"""docs/settings.md is generated from the settings."""

from __future__ import annotations

from pathlib import Path

from sppo_ray.config.reference import reference

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
