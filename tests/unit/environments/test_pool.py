"""Environment processes: what fails, hangs, is killed or frozen is an error or is repeated."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sppo_ray.config.environment import (
    CustomEnvironment,
    EnvironmentSettings,
    GuessNumberEnvironment,
    ToolsEnvironment,
)
from sppo_ray.environments.base import Row, StepRequest, StepResult
from sppo_ray.environments.pool.pool import EnvironmentPool
from sppo_ray.environments.registry import build_environment
from sppo_ray.errors import UserError

MODULE = "tests.unit.environments.environments_for_tests"
ROW = Row("31?", "20", "game")


def custom(name: str = "Echo", **settings: Any) -> CustomEnvironment:
    return CustomEnvironment(
        environment=f"{MODULE}:{name}", max_turn_tokens=8, **{"deadline_s": 10.0} | settings
    )


def with_pool(settings: EnvironmentSettings, use: Callable[[EnvironmentPool], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        pool = EnvironmentPool(settings)
        try:
            return await use(pool)
        finally:
            await pool.close()

    return asyncio.run(run())


async def play(pool: EnvironmentPool, *actions: str, name: str = "e", row: Row = ROW) -> StepResult:
    """Take steps one after another; return the last one's result."""
    result = None
    for number in range(len(actions)):
        result = await pool.step(StepRequest(name, row, 7, actions[: number + 1]))
    assert result is not None
    return result


def test_an_episode_goes_on_where_it_was() -> None:
    async def use(pool: EnvironmentPool) -> None:
        seen = await asyncio.gather(*(play(pool, "a", "b", name=f"e{i}") for i in range(20)))
        assert [one.observation.text for one in seen] == ["x7:a,b"] * 20
        over = await play(pool, "a", "done", name="e99")
        end = over.observation
        assert (end.done, end.reward, end.reason) == (True, 0.5, "over")
        assert pool.counters.restarts == 0 and pool.counters.steps == 42

    with_pool(custom(options={"word": "x"}, processes=2), use)


def test_what_an_environment_does_wrong_is_an_error_with_its_reason() -> None:
    wrong = {
        "raise": "RuntimeError: the game is broken",
        "exit": "its process ended",
        "bytes": "the text of an observation is bytes",
        "megabyte": "1048576 characters",
        "oracle": "role of an observation is 'oracle'",
        "none": "step returned NoneType",
        "nan": "reward of an observation is nan",
        "hang": "no answer within 0.5 s",
        "open": "PermissionError",  # confined
    }

    async def use(pool: EnvironmentPool) -> None:
        for action, reason in wrong.items():
            error = (await play(pool, action, name=action)).error
            assert reason in error, (action, error)
        bad = Row("", "bad row", "game")
        assert "this row is bad" in (await play(pool, "a", name="bad", row=bad)).error
        assert (await play(pool, "a")).error == ""
        # "exit" is tried twice
        assert pool.counters.errors == len(wrong) + 1 and pool.counters.restarts == 2

    with_pool(custom(deadline_s=0.5), use)


def test_episodes_of_a_process_that_dies_are_repeated() -> None:
    async def use(pool: EnvironmentPool) -> None:
        pid = int((await play(pool, "pid")).observation.text)
        waiting = [asyncio.create_task(play(pool, "a", "wait", name=f"w{i}")) for i in range(3)]
        await asyncio.sleep(0.15)
        os.kill(pid, signal.SIGKILL)
        found = await asyncio.gather(*waiting)
        assert [one.observation.text for one in found] == ["7:a,wait"] * 3
        # an episode that had no step under way
        after = await pool.step(StepRequest("e", ROW, 7, ("pid", "b")))
        assert after.observation.text == "7:pid,b"
        assert pool.counters.restarts == 1 and pool.counters.errors == 0

    with_pool(custom(), use)


def test_one_that_kills_its_process_twice_is_an_error_and_the_others_go_on() -> None:
    async def use(pool: EnvironmentPool) -> None:
        killer, other = await asyncio.gather(play(pool, "die", name="k"), play(pool, "a", name="o"))
        assert "its process ended" in killer.error
        assert other.observation.text == "7:a" or "its process" in other.error
        assert (await play(pool, "a", name="p")).observation.text == "7:a"

    with_pool(custom(), use)


def test_a_process_that_is_frozen_or_blocked_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.environments.pool.pool._SLACK_S", 0.2)

    async def use(pool: EnvironmentPool) -> None:
        pid = int((await play(pool, "pid")).observation.text)
        os.kill(pid, signal.SIGSTOP)
        after = await pool.step(StepRequest("e", ROW, 7, ("pid", "b")))
        assert after.observation.text == "7:pid,b" and pool.counters.restarts == 1
        blocked = await play(pool, "block", name="f")
        assert blocked.error == "no answer within 0.3 s"
        assert (await play(pool, "a", name="g")).observation.text == "7:a"

    with_pool(custom(deadline_s=0.3), use)


def test_plain_functions_run_side_by_side_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.environments.pool.pool._SLACK_S", 0.2)

    async def use(pool: EnvironmentPool) -> None:
        assert (await play(pool, "a", "b", "c")).observation.text == "3"
        assert (await play(pool, "block", name="f")).error == "no answer within 0.3 s"
        assert (await play(pool, "a", name="g")).observation.text == "1"

    with_pool(custom("Plain", deadline_s=0.3), use)


def test_a_step_that_waits_for_a_thread_is_not_late() -> None:
    """240 steps of half a second and 48 threads: the last ones begin after the deadline."""

    async def use(pool: EnvironmentPool) -> None:
        steps = (pool.step(StepRequest(f"e{number}", ROW, 7, ("nap",))) for number in range(240))
        assert {step.error for step in await asyncio.gather(*steps)} == {""}
        assert pool.counters.restarts == 0

    with_pool(custom("Plain", deadline_s=1.0), use)


def test_a_tool_that_hangs_costs_its_process_and_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_ray.environments.pool.pool._SLACK_S", 0.2)
    functions = [{"type": "function", "function": f"{MODULE}:{name}"} for name in ("hang", "shout")]
    tools = ToolsEnvironment(tools=functions, max_turn_tokens=8, deadline_s=0.5)

    async def use(pool: EnvironmentPool) -> None:
        hanging, other = await asyncio.gather(
            play(pool, "<hang>a</hang>", name="h"), play(pool, "<shout>a</shout>", name="s")
        )
        assert hanging.error == "no answer within 0.5 s" and other.observation.text == "A"
        # each of its two attempts cost a process; the episode of the other is repeated in a new one
        assert pool.counters.restarts >= 1 and pool.counters.errors == 1
        after = await pool.step(StepRequest("s", ROW, 7, ("<shout>a</shout>", "<shout>b</shout>")))
        assert after.observation.text == "B"

    with_pool(tools, use)


def test_texts_that_no_tokenizer_reads_are_mended() -> None:
    tools = ToolsEnvironment(
        tools=[{"type": "function", "function": f"{MODULE}:surrogate"}], max_turn_tokens=8
    )
    seen = with_pool(tools, lambda pool: play(pool, "<surrogate>a</surrogate>"))
    assert seen.observation.text == "a?"


def test_waiting_tools_do_not_wait_for_each_other() -> None:
    async def use(pool: EnvironmentPool) -> float:
        await play(pool, "a")
        begun = time.monotonic()
        await asyncio.gather(*(play(pool, "wait", name=f"w{i}") for i in range(100)))
        return time.monotonic() - begun

    assert with_pool(custom(), use) < 10.0  # one after another: 30 s


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (f"{MODULE}:Missing", "Missing does not exist in module"),
        (f"{MODULE}:NoStep", "has no method step"),
        (f"{MODULE}:NoSeed", r"called with \(row, seed\)"),
        ("no_such_module:Game", "cannot be imported"),
        ("json:loads", "of Python's standard library"),
        ("numpy:array", "is an installed package"),
    ],
)
def test_an_environment_that_cannot_be_built_is_named(environment: str, message: str) -> None:
    settings = CustomEnvironment(environment=environment, max_turn_tokens=8)
    with pytest.raises(UserError, match=message):
        build_environment(settings)


def test_a_pool_passes_on_why_its_environment_cannot_be_built() -> None:
    with pytest.raises(UserError, match="has no method step"):
        with_pool(custom("NoStep"), lambda pool: pool.ready())


def test_a_process_sees_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert with_pool(custom(), lambda pool: play(pool, "secrets")).observation.text == "none"


def test_the_game_guess_number() -> None:
    async def use(pool: EnvironmentPool) -> list[str]:
        seen = [await play(pool, action, name=action) for action in ("16", "24", "32", "0", "no")]
        end = (await play(pool, "16", "20")).observation
        assert (end.done, end.reward, end.reason) == (True, 1.0, "found")
        return [one.observation.text for one in seen]

    settings = GuessNumberEnvironment(max_turn_tokens=4)
    assert with_pool(settings, use) == ["+", "-", "x", "x", "x"]
