"""`cluster.layout`: what cannot share GPUs in turns is refused with the remedy."""

from __future__ import annotations

import pytest

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.trainer.checkpoint import resumable_settings

COLOCATED = "--cluster.layout=colocated"
ON_GPUS = (
    "--device=cuda",
    "--rollout.gpus_per_worker=1",
    "--learner.gpus_per_rank=1",
    "--critic.gpus_per_rank=1",
    "--rollout.kv_cache_gib=24",
)


def quickstart(*overrides: str) -> RunConfig:
    return load_config("quickstart", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["--loop.max_staleness=1"], "loop.max_staleness 1 cannot overlap them: set it to 0"),
        (
            ["--rollout.max_workers=2", "--rollout.autoscale.every_s=10"],
            "their number is fixed: set rollout.autoscale to null",
        ),
        (["--rollout.tensor_parallel_size=2"], "set rollout.tensor_parallel_size to 1"),
        (["--algorithm.kl.coefficient=0.1"], "set algorithm.kl.coefficient to 0"),
        (["--rollout.workers=2"], "learner.ranks is 1, and must equal rollout.workers 2"),
        (["--critic.ranks=2"], "critic.ranks is 2, and must be at most rollout.workers 1"),
        (["--learner.zero_stage=3"], "learner.zero_stage 3 cannot be moved away and back: set it to 2"),
        (["--weight_sync.transport=nccl"], "nccl, which refuses two processes on one GPU"),
        (["--learner.lora.rank=8"], "it has not been tried with learner.lora"),
        (["--critic.zero_stage=3"], "critic.zero_stage 3 cannot be moved"),
        ([*ON_GPUS, "--rollout.kv_cache_gib=null"], "set rollout.kv_cache_gib, e.g. to 24"),
        ([*ON_GPUS, "--learner.gpus_per_rank=0.5"], "in its turn each has the whole GPU: set both to 1"),
    ],
)
def test_what_cannot_take_turns_is_refused(overrides: list[str], remedy: str) -> None:
    with pytest.raises(UserError) as refused:
        quickstart(COLOCATED, *overrides)
    assert remedy in " ".join(str(refused.value).split())


def test_a_smaller_critic_may_use_fewer_gpus() -> None:
    config = quickstart(COLOCATED, *ON_GPUS, "--rollout.workers=4", "--learner.ranks=4", "--critic.ranks=2")
    assert config.logical_gpus() == 4
    assert config.device == "cuda"


def test_a_run_can_be_resumed_in_another_layout() -> None:
    assert resumable_settings(quickstart(COLOCATED)) == resumable_settings(quickstart())


def test_the_default_is_separate() -> None:
    assert quickstart().cluster.layout == "separate"
