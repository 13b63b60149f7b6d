"""Every shipped recipe loads, has the documented numbers, and survives a dump and reload."""

from __future__ import annotations

import pytest
import yaml

from sppo_ray.cli.main import main
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import dump_config, load_config, parse_config, recipe_names

PAPER = ("paper-1.5b", "paper-7b", "paper-7b-small-critic")

# recipe in which roles take turns: (GPUs, the recipe with the same settings otherwise)
COLOCATED = {
    "colocated-1gpu": (1, "paper-1.5b"),
    "colocated-4gpu": (4, "paper-1.5b"),
    "colocated-8gpu": (8, "paper-7b"),
}


def test_the_recipes_that_ship() -> None:
    tasks = ("calculator-tool", "guess-number", "preference")
    others = ("quickstart", "long-sum", "register-machine", "smollm2-arithmetic", *tasks)
    assert recipe_names() == sorted([*PAPER, *COLOCATED, *others])


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_run_dry(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs_files = name in (*PAPER, *COLOCATED)  # names of models and data to be given
    assert main(["train", name, "--dry-run", "--seed=5"]) == (2 if needs_files else 0)
    printed = capsys.readouterr().out
    assert parse_config(yaml.safe_load(printed)).seed == 5  # the derived numbers are YAML comments
    assert "# samples a step" in printed


def test_quickstart() -> None:
    config = load_config("quickstart")
    derived = config.derived()
    assert derived["minibatches a step (optimizer steps)"] == 4  # 256 / 64
    assert derived["optimizer steps in all"] == 240  # 4 * 60
    assert derived["samples in all"] == 15_360  # 256 * 60
    assert derived["context of an engine (tokens)"] == 120  # 40 + 80
    assert derived["GPUs"] == 0
    assert config.logical_cpus() <= 2  # what a bare machine has
    # on the two sides of the split
    assert config.data.train[0].seed < 1_000_000 <= config.data.held_out[0].seed


def test_register_machine() -> None:
    config = load_config("register-machine")
    derived = config.derived()
    assert derived["samples in all"] == 7_680  # 128 * 60
    assert derived["optimizer steps in all"] == 240  # 128 / 32 * 60
    assert derived["context of an engine (tokens)"] == 672  # 32 + 640, for 22 + 599
    assert config.logical_cpus() <= 2
    assert config.data.train[0].seed < 1_000_000 <= config.data.held_out[0].seed


def test_preference() -> None:
    config = load_config("preference")
    assert config.derived()["samples in all"] == 5_120  # 128 * 40
    assert config.logical_cpus() <= 2.1
    assert config.reward.range == (0.0, 1.0) and config.reward.watched == ("truth",)
    assert [model.model for model in config.reward.models] == ["builtin:vowels-reward"]
    assert config.data.train[0].seed < 1_000_000 <= config.data.held_out[0].seed


# The paper's table of settings, spelled out again.
PUBLISHED = {
    # prompts, minibatch, critic lr, weight decay, max prompt tokens
    "paper-1.5b": (256, 128, 5e-6, 0.01, 1024),
    "paper-7b": (512, 32, 1e-5, 0.1, 2048),
    "paper-7b-small-critic": (512, 32, 1e-5, 0.1, 2048),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_hold_the_published_settings(name: str) -> None:
    config = load_config(name)
    data, learner, critic = config.data, config.learner, config.critic
    prompts, minibatch, critic_lr, weight_decay, max_prompt = PUBLISHED[name]
    assert (data.prompts_per_step, data.minibatch_size, data.max_prompt_tokens) == (
        prompts,
        minibatch,
        max_prompt,
    )
    assert (critic.optimizer.lr, critic.optimizer.weight_decay) == (critic_lr, weight_decay)
    assert learner.optimizer.lr == 1e-6
    assert learner.optimizer.weight_decay == critic.optimizer.weight_decay
    assert (config.rollout.max_response_tokens, config.rollout.temperature) == (8192, 0.6)
    assert (data.samples_per_prompt, critic.warmup_steps) == (1, 0)
    assert (config.algorithm.clip_low, config.algorithm.clip_high, config.algorithm.loss_aggregation) == (
        0.2,
        0.2,
        "token-mean",
    )
    assert config.eval.samples_per_prompt == 16  # results are average@16
    assert config.loop.max_staleness == 0
    assert {learner.dtype, critic.dtype, config.rollout.dtype} == {"bfloat16"}


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_fit_four_gpus_one_role_each(name: str) -> None:
    config = load_config(name)
    assert config.logical_gpus() == 4.0
    # Ranks of one group must not meet on a GPU: no fractions.
    assert {config.rollout.gpus_per_worker, config.learner.gpus_per_rank, config.critic.gpus_per_rank} == {
        1.0
    }


@pytest.mark.parametrize(
    ("name", "learner_rank", "critic_rank"),
    [
        # 16 bytes a parameter (bfloat16 weights and gradients, float32 master weights and two
        # moments): 1.5B on one GPU
        ("paper-1.5b", 25, 25),
        # offloaded AdamW: 2 bytes of weights, and 2 of gradients sharded over the ranks (ZeRO-2):
        # 7.6 * (2 + 2/2), 7.6 * (2 + 2)
        ("paper-7b", 23, 31),
        ("paper-7b-small-critic", 23, 25),
    ],
)
def test_paper_recipes_leave_an_80_gb_gpu_room_for_activations(
    name: str, learner_rank: float, critic_rank: float
) -> None:
    config = load_config(name)
    assert _gigabytes(config, "learner") == pytest.approx(learner_rank, abs=1)
    assert _gigabytes(config, "critic") == pytest.approx(critic_rank, abs=1)


def _gigabytes(config: RunConfig, role: str) -> float:
    """Bytes of weights, gradients and optimizer state on one rank, in GB."""
    settings = getattr(config, role)
    billions = 1.54 if "1.5B" in settings.model else 7.6
    gradients = 2 / (settings.ranks if settings.zero_stage >= 2 else 1)
    states = 0 if settings.offload_optimizer else 12 / (settings.ranks if settings.zero_stage >= 1 else 1)
    return billions * (2 + gradients + states)


@pytest.mark.parametrize(
    ("name", "optimizer_steps_a_step", "context"),
    [
        ("paper-1.5b", 2, 9216),  # 256 / 128, 1024 + 8192
        ("paper-7b", 16, 10240),  # 512 / 32, 2048 + 8192
        ("paper-7b-small-critic", 16, 10240),
    ],
)
def test_paper_recipes_derived_numbers(name: str, optimizer_steps_a_step: int, context: int) -> None:
    derived = load_config(name).derived()
    assert derived["minibatches a step (optimizer steps)"] == optimizer_steps_a_step
    assert derived["context of an engine (tokens)"] == context


def test_the_small_critic_differs_from_the_7b_run_in_nothing_but_the_critic() -> None:
    large, small = load_config("paper-7b"), load_config("paper-7b-small-critic")
    differing = {name for name in RunConfig.model_fields if getattr(large, name) != getattr(small, name)}
    assert differing == {"name", "critic"}
    assert "1.5B" in small.critic.model and "7B" in large.critic.model


def test_smollm2_arithmetic() -> None:
    config = load_config("smollm2-arithmetic")
    derived = config.derived()
    assert derived["samples in all"] == 2560  # 64 * 40
    assert derived["optimizer steps in all"] == 80  # 64 / 32 * 40
    assert derived["context of an engine (tokens)"] == 120  # 96 + 24
    # Learner and engine take turns on both cores: 2 + 2 + 0.25 + 0.1 logical CPUs, which the
    # recipe's own cluster has.
    assert config.logical_cpus() == 4.35 and config.cluster.local_cpus == 5
    train, held_out = config.data.train[0], config.data.held_out[0]
    # reasoning-gym seeds row i with seed + i: two seeds closer than the sizes would draw the very
    # same problems.
    assert held_out.seed - train.seed >= train.size
    assert held_out.options == train.options
    # problems that both draw by chance are left out of training
    assert config.data.held_out_overlap == "refuse"


@pytest.mark.parametrize("name", COLOCATED)
def test_colocated_recipes_are_the_papers_on_as_many_gpus(name: str) -> None:
    gpus, paper = COLOCATED[name]
    config, other = load_config(name), load_config(paper)
    assert config.cluster.layout == "colocated"
    assert [config.rollout.workers, config.learner.ranks, config.critic.ranks] == [gpus] * 3
    assert config.logical_gpus() == gpus
    assert (config.algorithm, config.data, config.loop) == (other.algorithm, other.data, other.loop)
    for ours, theirs in ((config.learner, other.learner), (config.critic, other.critic)):
        assert (ours.model, ours.optimizer) == (theirs.model, theirs.optimizer)
        assert (ours.zero_stage, ours.offload_optimizer) == (2, False)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_can_be_overlapped(name: str) -> None:
    assert load_config(name, ["--loop.max_staleness=1"]).loop.max_staleness == 1
