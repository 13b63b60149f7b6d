"""Answers of Ray's job server, and the list of jobs when an answer is malformed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest

from sppo_ray.api import ray_jobs
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.ray_jobs import RayJobs


class FakeClient:
    """`JobSubmissionClient`, whose next answers are those of `answers`; the last one stays."""

    def __init__(self, *answers: Callable[[], Any]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def list_jobs(self) -> Any:
        self.asked += 1
        return (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])()


def details(submission_id: str, entrypoint: str = "python -m sppo_ray train quickstart") -> SimpleNamespace:
    return SimpleNamespace(
        submission_id=submission_id, status="RUNNING", entrypoint=entrypoint, message=None, start_time=1000,
        end_time=None,
        metadata=None,
    )  # fmt: skip


def odd() -> Any:
    # as Ray's client does with what it gets
    return pydantic.TypeAdapter(int).validate_python("none of Ray's")


@pytest.mark.parametrize("failure", [odd, lambda: 3, lambda: [SimpleNamespace()], lambda: 1 // 0])
def test_an_odd_answer_is_ray_being_away_and_the_poller_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Callable[[], Any]
) -> None:
    monkeypatch.setattr(ray_jobs, "POLL_S", 0.01)
    monkeypatch.setattr(ray_jobs, "AWAY_POLL_S", 0.01)
    client = FakeClient(
        lambda: [details("a")], failure, lambda: [details("a"), details("b"), details("c", "python x.py")]
    )
    monkeypatch.setattr(ray_jobs, "_connect", lambda address: client)

    async def scene() -> list[list[str] | None]:
        ray = RayJobs("http://127.0.0.1:8265")
        seen: list[list[str] | None] = []
        ray.start()
        while client.asked < 5:
            now = None if ray.jobs is None else sorted(ray.jobs)
            if not seen or seen[-1] != now:
                seen.append(now)
            await asyncio.sleep(0.001)
        await ray.close()
        return seen

    assert asyncio.run(scene()) == [None, ["a"], None, ["a", "b"]]
    assert "gave an answer that is none" in caplog.text


def test_an_odd_answer_to_a_command_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_connect", lambda address: FakeClient(list))

    async def scene() -> None:
        ray = RayJobs("http://127.0.0.1:8265")
        await ray.logs("a")  # the fake has no such method

    with pytest.raises(ApiProblem, match="check --ray-address") as caught:
        asyncio.run(scene())
    assert (caught.value.status, caught.value.kind) == (503, "ray-down")


def test_a_command_line_that_no_shell_reads_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    torn = "bash -c 'sppo-ray train \"x'"
    monkeypatch.setattr(
        ray_jobs, "_connect", lambda address: FakeClient(lambda: [details("a"), details("b", torn)])
    )

    async def scene() -> list[str]:
        ray = RayJobs("http://127.0.0.1:8265")
        await ray.refresh()
        return sorted(ray.jobs or ())

    assert asyncio.run(scene()) == ["a"]
