"""Sleep of a real engine on a CPU. vLLM's scheduler and executor sleep and wake; what happens to
the memory is the fake of `actors/engine_sleep.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import ray

from sppo_ray.errors import UserError
from sppo_ray.rollout.weight_sync import ProbeTolerance, WeightMismatch, verify_receipt
from sppo_ray.types import SamplingSettings
from tests.ray.conftest import Engine
from tests.ray.engine_models import generate, perturbed, publish, pull, requests

TOLERANCE = ProbeTolerance.for_dtype("float32")


@pytest.fixture(params=["llama", "qwen"])
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Iterator[Engine]:
    engine = engines[request.param]
    yield engine
    ray.get(engine.actor.repair.remote())
    pull(engine.actor, publish(engine.initial, 0))


def sleep(engine: Engine) -> None:
    ray.get(engine.actor.sleep.remote(), timeout=60)


def test_an_engine_that_slept_generates_the_same_bits(engine: Engine) -> None:
    published = publish(perturbed(engine.initial, seed=31), 31)
    pull(engine.actor, published)
    before = generate(engine.actor, requests(8, tag="before-sleep"))
    for _ in range(2):
        sleep(engine)
        sleep(engine)  # a second call has no effect
        assert verify_receipt(published, pull(engine.actor, published), TOLERANCE) < 1e-4
    after = generate(engine.actor, requests(8, tag="after-sleep"))
    rows = [
        sorted((one.prompt_id, *one.response_ids, *one.response_logprobs) for one in found)
        for found in (before, after)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 8


def test_a_sleeping_engine_refuses_requests_and_answers_pings(engine: Engine) -> None:
    sleep(engine)
    with pytest.raises(UserError, match="is asleep: it serves again after it has pulled weights"):
        generate(engine.actor, requests(2, tag="refused"))
    assert ray.get(engine.actor.ping.remote(), timeout=30)["alive"]


def test_an_engine_with_requests_refuses_to_sleep(engine: Engine) -> None:
    arriving = engine.actor.generate.options(num_returns="streaming").remote(
        requests(4, tag="busy"), SamplingSettings(1.0, 400, ())
    )
    while not ray.get(engine.actor.ping.remote())["in_flight"]:
        pass
    with pytest.raises(UserError, match="4 requests are in flight: drop them first"):
        sleep(engine)
    ray.get(engine.actor.abort_all.remote(), timeout=60)
    assert list(arriving) == []
    sleep(engine)


def test_memory_that_is_stale_after_a_sleep_fails_the_probe(engine: Engine) -> None:
    """The engine wakes, loads nothing, and repeats its proof of this very version."""
    published = publish(perturbed(engine.initial, seed=32), 32)
    pull(engine.actor, published)
    ray.get(engine.actor.damage.remote("stay behind"))
    receipt = pull(engine.actor, published)
    verify_receipt(published, receipt, TOLERANCE)  # awake it still holds the version
    sleep(engine)
    receipt = pull(engine.actor, published)
    assert all(math.isnan(logprob) for logprob in receipt.probe_logprobs)
    with pytest.raises(WeightMismatch, match="differ from the learner's by nan"):
        verify_receipt(published, receipt, TOLERANCE)
