"""The examples of docs/rewards.md for reward models, judges and combinations are run as they are
shown, except for places: the model's directory and the judge's address.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from sppo_ray.config import RewardSettings
from sppo_ray.rewards.build import build_scorer, judge_keys
from sppo_ray.rewards.judge import require_judge
from sppo_ray.rewards.local import LocalModels
from sppo_ray.types import ScoreRequest, Verdict
from tests.unit.models.test_reward_model import save
from tests.unit.rewards.fake_judge import KEY, running_judge

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
FUNCTIONS = """
def has_two_paragraphs(response, ground_truth, extra):
    return float("12" in response)
def shortness(response, ground_truth, extra):
    return 1 / len(response)
"""


def example(section: str, **places: str) -> RewardSettings:
    """The YAML block of a section, with some texts replaced."""
    block = PAGE.partition(f"\n## {section}\n")[2].partition("```yaml\n")[2].partition("```")[0]
    assert 0 < block.count("\n") < 40
    for old, new in places.items():
        assert old in block
        block = block.replace(old, new)
    return RewardSettings.model_validate(yaml.safe_load(block)["reward"])


def score(settings: RewardSettings, requests: list[ScoreRequest]) -> list[Verdict]:
    async def run() -> list[Verdict]:
        scorer = build_scorer(settings, LocalModels(), judge_keys(settings))
        try:
            return await scorer.score_all(requests)
        finally:
            await scorer.close()

    return asyncio.run(run())


def request(response: str, source: str = "", truth: str = "") -> ScoreRequest:
    return ScoreRequest(response, truth, source, "a7b5=", {})


def test_the_reward_model(tmp_path: Path) -> None:
    settings = example("A reward model", **{"models/reward": str(save(tmp_path))})
    (verdict,) = score(settings, [request("12")])
    assert verdict.reward is not None and 0 < verdict.reward < 1 and "score" in verdict.parts
    assert settings.logical_cpus == 3 and settings.logical_gpus == 0


def test_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with running_judge() as fake:
        settings = example("A judge", **{"http://127.0.0.1:8000/v1": fake.url})
        require_judge(settings.judges[0], judge_keys(settings)["JUDGE_KEY"])
        (verdict,) = score(settings, [request("<<verdict 8>>", truth="four")])
    assert (verdict.reward, verdict.reason) == (0.8, "judged")
    assert "Question: a7b5=\nReference: four\nAnswer: <<verdict 8>>" in fake.questions[0]


def test_the_combinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    models = {f"models/{name}": str(save(tmp_path / name)) for name in ("reward", "other")}
    settings = example("Combinations", **models)
    requests = [request(r"\boxed{4}", "aime", "4"), request("12"), request("345")]
    solved, liked, empty = score(settings, requests)
    assert (solved.reward, solved.parts) == (1.0, {"maths": 1.0})
    parts: dict[str, Any] = dict(liked.parts)
    # (3 x liked + 1 x 1/2) / 4, times 1
    assert liked.reward == pytest.approx((3 * parts["chat/quality/liked"] + 0.5) / 4)
    assert parts["chat/format"] == 1.0 and parts["chat/quality/short"] == 0.5
    assert settings.watched == ("chat/quality/second",) and "chat/quality/second" in parts
    assert empty.reward == 0.0 and empty.parts["chat"] == 0.0
