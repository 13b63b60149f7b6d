"""docs/environments.md: its tool and its environments run as written, each in under 40 lines."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from sppo_ray.config import DataSettings
from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.data.sources import open_sources
from sppo_ray.environments.base import Observation, Row, StepRequest
from sppo_ray.environments.pool.pool import EnvironmentPool
from sppo_ray.environments.resets import Resets

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "environments.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
TOOL, GAME, SUMS, _VERIFIERS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # processes take it over


def play(text: str, truth: str, *actions: str) -> list[Observation]:
    settings: Any = TypeAdapter(EnvironmentSettings).validate_python(yaml.safe_load(text)["environment"])

    async def run() -> list[Observation]:
        pool = EnvironmentPool(settings)
        try:
            row = Row("", truth, "docs")
            taken = [actions[: number + 1] for number in range(len(actions))]
            results = [await pool.step(StepRequest("e", row, 0, part)) for part in taken]
        finally:
            await pool.close()
        assert not [one.error for one in results if one.error]
        return [one.observation for one in results]

    return asyncio.run(run())


def test_each_example_is_short() -> None:
    assert len(FILES) == 3
    for file, settings in zip(FILES.values(), (TOOL, GAME, SUMS), strict=True):
        assert len(file.splitlines()) + len(settings.splitlines()) < 40


def test_the_tool() -> None:
    call = '<tool_call>{"name": "capital", "arguments": {"country": "Japan"}}</tool_call>'
    seen, end = play(TOOL, "", call, "It is Tokyo.")
    assert (seen.text, seen.role, seen.done) == ("Tokyo", "tool", False)
    assert end.done


def test_the_environment() -> None:
    first, second, end = play(GAME, "3", "2", "1", "0")
    assert (first.text, second.text) == ("2, go on", "1, go on")
    assert (end.reward, end.done, end.reason) == (1.0, True, "finished")
    assert play(GAME, "3", "1")[0].reason == "wrong"


def test_the_environment_that_draws_its_tasks() -> None:
    tree = yaml.safe_load(SUMS)
    settings: Any = TypeAdapter(EnvironmentSettings).validate_python(tree["environment"])
    data = DataSettings(**tree["data"])
    resets = Resets(settings)
    try:
        (train,) = open_sources(data.train, "data.train", resets)
        (held_out,) = open_sources(data.held_out, "data.held_out", resets)
        first = train[0]
        assert train[0] == first != train[1] and len(held_out) == 64
        assert first.messages[0]["content"] != held_out[0].messages[0]["content"]
    finally:
        resets.close()
    task = first.messages[0]["content"]
    numbers = [int(number) for number in re.findall(r"\d", task)]
    assert task == "Add {}, {}, {}".format(*numbers)
    row = replace(Row.before_reset(first), messages=first.messages)

    async def run() -> Observation:
        pool = EnvironmentPool(settings)
        try:
            return (await pool.step(StepRequest("e", row, 0, (str(sum(numbers)),)))).observation
        finally:
            await pool.close()

    assert asyncio.run(run()).reward == 1.0
