"""RewardActor on a real Ray cluster: verdicts, hangs, user errors, and no orphans after a kill."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from actors.reward import RewardActor
from actors.reward_client import RayRewardClient
from sppo_ray.config import CodeReward, CustomReward, MathReward, RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.protocols import WorkerDied, WorkerTimeout
from sppo_ray.types import ScoreRequest

COMMANDS = RewardSettings(
    function=CustomReward(function="tests.unit.rewards.verifier_functions:by_command"),
    deadline_s=1.0,
    memory_mib=256,
    processes=2,
)


def request(response: str, ground_truth: str = "good") -> ScoreRequest:
    return ScoreRequest(response, ground_truth, "test", "", {})


@pytest.fixture
def start(ray_cluster: Any) -> Iterator[Any]:
    """Starts reward actors on a tenth of a CPU each and ends them after the test."""
    actors = []

    def start_actor(settings: RewardSettings) -> Any:
        actors.append(RewardActor.options(num_cpus=0.1).remote("reward-0", settings))
        return actors[-1]

    yield start_actor
    for actor in actors:
        ray_cluster.kill(actor)


def test_verdicts_errors_and_totals(ray_cluster: Any, start: Any) -> None:
    actor = start(COMMANDS)
    responses = ["good", "bad", "hang", "segfault", "allocate", "raise", "good"]
    verdicts = ray_cluster.get(actor.score.remote([request(r) for r in responses]), timeout=60)
    assert [v.reward for v in verdicts] == [1.0, 0.0, None, None, None, None, 1.0]
    assert [v.reason for v in verdicts[2:6]] == [
        "error: timeout after 1 s",
        "error: verifier process died (signal 11, SIGSEGV)",
        "error: out of memory",
        "error: KeyError: 'units' (verifier_functions.py, line 38)",
    ]
    assert ray_cluster.get(actor.score.remote([request("good")]), timeout=30)[0].reward == 1.0
    ping = ray_cluster.get(actor.ping.remote(), timeout=30)
    assert (ping["worker"], ping["scored"], ping["errors"], ping["timeouts"]) == ("reward-0", 8, 4, 1)
    ray_cluster.get(actor.close.remote(), timeout=30)


def test_mathematics_works_inside_an_actor(ray_cluster: Any, start: Any) -> None:
    """An actor's methods do not run on the main thread, where Math-Verify's own timeout would be
    dead.
    """
    actor = start(RewardSettings(function=MathReward()))
    batch = [request(r"\boxed{\frac{2}{4}}", "0.5"), request(r"\boxed{3}", "0.5"), request("3", "3")]
    verdicts = ray_cluster.get(actor.score.remote(batch), timeout=120)
    assert [(v.reward, v.reason) for v in verdicts] == [(1.0, "correct"), (0.0, "wrong"), (0.0, "no_answer")]


def test_programs_run_in_their_sandbox_inside_an_actor(ray_cluster: Any, start: Any) -> None:
    """Ray's worker has sockets, threads and an environment of its own: none of it reaches a
    program.
    """
    actor = start(RewardSettings(function=CodeReward(timeout_s=5.0), deadline_s=30.0))
    tests = json.dumps({"inputs": ["1 2"], "outputs": ["3"]})
    add, secrets = (
        "print(sum(map(int, input().split())))",
        "import os\nassert not [name for name in os.environ if 'RAY' in name]",
    )
    programs = [add, f"{secrets}\n{add}", f"import socket\nsocket.socket()\n{add}", "print(4)"]
    batch = [request(f"```python\n{program}\n```", tests) for program in programs]
    verdicts = ray_cluster.get(actor.score.remote(batch), timeout=120)
    assert [verdict.reason for verdict in verdicts] == ["correct", "correct", "runtime_error", "wrong"]


def test_user_errors_cross_the_actor(ray_cluster: Any, start: Any) -> None:
    actor = start(COMMANDS)
    with pytest.raises(UserError, match="returned 2.0 for the response"):
        ray_cluster.get(actor.score.remote([request("reward 2")]), timeout=60)
    broken = start(RewardSettings(function=CustomReward(function="no_such_module:f")))
    with pytest.raises(UserError, match="no_such_module cannot be imported"):
        ray_cluster.get(broken.ping.remote(), timeout=60)


def test_a_killed_actor_leaves_no_verifier_behind(ray_cluster: Any, start: Any) -> None:
    actor = start(COMMANDS)
    ray_cluster.get(actor.ping.remote(), timeout=60)
    actor.score.remote([request("hang")])
    workers = [p for p in psutil.Process().children(recursive=True) if _is_verifier(p)]
    assert workers
    ray_cluster.kill(actor)
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert alive == []


def _is_verifier(process: psutil.Process) -> bool:
    try:
        return "sppo_ray.rewards.pool.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def client_of(actor: Any, ray: Any) -> RayRewardClient:
    ray.get(actor.ping.remote(), timeout=60)
    return RayRewardClient(actor, deadline_s=1.0)


def test_a_burst_is_scored_in_its_order(ray_cluster: Any, start: Any) -> None:
    client = client_of(start(COMMANDS), ray_cluster)

    async def score() -> list[float | None]:
        verdicts = await client.score([request(r) for r in ("good", "bad", "hang", "good")])
        return [verdict.reward for verdict in verdicts]

    assert asyncio.run(score()) == [1.0, 0.0, None, 1.0]
    assert list(asyncio.run(client.memory())) == ["reward"]


def test_a_frozen_actor_is_found_and_a_dead_one_named(
    ray_cluster: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = start(COMMANDS)
    client = client_of(actor, ray_cluster)
    process = psutil.Process(
        ray_cluster.get(actor.__ray_call__.remote(lambda worker: os.getpid()), timeout=30)
    )
    # 0.5 s + 2 outstanding samples * (deadline 1 s + 0 s)
    monkeypatch.setattr("actors.reward_client.REWARD_SLACK_S", 0.5)
    monkeypatch.setattr("actors.reward_client.PROCESS_RESTART_S", 0.0)

    async def score() -> list[BaseException]:
        bursts = [client.score([request("good"), request("good")]), client.score([request("good")])]
        return await asyncio.gather(*bursts, return_exceptions=True)

    process.suspend()
    failures = asyncio.run(score())
    assert [type(failure) for failure in failures] == [WorkerTimeout] * 2
    assert "reward: gave no answer to scoring 2 responses in 2 s" in str(failures[0])
    process.resume()
    ray_cluster.kill(actor)
    assert psutil.wait_procs([process], timeout=30)[0]  # until then it answers
    assert [type(failure) for failure in asyncio.run(score())] == [WorkerDied] * 2
