"""Training sources in given proportions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sppo_ray.config import DataSettings
from sppo_ray.config.loading import load_config
from sppo_ray.data.mixing import open_prompts
from sppo_ray.data.prompts import PromptEncoder
from sppo_ray.errors import UserError
from sppo_ray.models.tiny import byte_tokenizer


def write(path: Path, rows: int) -> str:
    path.write_text("".join(f'{{"prompt": "{path.stem}{n}", "ground_truth": "{n}"}}\n' for n in range(rows)))
    return str(path)


def settings(folder: Path, *weights: float | None) -> DataSettings:
    """Sources of 8, 80 and 800 rows, ten prompts a step."""
    train = [
        {"type": "jsonl", "path": write(folder / f"{name}.jsonl", rows), "weight": weight}
        for name, rows, weight in zip(("few", "some", "many"), (8, 80, 800), weights, strict=False)
    ]
    return DataSettings(train=train, prompts_per_step=10, minibatch_size=5)


def prompts(data: DataSettings, steps: int, first: int = 0) -> list[str]:
    tokenizer = byte_tokenizer()
    source = open_prompts(data, PromptEncoder(tokenizer, tokenizer, data), 1)
    return [prompt.id for step in range(first, first + steps) for prompt in source.cohort(step)]


def test_weights_decide_the_share_and_every_row_comes_once_an_epoch(tmp_path: Path) -> None:
    drawn = prompts(settings(tmp_path, 1, 1, 2), 40)  # 400 prompts: 100, 100, 200
    counts = Counter(id.split("/")[0] for id in drawn)
    assert all(abs(counts[name] - due) <= 2 for name, due in (("few", 100), ("some", 100), ("many", 200)))
    each = Counter(id for id in drawn if id.startswith("few/"))  # 100 of 8 rows: 12 or 13 times each
    assert len(each) == 8 and set(each.values()) <= {12, 13}
    assert max(Counter(id for id in drawn if id.startswith("many/")).values()) == 1
    # nowhere in long runs of one source: each window of 8 has 4 of the last, give or take one
    of_many = [id.startswith("many/") for id in drawn]
    assert all(3 <= sum(of_many[at : at + 8]) <= 5 for at in range(392))


def test_a_source_of_small_weight_is_left_out_of_some_steps(tmp_path: Path) -> None:
    """At a step that begins a new epoch of the 8 rows and takes none of them, too."""
    drawn = prompts(settings(tmp_path, 0.02, 0.08, 0.9), 200)
    counts = Counter(id.split("/")[0] for id in drawn)
    assert (counts.total(), counts["few"]) == (2000, pytest.approx(40, abs=1))


def test_a_step_follows_from_settings_and_seed(tmp_path: Path) -> None:
    data = settings(tmp_path, 0.3, 0.7)
    assert prompts(data, 1, first=7) == prompts(data, 8)[70:]


def test_without_weights_the_order_is_that_of_one_table(tmp_path: Path) -> None:
    # 880 of the 888 rows, none of them twice
    assert len(set(prompts(settings(tmp_path, None, None, None), 88))) == 880


def test_weights_are_for_all_sources_or_for_none(tmp_path: Path) -> None:
    sources = "[{type: running-sum, weight: 1}, {type: running-sum, seed: 2}]"
    with pytest.raises(UserError, match="data: train.1 has no weight, and others have"):
        load_config("quickstart", [f"--data.train={sources}"])


def test_repeated_prompts_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "p{n % 3}", "ground_truth": "1"}}\n' for n in range(10)))
    data = DataSettings(train=[{"type": "jsonl", "path": str(rows)}], prompts_per_step=2, minibatch_size=2)
    prompts(data, 1)
    assert "7 of 10 rows repeat the prompt of another" in caplog.text
