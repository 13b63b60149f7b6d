"""First messages that an environment makes: equal by seed, checked, and made into prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config import DataSettings, EnvironmentData
from sppo_ray.config.environment import CustomEnvironment
from sppo_ray.data.mixing import open_prompts
from sppo_ray.data.prompts import PromptEncoder, load_held_out
from sppo_ray.data.sources import open_sources
from sppo_ray.environments.base import Row, StepRequest, StepResult
from sppo_ray.environments.pool.pool import EnvironmentPool
from sppo_ray.environments.replies import BadReply, begin_alike, first_messages
from sppo_ray.environments.resets import Resets
from sppo_ray.errors import UserError
from sppo_ray.launch.run_inputs import begin_episode, try_environment
from sppo_ray.types import Example, Prompt
from tests.unit.data.test_prompts import WORDWISE

MODULE = "tests.unit.environments.environments_for_tests"


def custom(name: str, **options: Any) -> CustomEnvironment:
    return CustomEnvironment(environment=f"{MODULE}:{name}", max_turn_tokens=8, options=options)


def example(row: int, text: str = "w1 ", truth: str = "") -> Example:
    return Example(f"set/{row}", "set", ({"role": "user", "content": text},), truth)


def prompt_of(example: Example, *added: dict[str, str]) -> Prompt:
    messages = (*added, *example.messages)
    return Prompt(example.id, "set", "<s>...", (1,), (1,), "", {}, messages, example.row_text)


@pytest.fixture(scope="module")
def drawn() -> Iterator[Resets]:
    resets = Resets(custom("Drawn"))
    yield resets
    resets.close()


def step(settings: CustomEnvironment, *requests: StepRequest) -> list[StepResult]:
    async def run() -> list[StepResult]:
        pool = EnvironmentPool(settings)
        try:
            return [await pool.step(request) for request in requests]
        finally:
            await pool.close()

    return asyncio.run(run())


def test_reset_is_determined_by_the_row_alone(drawn: Resets) -> None:
    first, second = drawn([example(0), example(1)])
    assert drawn([example(1), example(0)]) == [second, first]
    assert first.messages != second.messages
    (message,) = first.messages
    assert message["role"] == "user" and message["content"].startswith("w1 ") and first.row_text == "w1 "


def test_an_episode_begins_with_what_the_prompt_was_made_of(drawn: Resets) -> None:
    (first,) = drawn([example(0)])
    row = Row.of(prompt_of(first, {"role": "system", "content": "Be brief."}))
    assert row.prompt == "w1 "  # not the policy's prompt, which `reset` would then read
    task = first.messages[0]["content"]
    # whatever the sample's seed is, also in a process that has not had the episode
    a, b, c = step(
        custom("Drawn"),
        StepRequest("a", row, 1, ("x",)),
        StepRequest("b", row, 2, ("x",)),
        StepRequest("c", row, 3, ("x", "y", "z")),
    )
    assert [one.observation.text for one in (a, b, c)] == [task] * 3 and not a.error


def test_a_reset_that_depends_on_something_else_is_an_error_of_the_episode(drawn: Resets) -> None:
    own = custom("Drawn", share=False)
    resets = Resets(own)
    (first,) = resets([example(0)])
    resets.close()
    (result,) = step(own, StepRequest("a", Row.of(prompt_of(first)), 1, ("x",)))
    assert "reset returned other messages than when the row was read" in result.error
    with pytest.raises(UserError, match="reset makes other messages when it is called again"):
        begin_episode(own, prompt_of(first))
    (first,) = drawn([example(0)])
    begin_episode(custom("Drawn"), prompt_of(first))


def test_a_row_without_first_messages_is_named(drawn: Resets) -> None:
    with pytest.raises(UserError, match=r"prompt set/3: .*there is no task for this row.*leave the row out"):
        drawn([example(2), example(3, truth="no task")])
    with pytest.raises(UserError, match="its reset cannot be known before it is made: name the class"):
        begin_episode(custom("make_drawn"), prompt_of(example(0)))
    bad = Resets(custom("BadReset"))
    with pytest.raises(UserError, match="reset returned bytes: return a text, or a list of messages"):
        bad([replace(example(0), extra={"index": 0, "seed": 0})])
    bad.close()


@pytest.mark.parametrize("given", [b"a", [], {}, None, [{"role": "tool", "content": ""}], [{"role": "user"}]])
def test_what_are_no_messages(given: Any) -> None:
    with pytest.raises(BadReply, match="reset returned"):
        first_messages(given)


def test_messages_that_settings_have_added_to_are_the_same() -> None:
    def said(*texts: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in zip(("system", "user"), texts, strict=True)]

    made = said("s", "u")
    assert begin_alike(made, said("s, tools", "u suffix")) and begin_alike(made[1:], said("new", "u"))
    assert not begin_alike(made, said("s", "other")) and not begin_alike(made, made[1:])
    assert first_messages("\ud800a") == [{"role": "user", "content": "?a"}]


def data(**changes: Any) -> DataSettings:
    sources = {"train": [EnvironmentData(size=40)], "held_out": [EnvironmentData(size=8, seed=9)]}
    sizes = {"prompts_per_step": 4, "minibatch_size": 1, "max_prompt_tokens": 20}
    return DataSettings(**{**sources, **sizes, **changes})


def test_numbered_rows_become_prompts_of_the_environment() -> None:
    begun = try_environment(custom("Numbers"))
    assert begun.tools is None and begun.reset is not None
    settings = data()
    encoder = PromptEncoder(WORDWISE, WORDWISE, settings, reset=begun.reset)
    stream = open_prompts(settings, encoder, 1)
    first, again = stream.cohort(0), stream.cohort(0)
    assert [one.text for one in first] == [one.text for one in again]
    for one in first:
        assert one.messages[0]["content"] == f"w1 {one.extra['index']} 0"
        assert one.id == f"environment-0/{one.extra['index']}" and one.row_text == ""
    (held_out,) = load_held_out(settings, encoder).values()
    assert {one.messages[0]["content"] for one in held_out} == {f"w1 {row} 9" for row in range(8)}
    begun.reset.close()


def test_numbered_rows_without_a_reset_are_refused() -> None:
    assert try_environment(custom("Echo")).reset is None
    with pytest.raises(UserError, match=r"data.train\[0\]: its rows are only numbers"):
        open_sources([EnvironmentData()])


def test_rows_of_files_are_what_reset_reads(drawn: Resets, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "w2 ", "ground_truth": "7"}\n')
    settings = data(train=[{"type": "jsonl", "path": str(file)}], held_out=[], prompts_per_step=1)
    encoder = PromptEncoder(WORDWISE, WORDWISE, settings, reset=drawn)
    (prompt,) = open_prompts(settings, encoder, 1).cohort(0)
    assert prompt.messages[0]["content"].startswith("w2 ") and prompt.messages[0]["content"] != "w2 "
    assert (prompt.row_text, prompt.ground_truth) == ("w2 ", "7")

