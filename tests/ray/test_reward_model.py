"""Reward models in actors of their own: scores, replicas, errors, memory, and the loss of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.reward import RewardActor
from actors.reward_client import RayRewardClient
from actors.reward_model import RewardModelActor
from sppo_ray.config import ModelReward, RecoverySettings, RewardSettings, SigmoidTransform
from sppo_ray.errors import UserError
from sppo_ray.models.reward_model import RewardModel
from sppo_ray.planning.resources import reward_model_names
from sppo_ray.protocols import WorkerDied, WorkerFailure
from sppo_ray.rewards.model import conversation_of, reward_of
from sppo_ray.types import ScoreRequest
from tests.training_data import save_llama
from tests.unit.models.test_reward_model import save

pytestmark = pytest.mark.slow  # half a minute: three processes that import torch

REQUESTS = [ScoreRequest(text, "", "test", f"a{n}b5=", {}) for n in range(5) for text in ("12", "a+7=07;")]


@pytest.fixture
def start(ray_cluster: Any) -> Iterator[Any]:
    """Starts a reward actor with its models, as the actor factory does."""
    clients: list[RayRewardClient] = []

    def start_client(function: ModelReward) -> RayRewardClient:
        settings = RewardSettings(function=function)
        models = {
            name: RewardModelActor.options(num_cpus=0.1).remote(name, function, model_path=function.model)
            for name in reward_model_names(settings)[0]
        }
        actor = RewardActor.options(num_cpus=0.1).remote("reward", settings, models=[list(models.values())])
        clients.append(RayRewardClient(actor, deadline_s=10.0, models=models))
        return clients[-1]

    yield start_client
    for client in clients:
        client.kill()


def test_replicas_score_as_the_model_does_and_the_loss_of_one_is_found(
    ray_cluster: Any, start: Any, tmp_path: Path
) -> None:
    function = ModelReward(model=str(save(tmp_path)), transform=SigmoidTransform(), replicas=2)
    client = start(function)

    async def use() -> WorkerFailure:
        await client.ready(120)
        verdicts = await client.score(REQUESTS)
        scores = RewardModel(tmp_path, function).score([conversation_of(one) for one in REQUESTS])
        assert [verdict.parts["score"] for verdict in verdicts] == pytest.approx(scores, abs=1e-5)
        expected = [reward_of(float(score), function.transform) for score in scores]
        assert [verdict.reward for verdict in verdicts] == pytest.approx(expected, abs=1e-5)
        assert set(await client.memory()) == {"reward", "reward-model-0-0", "reward-model-0-1"}
        watch = asyncio.ensure_future(client.watch(RecoverySettings(probe_every_s=0.1)))
        ray_cluster.kill(client._models["reward-model-0-1"])
        with pytest.raises(WorkerDied) as lost:
            await asyncio.wait_for(watch, 60)
        with pytest.raises(WorkerFailure):  # so the role is not kept: `WorkerManager.reset`
            await client.memory()
        return lost.value

    failure = asyncio.run(use())
    assert (failure.worker, failure.role) == ("reward-model-0-1", "reward")


def test_a_causal_language_model_is_refused_by_name(start: Any, tmp_path: Path) -> None:
    client = start(ModelReward(model=str(save_llama(tmp_path))))
    with pytest.raises(UserError, match="reward-model-0-0: reward model .* has 2 outputs"):
        asyncio.run(client.ready(120))
