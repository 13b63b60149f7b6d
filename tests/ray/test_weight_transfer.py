"""Weight transfer into a real engine: it computes with the new weights only, and damage is
detected.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.handles import RayRolloutWorker
from actors.weights.layout import WeightsRefused
from sppo_ray.config import RolloutSettings
from sppo_ray.protocols import PublishedWeights
from sppo_ray.rollout.fleet import RolloutFleet
from sppo_ray.rollout.weight_sync import ProbeTolerance, WeightMismatch, probe_difference, verify_receipt
from sppo_ray.types import RolloutRequest
from tests.ray.conftest import Engine
from tests.ray.engine_models import (
    ReadableWorker,
    exact_logprobs,
    generate,
    largest_difference,
    perturbed,
    publish,
    pull,
    requests,
    start_engine,
    stream,
    untied_llama,
    wait_until,
)

MAX_DIFFERENCE = 2e-5  # nats, float32
TOLERANCE = ProbeTolerance.for_dtype("float32")


@pytest.fixture(params=["llama", "qwen"])
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    """An untied head, and a tied one with biases: on a CPU they take different ways into the
    engine.
    """
    return engines[request.param]


@pytest.fixture
def fault(qwen: Engine) -> Iterator[None]:
    yield
    ray.get(qwen.actor.repair.remote())


def damage(engine: Engine, fault: str) -> None:
    ray.get(engine.actor.damage.remote(fault))


def response_difference(
    model: object, request: RolloutRequest, response: tuple[int, ...], logprobs: tuple[float, ...]
) -> float:
    return largest_difference(
        logprobs, exact_logprobs(model, [*request.token_ids, *response])[len(request.token_ids) - 1 :]
    )


def test_after_a_pull_the_engine_computes_with_the_new_weights(engine: Engine) -> None:
    old, new = publish(engine.initial, 1), publish(perturbed(engine.initial, 1), 2)
    before = pull(engine.actor, old)
    assert largest_difference(before.probe_logprobs, old.probe_logprobs) <= MAX_DIFFERENCE
    assert largest_difference(before.probe_logprobs, new.probe_logprobs) > 0.1

    after = pull(engine.actor, new)
    assert largest_difference(after.probe_logprobs, new.probe_logprobs) <= MAX_DIFFERENCE
    assert (after.version, after.digest, after.num_loaded) == (
        2,
        new.manifest.digest,
        len(new.manifest.names),
    )
    assert verify_receipt(new, after, TOLERANCE) <= MAX_DIFFERENCE
    assert ray.get(engine.actor.ping.remote())["version"] == 2

    (request,) = requests(1)
    (trajectory,) = generate(engine.actor, [request])
    policy = perturbed(engine.initial, 1)
    assert (
        response_difference(policy, request, trajectory.response_ids, trajectory.response_logprobs)
        <= MAX_DIFFERENCE
    )
    assert trajectory.policy_version == 2


def test_many_versions_in_a_row(engine: Engine) -> None:
    for version in range(3, 7):
        published = publish(perturbed(engine.initial, version), version)
        assert verify_receipt(published, pull(engine.actor, published), TOLERANCE) <= MAX_DIFFERENCE


def test_a_prompt_does_not_go_on_from_kv_blocks_of_old_weights(qwen: Engine, fault: None) -> None:
    """The prompt's 100 tokens fill three blocks of 32; without the reset the second prompt reuses
    them.
    """
    (request,) = requests(1, length=100)
    new = perturbed(qwen.initial, 8)

    def difference_after_pull(version: int) -> float:
        pull(qwen.actor, publish(qwen.initial, 1))
        generate(qwen.actor, [request])
        if version == 9:
            damage(qwen, "keep prefix cache")
        pull(qwen.actor, publish(new, version))
        (trajectory,) = generate(qwen.actor, [request])
        return response_difference(new, request, trajectory.response_ids, trajectory.response_logprobs)

    assert difference_after_pull(8) <= MAX_DIFFERENCE
    assert difference_after_pull(9) > 0.1  # the test would see a stale cache


def test_a_pull_in_mid_generation_switches_at_one_token(engine: Engine) -> None:
    """Tokens before the switch carry the old weights' log-probs, those after it the new weights' on
    the whole context.
    """
    old, new = engine.initial, perturbed(engine.initial, 11)
    pull(engine.actor, publish(old, 10))
    batch = requests(8, tag="switch")
    begun = ray.get(engine.actor.ping.remote())["tokens_generated"]
    arriving = stream(engine.actor, batch, max_tokens=450, stop=())
    wait_until(engine.actor, "tokens_generated", begun + 100)
    receipt = pull(engine.actor, publish(new, 11))
    assert largest_difference(receipt.probe_logprobs, publish(new, 11).probe_logprobs) <= MAX_DIFFERENCE
    by_id = {request.request_id: request for request in batch}
    crossed = 0
    for trajectory in arriving:
        assert trajectory.policy_version == 10
        request = by_id[trajectory.request_id]
        context, start = [*request.token_ids, *trajectory.response_ids], len(request.token_ids) - 1
        under_old, under_new = exact_logprobs(old, context)[start:], exact_logprobs(new, context)[start:]
        is_old = [
            abs(a - b) <= MAX_DIFFERENCE for a, b in zip(trajectory.response_logprobs, under_old, strict=True)
        ]
        is_new = [
            abs(a - b) <= MAX_DIFFERENCE for a, b in zip(trajectory.response_logprobs, under_new, strict=True)
        ]
        if trajectory.policy_version_end == 10:
            assert all(is_old)
            continue
        crossed += 1
        switch = is_old.index(False)
        assert 0 < switch < len(context) and all(is_new[switch:])
    assert crossed >= 4


def test_the_tied_head_is_repacked(qwen: Engine, fault: None) -> None:
    """Without it digest and count are right and the model is wrong: only the probe tells."""
    pull(qwen.actor, publish(qwen.initial, 20))
    damage(qwen, "leave head packed")
    published = publish(perturbed(qwen.initial, 21), 21)
    receipt = pull(qwen.actor, published)
    assert receipt.digest == published.manifest.digest and receipt.num_loaded == len(published.manifest.names)
    with pytest.raises(WeightMismatch, match="log-probs of the probe differ from the learner's by"):
        verify_receipt(published, receipt, TOLERANCE)


def test_a_flipped_bit_shows_in_the_digest(engine: Engine) -> None:
    published = publish(engine.initial, 30)
    flipped = published.handle.copy()
    flipped[12345] ^= 1
    receipt = pull(engine.actor, dataclasses.replace(published, handle=flipped))
    with pytest.raises(WeightMismatch, match="bytes changed on the way"):
        verify_receipt(published, receipt, TOLERANCE)


def test_a_reused_buffer_and_an_old_version_show_in_the_digest(engine: Engine) -> None:
    published, following = publish(engine.initial, 31), publish(perturbed(engine.initial, 32), 32)
    reused = dataclasses.replace(published, handle=following.handle)
    with pytest.raises(WeightMismatch, match="digest of version 31"):
        verify_receipt(published, pull(engine.actor, reused), TOLERANCE)
    stale = pull(engine.actor, published)
    with pytest.raises(WeightMismatch, match="serves policy version 31, the learner published 32"):
        verify_receipt(following, stale, TOLERANCE)


def test_a_layer_that_the_model_skips_shows_in_the_count(qwen: Engine, fault: None) -> None:
    published = publish(perturbed(qwen.initial, 40), 40)
    damage(qwen, "skip a layer")
    receipt = pull(qwen.actor, published)
    assert receipt.num_loaded == len(published.manifest.names) - 1
    assert largest_difference(receipt.probe_logprobs, published.probe_logprobs) > 0.1
    with pytest.raises(WeightMismatch, match="loaded 25 of 26 parameters"):
        verify_receipt(published, receipt, TOLERANCE)


class Kept(RayRolloutWorker):
    """The engine of the session: other tests need it when the fleet has given it up."""

    async def close(self) -> None:
        pass


class OneEngineFleet:
    """The real fleet over one real engine, without a second chance."""

    def __init__(self, engine: Engine) -> None:
        self.events: list[tuple[str, str]] = []
        settings = RolloutSettings(workers=1, max_restarts=0)
        tell = self.events.append
        self.fleet = RolloutFleet(
            self._spawn,
            settings=settings,
            tolerance=TOLERANCE,
            on_event=lambda kind, message: tell((kind, message)),
        )
        self._engine = engine

    async def _spawn(self, name: str) -> Kept:
        return Kept(name, self._engine.actor, pull_timeout_s=120)

    async def sync(self, *versions: PublishedWeights) -> None:
        """One sync after another, and what the fleet has to say then."""
        await self.fleet.start()
        for published in versions:
            await self.fleet.sync(published)
            await asyncio.sleep(0)
        # the loss is booked at once, its member is retired in the background
        await asyncio.sleep(0.1)
        self.states = [worker.state for worker in self.fleet.view()]
        await self.fleet.close()


def test_good_versions_pass_the_fleet(engine: Engine) -> None:
    one = OneEngineFleet(engine)
    asyncio.run(one.sync(publish(engine.initial, 60), publish(perturbed(engine.initial, 61), 61)))
    assert (one.states, one.events) == (["HEALTHY"], [])


@pytest.mark.parametrize(
    ("injected", "said"),
    [
        ("a flipped bit", "digest of version 71 is .* bytes changed on the way"),
        ("a reused buffer", "digest of version 71 is .* bytes changed on the way"),
        ("skip a layer", "loaded 25 of 26 parameters of version 71"),
        ("stay behind", "digest of version 71 is .* bytes changed on the way"),
        ("leave head packed", "log-probs of the probe differ .* does not compute with the published weights"),
    ],
)
def test_every_fault_is_detected_in_the_sync_that_causes_it(
    qwen: Engine, fault: None, injected: str, said: str
) -> None:
    good, bad = publish(qwen.initial, 70), publish(perturbed(qwen.initial, 71), 71)
    pull(qwen.actor, good)
    if injected == "a flipped bit":
        flipped = bad.handle.copy()
        flipped[54321] ^= 4
        bad = dataclasses.replace(bad, handle=flipped)
    elif injected == "a reused buffer":  # the next version's bytes under this one's manifest
        bad = dataclasses.replace(bad, handle=publish(perturbed(qwen.initial, 72), 72).handle)
    else:
        damage(qwen, injected)
    one = OneEngineFleet(qwen)
    asyncio.run(one.sync(bad))
    assert one.states == ["RETIRED"]
    assert re.search(f"rollout-qwen: {said}", dict(one.events)["worker-lost"]), one.events


def changed(published: PublishedWeights, **fields: object) -> PublishedWeights:
    return dataclasses.replace(published, manifest=dataclasses.replace(published.manifest, **fields))


def without(published: PublishedWeights, index: int) -> PublishedWeights:
    manifest = published.manifest
    kept = [i for i in range(len(manifest.names)) if i != index]
    return changed(
        published, **{f: tuple(getattr(manifest, f)[i] for i in kept) for f in ("names", "shapes", "offsets")}
    )


def test_an_update_that_does_not_fit_is_refused_and_changes_nothing(engine: Engine) -> None:
    served = publish(engine.initial, 50)
    pull(engine.actor, served)
    good = publish(perturbed(engine.initial, 51), 51)
    names, shapes, offsets, end = (
        good.manifest.names,
        good.manifest.shapes,
        good.manifest.offsets,
        good.manifest.num_bytes,
    )
    one_more = changed(
        good, names=(*names, "made.up"), shapes=(*shapes, (1,)), offsets=(*offsets, end), num_bytes=end + 4
    )
    refused = {
        rf"1 of the model's {len(names)} parameters are missing: {names[3]}": without(good, 3),
        "1 names are no parameter of the model: made.up": one_more,
        "overlap in the buffer": changed(good, offsets=(*offsets[:1], 0, *offsets[2:])),
        f"named more than once: {names[0]}": changed(good, names=(names[0], names[0], *names[2:])),
        r"has shape \(64, 96\), the model's is \(96, 64\)": changed(good, shapes=((64, 96), *shapes[1:])),
        "the manifest says": dataclasses.replace(good, handle=good.handle[:-4]),
    }
    for message, published in refused.items():
        with pytest.raises(WeightsRefused, match=message):
            pull(engine.actor, published)
    assert ray.get(engine.actor.ping.remote())["version"] == 50
    (request,) = requests(1)
    (trajectory,) = generate(engine.actor, [request])
    assert (
        response_difference(engine.initial, request, trajectory.response_ids, trajectory.response_logprobs)
        <= MAX_DIFFERENCE
    )
    assert verify_receipt(good, pull(engine.actor, good), TOLERANCE) <= MAX_DIFFERENCE


@pytest.mark.slow
def test_memory_that_stays_behind_after_loading_is_found(ray_cluster: Any, tmp_path: Path) -> None:
    """One bit of one of the parts of a fused parameter: the probe cannot see it."""
    model = untied_llama()
    model.save_pretrained(tmp_path)
    engine = start_engine("rollout-readable", tmp_path, kind=ReadableWorker)
    ray_cluster.get(engine.ready.remote(), timeout=240)
    first = publish(model, 1)
    verify_receipt(first, pull(engine, first), TOLERANCE)
    ray.get(engine.damage.remote("keep old memory"))
    weight = model.get_parameter("model.layers.1.self_attn.q_proj.weight").data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    second = publish(model, 2)
    receipt = pull(engine, second)
    assert receipt.digest == second.manifest.digest
    assert probe_difference(second, receipt)[0] < 1e-4
    count = len(second.manifest.names)
    with pytest.raises(WeightMismatch, match=f"loaded {count - 1} of {count} parameters"):
        verify_receipt(second, receipt, TOLERANCE)
    ray_cluster.kill(engine)


@pytest.mark.slow
def test_an_engine_serves_bfloat16_on_a_cpu(ray_cluster: Any, tmp_path: Path) -> None:
    """With AMX, where the CPU has it."""
    model = untied_llama()
    model.save_pretrained(tmp_path)
    engine = start_engine("rollout-bfloat16", tmp_path, dtype="bfloat16")
    ray_cluster.get(engine.ready.remote(), timeout=240)
    published = publish(model, 1)
    assert probe_difference(published, pull(engine, published))[1] < 1
    ray_cluster.kill(engine)
