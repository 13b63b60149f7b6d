"""Effects of an alarm on a loop with FAKE workers: warn, pause, stop. A real run is in
tests/ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from sppo_ray.rundir.metrics import read_events, read_metrics
from sppo_ray.trainer.guardrails import GuardrailStop
from sppo_ray.types import Minibatch
from tests.unit.fakes import FakeLearner
from tests.unit.trainer.test_controller import Steered, _poll_often  # noqa: F401 - a fixture


class LeapingLearner(FakeLearner):
    """From its ninth update (step 5, at two a step) on, each leaps 0.3 nats away."""

    async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
        figures = await super().update(minibatch)
        return {
            **figures,
            "approx_kl_k3": 0.3 if len(self.updates) >= 9 else 1e-4,
            "logprob_difference_mean": 1e-8,
        }


def leaping(tmp_path: Path, *overrides: str) -> Steered:
    run = Steered(tmp_path, "--loop.steps=12", *overrides)
    run.learner = LeapingLearner(run.log)
    return run


async def nothing() -> None:
    pass


def events_of(run: Steered, kind: str) -> list[dict]:
    return [event for event in read_events(run.path) if event["kind"] == kind]


def test_an_alarm_holds_the_run_until_somebody_lets_it_go_on(tmp_path: Path) -> None:
    run = leaping(tmp_path)

    async def scenario() -> None:
        await run.until(lambda: run.status["phase"] == "paused" and run.status["paused"])
        status = run.status
        # Odd in steps 5, 6 and 7: raised by the third.
        assert (status["state"]["step"], status["paused"], len(status["alerts"])) == (7, True, 1)
        alert = status["alerts"][0]
        assert (alert["detector"], alert["step"], alert["since"], alert["action"]) == ("kl", 7, 5, "pause")
        assert "policy/approx_kl_k3 is 0.3 nats a token, since step 5" in alert["message"]
        assert await run.do("resume") == ("done", "resumes")

    assert run.steer(scenario).step == 12  # it is not held again by what its user has seen
    (event,) = events_of(run, "guardrail")
    assert (event["detector"], event["since"], event["action"]) == ("kl", 5, "pause")
    rows = read_metrics(run.path)
    assert [row["guardrail/alarms"] for row in rows] == [0] * 6 + [1] * 6 and rows[6]["guardrail/kl"] == 1.0


def test_a_pause_that_times_out_stops_the_run(tmp_path: Path) -> None:
    run = leaping(tmp_path, "--guardrails.max_pause_s=0.05")
    with pytest.raises(GuardrailStop, match=r"^kl: .*since step 5.*The pause timed out after 0.05 s"):
        run.steer(nothing)
    assert not (run.path / "checkpoints").exists()


def test_stop_ends_it_without_a_checkpoint_of_what_went_wrong(tmp_path: Path) -> None:
    run = leaping(tmp_path, "--guardrails.action=stop", "--checkpoint.every=7")
    with pytest.raises(GuardrailStop, match="stopped after step 7, without a checkpoint of it") as caught:
        run.steer(nothing)
    assert caught.value.exit_code == 5
    assert not (run.path / "checkpoints").exists()
    assert json.loads((run.path / "status.json").read_text())["alerts"][0]["detector"] == "kl"


def test_a_warning_does_not_pause_the_run(tmp_path: Path) -> None:
    run = leaping(tmp_path, "--guardrails.action=warn")
    assert run.steer(nothing).step == 12
    assert [event["action"] for event in events_of(run, "guardrail")] == ["warn"]


def test_a_pause_by_command_has_no_time_out(tmp_path: Path) -> None:
    run = Steered(tmp_path, "--loop.steps=40", "--guardrails.max_pause_s=0.01")

    async def scenario() -> None:
        await run.do("pause")
        await run.until(lambda: run.status["phase"] == "paused")
        for _ in range(5):
            await run.do("checkpoint")
        await run.do("stop")

    assert run.steer(scenario).step < 40


def test_a_resumed_run_restores_the_medians(tmp_path: Path) -> None:
    run = leaping(tmp_path, "--loop.steps=6", "--guardrails.action=warn")
    half = run.steer(nothing)
    assert events_of(run, "guardrail") == []
    run.config = run.config.model_copy(update={"loop": run.config.loop.model_copy(update={"steps": 7})})
    assert run.train(half).step == 7
    # Steps 5 and 6 were odd before the interruption, 7 is the third.
    (event,) = events_of(run, "guardrail")
    assert (event["since"], event["message"].partition(",")[0]) == (
        5,
        "kl: policy/approx_kl_k3 is 0.3 nats a token",
    )


def test_an_alarm_that_is_over_says_so(tmp_path: Path) -> None:
    class Recovering(LeapingLearner):
        async def update(self, minibatch: Minibatch) -> Mapping[str, float]:
            figures = await super().update(minibatch)
            return {**figures, "approx_kl_k3": 1e-4} if len(self.updates) > 14 else figures

    run = Steered(tmp_path, "--loop.steps=14", "--guardrails.action=warn")
    run.learner = Recovering(run.log)
    run.steer(nothing)
    # Odd: 5, 6, 7. The window of six steps is calm with 8 ... 13.
    (event,) = events_of(run, "guardrail-over")
    assert event["message"] == "kl is normal again since step 13"
    assert run.status["alerts"] == []
