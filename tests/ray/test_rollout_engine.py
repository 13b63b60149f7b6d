"""Generation with a real vLLM engine in a Ray actor: exact log-probs, seeds, streaming, errors,
death.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors.handles import RayRolloutWorker
from sppo_ray.errors import UserError
from sppo_ray.types import RequestId, RolloutRequest, SamplingSettings, Trajectory
from tests.ray.conftest import Engine
from tests.ray.engine_models import (
    CONTEXT,
    STOP,
    VOCABULARY,
    exact_logprobs,
    generate,
    largest_difference,
    publish,
    pull,
    requests,
    start_engine,
    stream,
    untied_llama,
    wait_until,
)

MAX_DIFFERENCE = 2e-5  # nats, float32


@pytest.fixture(autouse=True)
def initial_weights(llama: Engine) -> None:
    pull(llama.actor, publish(llama.initial, 1))


def context_of(request: RolloutRequest, trajectory: Trajectory) -> list[int]:
    return [*request.token_ids.tolist(), *trajectory.response_ids.tolist()]


def assert_exact(llama: Engine, request: RolloutRequest, trajectory: Trajectory, temperature: float) -> None:
    exact = exact_logprobs(llama.initial, context_of(request, trajectory), temperature)[
        len(request.token_ids) - 1 :
    ]
    assert largest_difference(trajectory.response_logprobs, exact) <= MAX_DIFFERENCE


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_that_was_sampled(llama: Engine, temperature: float) -> None:
    batch = requests(16)
    by_id = {
        trajectory.request_id: trajectory
        for trajectory in generate(llama.actor, batch, temperature=temperature)
    }
    for request in batch:
        assert_exact(llama, request, by_id[request.request_id], temperature)


def test_greedy_takes_the_most_likely_token(llama: Engine) -> None:
    (request,) = requests(1)
    (trajectory,) = generate(llama.actor, [request], temperature=0.0, max_tokens=8)
    (again,) = generate(llama.actor, [request], temperature=0.0, max_tokens=8)
    assert trajectory.response_ids.tolist() == again.response_ids.tolist()
    with torch.no_grad():
        logits = llama.initial(torch.tensor([context_of(request, trajectory)])).logits[0]
    assert logits[len(request.token_ids) - 1 : -1].argmax(-1).tolist() == list(trajectory.response_ids)
    assert_exact(llama, request, trajectory, 1.0)


def test_a_trajectory_is_complete(llama: Engine) -> None:
    batch = requests(48)
    by_id = {trajectory.request_id: trajectory for trajectory in generate(llama.actor, batch)}
    assert set(by_id) == {request.request_id for request in batch}
    reasons = set()
    for request in batch:
        trajectory = by_id[request.request_id]
        reasons.add(trajectory.finish_reason)
        assert trajectory.prompt_id == request.prompt_id
        assert len(trajectory.response_logprobs) == len(trajectory.response_ids)
        assert STOP not in trajectory.response_ids[:-1]
        assert (trajectory.response_ids[-1] == STOP) == (trajectory.finish_reason == "stop")
        assert trajectory.finish_reason == "stop" or len(trajectory.response_ids) == 24
        assert (trajectory.policy_version, trajectory.policy_version_end) == (1, 1)
        assert trajectory.worker == "rollout-llama" and trajectory.seconds > 0
    assert reasons == {"stop", "length"}


def test_a_sample_depends_only_on_its_seed(llama: Engine) -> None:
    batch = requests(40)
    together = {t.request_id: t.response_ids.tolist() for t in generate(llama.actor, batch)}
    shuffled = random.Random(0).sample(batch, len(batch))
    parts = [shuffled[:1], shuffled[1:8], shuffled[8:]]
    apart = {t.request_id: t.response_ids.tolist() for part in parts for t in generate(llama.actor, part)}
    assert apart == together
    reseeded = [RolloutRequest(r.request_id, r.prompt_id, r.token_ids, r.seed + 1) for r in batch]
    assert {t.request_id: t.response_ids.tolist() for t in generate(llama.actor, reseeded)} != together


def test_more_prompt_tokens_than_one_step_takes(llama: Engine) -> None:
    """128 x 100 prompt tokens exceed the 8192 of a step: seeded prompts must wait their turn, not
    be cut.
    """
    batch = requests(128, length=100)
    together = {t.request_id: t.response_ids.tolist() for t in generate(llama.actor, batch, max_tokens=4)}
    assert len(together) == 128
    (alone,) = generate(llama.actor, batch[-1:], max_tokens=4)
    assert alone.response_ids.tolist() == together[alone.request_id]


def test_short_responses_come_out_before_long_ones(llama: Engine) -> None:
    """All are admitted before one step and decode in step: they arrive in the order of their
    lengths.
    """
    arrivals = [
        (len(t.response_ids), time.monotonic()) for t in stream(llama.actor, requests(32), max_tokens=400)
    ]
    lengths = [length for length, _ in arrivals]
    assert lengths == sorted(lengths) and lengths[-1] > 4 * lengths[0]
    assert arrivals[-1][1] - arrivals[0][1] > 0.05


def test_a_dropped_request_ends_its_stream_and_frees_the_engine(llama: Engine) -> None:
    batch = requests(4, tag="dropped")
    arriving = stream(llama.actor, batch, max_tokens=480, stop=())
    wait_until(llama.actor, "in_flight", 4)
    dropped = ray.get(llama.actor.abort.remote([str(request.request_id) for request in batch[:3]]))
    assert len(list(arriving)) == 4 - dropped
    vitals = ray.get(llama.actor.ping.remote())
    assert vitals["in_flight"] == 0 and vitals["alive"]


def test_a_cancelled_call_drops_only_its_own_requests(llama: Engine) -> None:
    others = stream(llama.actor, requests(2, tag="other"), max_tokens=60, stop=())
    left = [replace(request, request_id=RequestId("left", i, 0)) for i, request in enumerate(requests(4))]
    sampling = SamplingSettings(temperature=1.0, max_tokens=480, stop_token_ids=(STOP,))
    first = ray.get(llama.actor.first_of.remote(left, sampling))
    assert all(name.startswith("left/") for name in first.request_ids)
    assert len(list(others)) == 2
    wait_until(llama.actor, "in_flight", 0)  # the engine learns of the end of a call a little later
    assert ray.get(llama.actor.ping.remote())["alive"]


def test_tokens_are_counted_while_they_are_generated(llama: Engine) -> None:
    before = ray.get(llama.actor.ping.remote())["tokens_generated"]
    arriving = stream(llama.actor, requests(8, tag="counted"), max_tokens=480, stop=())
    # nothing of 480 tokens has finished by then
    wait_until(llama.actor, "tokens_generated", before + 1)
    assert ray.get(llama.actor.ping.remote())["seconds_since_progress"] < 5
    made = sum(len(trajectory.response_ids) for trajectory in arriving)
    assert ray.get(llama.actor.ping.remote())["tokens_generated"] == before + made


def test_a_request_that_can_never_be_served_is_refused_with_its_prompt(llama: Engine) -> None:
    long = RolloutRequest("long", "prompt/long", (5,) * (CONTEXT - 10), seed=1)
    with pytest.raises(
        UserError, match=r"rollout-llama: prompt prompt/long has 502 tokens; with max_tokens 11 .* 512"
    ):
        generate(llama.actor, [*requests(2), long], max_tokens=11)
    unknown = RolloutRequest("unknown", "prompt/unknown", (5, 9999), seed=1)
    with pytest.raises(UserError, match="prompt/unknown has token 9999, the policy knows 0 to 95"):
        generate(llama.actor, [*requests(2), unknown], max_tokens=11)
    with pytest.raises(UserError, match="2 request ids of one call are repeated"):
        generate(llama.actor, [*requests(2), *requests(2)])
    assert ray.get(llama.actor.ping.remote())["in_flight"] == 0
    assert len(generate(llama.actor, requests(2))) == 2


def test_bad_starts_are_explained_and_a_killed_engine_is_seen(ray_cluster: object, tmp_path: Path) -> None:
    missing = start_engine("rollout-missing", tmp_path / "nothing")
    model = tmp_path / "model"
    untied_llama().save_pretrained(model)
    too_long = start_engine("rollout-long", model, context=CONTEXT + 1)
    doomed = start_engine("rollout-doomed", model)
    with pytest.raises(UserError, match="rollout-missing: .*/nothing is not a model directory"):
        ray.get(missing.ready.remote(), timeout=240)
    with pytest.raises(
        UserError, match="rollout-long: the model in .* does not support a context of 513 tokens"
    ):
        ray.get(too_long.ready.remote(), timeout=240)
    pid = ray.get(doomed.ready.remote(), timeout=240)["pid"]
    arriving = stream(doomed, requests(8), max_tokens=480, stop=())
    wait_until(doomed, "in_flight", 8)
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    with pytest.raises((ActorDiedError, ActorUnavailableError)):
        list(arriving)
    assert time.monotonic() - killed_at < 15


def test_it_tells_its_memory(llama: Engine) -> None:
    worker = RayRolloutWorker("rollout-0", llama.actor, pull_timeout_s=1.0)
    ((name, peak),) = asyncio.run(worker.memory()).items()
    assert name == "rollout-0"
    assert 200 * 2**20 < peak < 64 * 2**30  # a process with torch and vLLM in it


def test_tokens_follow_the_distribution(llama: Engine) -> None:
    """The first token of one prompt under 3,000 seeds, and the second: chi-square against the exact
    probabilities.
    """
    (request,) = requests(1)
    batch = [replace(request, request_id=RequestId("draw", i, 0), seed=i) for i in range(3000)]
    drawn = np.array([t.response_ids for t in generate(llama.actor, batch, max_tokens=2, stop=())])
    prompt = request.token_ids.tolist()
    first = np.bincount(drawn[:, 0], minlength=VOCABULARY)
    with torch.no_grad():
        contexts = torch.tensor([[*prompt, token] for token in range(VOCABULARY)])
        logits = llama.initial(contexts).logits.softmax(-1).numpy()
    expected_first = logits[0, len(prompt) - 1] * len(drawn)
    expected_second = (first[:, None] * logits[:, -1]).sum(0)
    for position, expected in enumerate((expected_first, expected_second)):
        counts, large = np.bincount(drawn[:, position], minlength=VOCABULARY), expected >= 5
        statistic = ((counts - expected)[large] ** 2 / expected[large]).sum()
        # the mean of a chi-square is its degrees of freedom, its deviation sqrt(2 * degrees)
        assert large.sum() >= 20 and statistic < large.sum() + 5 * (2 * large.sum()) ** 0.5
