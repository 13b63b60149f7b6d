"""Defaults by the device of a role, and GPU shares that cannot work."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from sppo_ray.cli.main import main
from sppo_ray.config import CriticSettings, LearnerSettings, ReferenceSettings, RolloutSettings, RunConfig
from sppo_ray.config.devices import DEFAULTS
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.config.loading import dump_config, load_config, parse_config
from sppo_ray.errors import UserError

ALL_ON_GPUS = ("--rollout.gpus_per_worker=1", "--learner.gpus_per_rank=1", "--critic.gpus_per_rank=1")


def quickstart(*overrides: str, device: str = "auto") -> RunConfig:
    return load_config("quickstart", [f"--device={device}", *overrides])


def refusal(*overrides: str, device: str = "auto") -> str:
    with pytest.raises(UserError) as caught:
        quickstart(*overrides, device=device)
    return str(caught.value)


def test_the_defaults_of_a_cpu_run() -> None:
    rollout, learner = RolloutSettings(), LearnerSettings(model="m")
    assert (rollout.dtype, rollout.enforce_eager, rollout.async_scheduling) == ("float32", True, False)
    assert rollout.kv_cache_gib == 1.0
    assert (learner.dtype, learner.attention) == ("float32", "sdpa")
    assert CriticSettings(model="m").dtype == ReferenceSettings().dtype == "float32"


def test_the_defaults_of_a_gpu_run() -> None:
    rollout = RolloutSettings(gpus_per_worker=1)
    learner = LearnerSettings(model="m", gpus_per_rank=1)
    assert (rollout.dtype, rollout.enforce_eager, rollout.async_scheduling) == ("bfloat16", False, True)
    assert rollout.kv_cache_gib is None  # vLLM measures it
    assert (learner.dtype, learner.attention) == ("bfloat16", "flash_attention_2")
    assert CriticSettings(model="m", gpus_per_rank=1).dtype == "bfloat16"
    assert ReferenceSettings(gpus_per_rank=1).dtype == "bfloat16"


def test_each_role_has_the_defaults_of_its_own_device() -> None:
    config = quickstart("--rollout.gpus_per_worker=1", "--learner.gpus_per_rank=1")
    assert (config.learner.dtype, config.critic.dtype) == ("bfloat16", "float32")


def test_a_given_setting_wins() -> None:
    given = {"dtype": "float32", "enforce_eager": True, "async_scheduling": False, "kv_cache_gib": 3.0}
    rollout = RolloutSettings(gpus_per_worker=1, **given)
    assert given.items() <= rollout.model_dump().items()
    assert LearnerSettings(model="m", dtype="bfloat16").dtype == "bfloat16"
    assert LearnerSettings(model="m", gpus_per_rank=1, attention="sdpa").attention == "sdpa"


@pytest.mark.parametrize("value", [None, "auto"])
def test_null_and_auto_attention_are_by_the_device(value: str | None) -> None:
    assert LearnerSettings(model="m", gpus_per_rank=1, attention=value).attention == "flash_attention_2"
    # the flash kernel reads half precision only
    in_float32 = LearnerSettings(model="m", gpus_per_rank=1, dtype="float32", attention=value)
    assert in_float32.attention == "sdpa"


def test_every_setting_of_the_table_is_null_by_default_in_every_section() -> None:
    sections = (RolloutSettings, LearnerSettings, CriticSettings, ReferenceSettings)
    found = {
        name
        for section in sections
        for name, field in section.model_fields.items()
        if field.default is None and name in DEFAULTS
    }
    assert found == DEFAULTS.keys()


@pytest.mark.parametrize("overrides", [(), ALL_ON_GPUS])
def test_the_resolved_values_are_printed_and_read_back(
    overrides: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "quickstart", "--device=auto", *overrides, "--dry-run"])
    printed = yaml.safe_load(capsys.readouterr().out)
    config = quickstart(*overrides)
    assert printed == yaml.safe_load(dump_config(config))
    assert printed["rollout"]["dtype"] == ("bfloat16" if overrides else "float32")
    assert parse_config(printed) == config


@pytest.mark.parametrize("role", ["learner.gpus_per_rank", "critic.gpus_per_rank", "rollout.gpus_per_worker"])
def test_device_cuda_needs_gpus_for_every_role_that_is_loaded(role: str) -> None:
    others = [share for share in ALL_ON_GPUS if role not in share]
    assert f"device is cuda, but {role} is 0" in refusal(*others, device="cuda")


def test_device_cuda_does_not_ask_for_gpus_of_roles_that_are_not_loaded() -> None:
    config = quickstart(*ALL_ON_GPUS[:2], "--algorithm={type: reinforce}", device="cuda")
    assert config.critic.gpus_per_rank == 0
    message = refusal(*ALL_ON_GPUS, "--algorithm.kl.coefficient=0.1", device="cuda")
    assert "device is cuda, but reference.gpus_per_rank is 0" in message


def test_an_engine_without_gpus_beside_ranks_with_gpus_is_refused() -> None:
    assert "rollout.gpus_per_worker is 0: give each engine its GPUs" in refusal("--learner.gpus_per_rank=1")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--learner.gpus_per_rank=2"], "learner.gpus_per_rank is 2, and a rank uses one GPU: set it to 1"),
        (["--critic.gpus_per_rank=1.5"], "critic.gpus_per_rank is 1.5, and a rank uses one GPU"),
        (
            ["--learner.ranks=2", "--learner.gpus_per_rank=0.5"],
            "two of the 2 ranks could share a GPU, which NCCL refuses: set it to 1, or ranks to 1",
        ),
        (["--rollout.gpus_per_worker=2"], "rollout.tensor_parallel_size 1 uses 1: set both"),
        (["--rollout.tensor_parallel_size=2"], "rollout.tensor_parallel_size 2 uses 2: set both"),
        (
            ["--rollout.tensor_parallel_size=2", "--rollout.gpus_per_worker=0.5"],
            "rollout.tensor_parallel_size 2 uses 2: set both",
        ),
        (["--rollout.gpus_per_worker=0.5"], "shares its GPU, and cannot measure"),
    ],
)
def test_gpu_shares_that_cannot_work_are_refused(overrides: list[str], told: str) -> None:
    assert told in refusal(*ALL_ON_GPUS, *overrides)


def test_one_gpu_may_be_shared_with_a_kv_cache_of_a_given_size() -> None:
    shares = ["--rollout.gpus_per_worker=0.4", "--learner.gpus_per_rank=0.3", "--critic.gpus_per_rank=0.3"]
    config = quickstart(*shares, "--rollout.kv_cache_gib=8", device="cuda")
    assert config.rollout.kv_cache_gib == 8.0 and config.logical_gpus() == 1.0


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--learner.attention=flash_attention_2", "bfloat16 only: set learner.dtype to bfloat16"),
        ("--rollout.async_scheduling=true", "on GPUs only: set it to null"),
    ],
)
def test_what_only_a_gpu_can_do_is_refused_on_a_cpu(override: str, told: str) -> None:
    assert told in refusal(override)


def test_the_flash_kernel_is_refused_on_a_cpu() -> None:
    message = refusal("--learner.attention=flash_attention_2", "--learner.dtype=bfloat16")
    assert "works on GPUs only: set learner.gpus_per_rank to 1, or attention to sdpa" in message


def test_an_evaluation_checks_its_engine_in_the_same_way() -> None:
    tree: dict[str, Any] = {"model": "m", "data": {"held_out": [{"type": "running-sum"}]}}
    with pytest.raises(ValueError, match="shares its GPU"):
        EvaluationConfig.model_validate(tree | {"rollout": {"gpus_per_worker": 0.5}})
    whole = EvaluationConfig.model_validate(tree | {"rollout": {"gpus_per_worker": 1}})
    assert whole.rollout.async_scheduling
