"""The configuration: refused settings with their remedy, and derived numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import (
    dump_config,
    load_config,
    parse_config,
    parse_reward_settings,
    recipe_names,
)
from sppo_ray.errors import UserError

MINIMAL: dict[str, Any] = {
    "data": {
        "train": [{"type": "running-sum"}],
        "max_prompt_tokens": 40,
        "prompts_per_step": 256,
        "minibatch_size": 64,
    },
    "learner": {"model": "builtin:running-sum"},
    "critic": {"model": "builtin:running-sum"},
    "rollout": {"max_response_tokens": 80},
}


def config_with(**overrides: Any) -> RunConfig:
    """MINIMAL with settings replaced; `data__minibatch_size=3` means data.minibatch_size."""
    tree = copy.deepcopy(MINIMAL)
    for key, value in overrides.items():
        *parents, leaf = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return parse_config(tree)


def refusal(**overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        config_with(**overrides)
    return str(caught.value)


# ------------------------------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("overrides", "where", "nearest"),
    [
        ({"seeed": 1}, "seeed", "seed"),
        ({"data__prompt_per_step": 8}, "data.prompt_per_step", "prompts_per_step"),
        (
            {"learner__optimizer": {"learning_rate": 1, "weight_decai": 0.1}},
            "learner.optimizer.weight_decai",
            "weight_decay",
        ),
        ({"rollout__worker": 2}, "rollout.worker", "workers"),
        ({"algorithm": {"type": "sppo", "clip_hi": 0.3}}, "clip_hi", "clip_high"),
        ({"data__train": [{"type": "running-sum", "max_operand": 4}]}, "max_operand", "max_operands"),
        ({"reward__function": {"type": "reasoning-gym", "fullonly": True}}, "fullonly", "full_only"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_valid_one(
    overrides: dict[str, Any], where: str, nearest: str
) -> None:
    message = refusal(**overrides)
    assert where in message
    assert f"unknown setting; did you mean {nearest}?" in message


def test_an_unknown_key_that_is_near_to_nothing_lists_what_is_valid_there() -> None:
    message = refusal(loop__zzz=1)
    assert "loop.zzz: unknown setting; valid here: budget_s, max_staleness, minibatch_order, steps" in message


def test_several_mistakes_are_told_at_once() -> None:
    message = refusal(seeed=1, loop__step=3)
    assert "seeed" in message and "loop.step" in message


def test_a_missing_section_is_named() -> None:
    with pytest.raises(UserError, match=r"learner: Field required"):
        parse_config({"data": MINIMAL["data"], "critic": MINIMAL["critic"]})


# ------------------------------------------------------------------------------ impossible settings


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"data__train": []}, ["names no data source", "give at least one"]),
        ({"data__minibatch_size": 60}, ["minibatch_size 60 does not divide the 256 samples", "32", "64"]),
        ({"learner__ranks": 65}, ["learner.ranks 65 exceeds data.minibatch_size 64", "lower the ranks"]),
        (
            {"learner__max_tokens_per_microbatch": 119},
            ["119 is less than the longest sample, 120 tokens", "raise it"],
        ),
        (
            {"critic__max_tokens_per_microbatch": 39},
            ["39 is less than data.max_prompt_tokens 40", "raise it"],
        ),
        (
            {"algorithm": {"type": "ppo", "ratio": "sequence"}},
            ["only the sum of their advantages", "set ratio to token"],
        ),
        ({"algorithm": {"importance_cap": 2.0}}, ["importance_cap", "set old_logprobs to learner"]),
        (
            {"reward__function": {"type": "custom", "function": "a:b", "range": [-1.0, 1.0]}},
            ["[-1, 1]", "needs rewards in [0, 1]", "rescale"],
        ),
        (
            {"reward__function": {"type": "custom", "function": "a:b", "range": [0.0, 2.0]}},
            ["needs rewards in [0, 1]"],
        ),
        (
            {"reward__function": {"type": "custom", "function": "a:b", "range": [1.0, 0.0]}},
            ["[1.0, 0.0]", "the lowest reward first"],
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(overrides: dict[str, Any], told: list[str]) -> None:
    message = refusal(**overrides)
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        (
            {"workers": 1, "min_workers": 2},
            "workers 1 is less than min_workers 2: raise workers or lower min_workers",
        ),
        (
            {"workers": 3, "max_workers": 2},
            "workers 3 is more than max_workers 2: lower workers or raise max_workers",
        ),
        ({"autoscale": {}}, "autoscale without max_workers could take the whole cluster: set max_workers"),
        (
            {"max_workers": 2, "autoscale": {"idle_below": 0.5}},
            "idle_below 0.5 is not less than busy_above 0.5",
        ),
    ],
)
def test_bounds_of_scaling_that_cannot_hold_are_refused(rollout: dict[str, Any], told: str) -> None:
    assert told in refusal(**{f"rollout__{name}": value for name, value in rollout.items()})


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"data__prompts_per_step": 0}, "data.prompts_per_step"),
        ({"learner__optimizer": {"lr": 0}}, "learner.optimizer.lr"),
        ({"learner__optimizer": {"betas": [0.9, 1.5]}}, "learner.optimizer.betas.1"),
        ({"learner__zero_stage": 4}, "learner.zero_stage"),
        ({"rollout__temperature": 0}, "rollout.temperature"),
        ({"rollout__gpu_memory_utilization": 1.2}, "rollout.gpu_memory_utilization"),
        ({"rollout__workers": 0}, "rollout.workers"),
        ({"rollout__dtype": "float16"}, "rollout.dtype"),
        ({"loop__max_staleness": -1}, "loop.max_staleness"),
        ({"reward__max_error_rate": 1.1}, "reward.max_error_rate"),
        ({"device": "tpu"}, "device"),
        ({"algorithm": {"type": "sppo", "clip_low": 1.0}}, "clip_low"),
        ({"data__train": [{"type": "running-sum", "max_operands": 27}]}, "max_operands"),
        ({"data__train": [{"type": "csv", "path": "x"}]}, "data.train.0"),
        ({"data__train": [{"type": "parquet"}]}, "data.train.0.path"),
    ],
)
def test_a_value_out_of_range_names_its_setting(overrides: dict[str, Any], where: str) -> None:
    assert where in refusal(**overrides)


def test_a_refused_value_is_shown() -> None:
    assert "(given: -1)" in refusal(loop__max_staleness=-1)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--algorithm.kl=0.1", "--algorithm.kl: is a section, not a single value"),
        ("--algorithm.kl=0.1", "e.g. algorithm.kl.coefficient (given: 0.1)"),
        ("--learner.lora=true", "e.g. learner.lora.rank (given: True)"),
        ("--reward.function=math", "e.g. reward.function.type (given: 'math')"),
        ("--algorithm.clip_low=abc", "--algorithm.clip_low: Input should be a valid number"),
        # model is the type and one of its settings
        ("--reward.function={type: model}", "--reward.function.model: Field required"),
    ],
)
def test_a_message_names_a_setting_as_it_is_written(override: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config("quickstart", [override])
    assert told in str(refused.value)


# ---------------------------------------------------------------------------------------- overrides


def test_overrides_reach_nested_settings_and_list_entries() -> None:
    config = load_config(
        "quickstart",
        [
            "--rollout.workers=2",
            "--learner.optimizer.lr=1e-5",
            "data.held_out.0.size=16",
            "--data.system_prompt=null",
            "--seed=7",
        ],
    )
    assert config.rollout.workers == 2
    assert config.learner.optimizer.lr == pytest.approx(1e-5)
    assert config.data.held_out[0].size == 16
    assert config.data.system_prompt is None
    assert config.seed == 7
    # what was not named stays as the recipe has it
    assert config.learner.optimizer.betas == (0.9, 0.95)


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001"])
def test_floats_without_a_dot_are_floats(text: str) -> None:
    # YAML 1.1 alone would read 1e-5 as a string.
    assert load_config("quickstart", [f"--critic.optimizer.lr={text}"]).critic.optimizer.lr == pytest.approx(
        1e-5
    )


def test_an_override_can_replace_a_whole_section_or_choose_a_union_member() -> None:
    config = load_config(
        "quickstart", ["--reward.function={type: math}", "--data.train=[{type: jsonl, path: a.jsonl}]"]
    )
    assert config.reward.function.type == "math"
    assert config.data.train[0].path == "a.jsonl"


def test_an_override_makes_the_section_that_the_recipe_left_out() -> None:
    assert load_config("quickstart", ["--cluster.local_cpus=3"]).cluster.local_cpus == 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--rollout.workers", "write it as --section.key=value"),
        ("=3", "write it as --section.key=value"),
        ("--rollout.workers=[1", "is not valid YAML"),
        ("--seed.x=1", "seed is a value, not a section"),
        ("--data.train.5.size=3", "'5' is not an index of a list of 1 entries (0 to 0)"),
        ("--data.train.first.size=3", "'first' is not an index"),
        ("--rollout.wokers=2", "did you mean workers?"),
        ("--rollout.workers=many", "rollout.workers"),
    ],
)
def test_a_wrong_override_is_told_with_its_key(override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        # --seed.x needs a recipe that sets seed
        load_config("quickstart", ["--seed=1", override])
    assert told in str(caught.value)


def test_a_mistake_in_an_option_is_not_blamed_on_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(MINIMAL | {"nam": "mine"}), encoding="utf-8")
    options = ["--rollout.wokers=2", "--learner.optimizer.weight_decai=1", "--loop.steps=9"]
    with pytest.raises(UserError) as caught:
        load_config(str(recipe), options)
    first, *others = str(caught.value).splitlines()
    assert first == f"{recipe}: nam: unknown setting; did you mean name?"
    assert sorted(line.partition(":")[0] for line in others) == [
        "--learner.optimizer.weight_decai",
        "--rollout.wokers",
    ]


def test_reward_settings_alone() -> None:
    assert parse_reward_settings([]).function.type == "math"
    assert parse_reward_settings(["--reward.function.type=running-sum"]).function.type == "running-sum"
    with pytest.raises(UserError, match=r"loop: only reward settings apply here"):
        parse_reward_settings(["--loop.steps=3"])
    with pytest.raises(UserError, match=r"reward\.deadlines_s: unknown setting; did you mean deadline_s\?"):
        parse_reward_settings(["--reward.deadlines_s=3"])


# ------------------------------------------------------------------------------------------ reading


def test_an_unknown_recipe_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(UserError) as caught:
        load_config("quickstar")
    message = str(caught.value)
    assert "did you mean quickstart?" in message
    assert all(name in message for name in recipe_names())


def test_a_recipe_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(MINIMAL | {"name": "mine"}), encoding="utf-8")
    assert load_config(str(recipe)).name == "mine"

    recipe.write_text(yaml.safe_dump(MINIMAL | {"nam": "mine"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.yaml: nam: unknown setting; did you mean name\?"):
        load_config(str(recipe))


def test_a_recipe_file_without_a_name_gives_its_own(tmp_path: Path) -> None:
    named, unnamed = tmp_path / "a.yaml", tmp_path / "my-sums.yaml"
    unnamed.write_text(yaml.safe_dump(MINIMAL))
    named.write_text(yaml.safe_dump({"name": "sums", **MINIMAL}))
    assert load_config(str(unnamed)).name == "my-sums"
    assert load_config(str(unnamed), ["name=mine"]).name == "mine"
    assert load_config(str(named)).name == "sums"


def test_an_unknown_section_of_an_option_is_named_as_the_option() -> None:
    with pytest.raises(UserError, match=r"^--lop: unknown setting; did you mean loop\?$"):
        load_config("quickstart", ["--lop.steps=3"])


@pytest.mark.parametrize(
    ("text", "told"),
    [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "a recipe is a mapping"), ("", "found NoneType")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, told: str) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="broken.yaml") as caught:
        load_config(str(recipe))
    assert told in str(caught.value)


def test_a_recipe_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere\.yaml: no such recipe file; recipes that ship: .*quickstart"
    ):
        load_config(str(tmp_path / "nowhere.yaml"))


# ------------------------------------------------------------------------------------------ results


def test_frozen_all_the_way_down() -> None:
    config = config_with()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 2
    with pytest.raises(ValidationError, match="frozen"):
        config.learner.optimizer.lr = 1.0


def test_derived_numbers() -> None:
    config = config_with(
        data__prompts_per_step=96,
        data__minibatch_size=24,
        data__max_prompt_tokens=100,
        rollout={
            "workers": 3,
            "max_sequences": 32,
            "max_response_tokens": 200,
            "cpus_per_worker": 0.5,
            "gpus_per_worker": 1,
        },
        learner__ranks=2,
        learner__gpus_per_rank=1,
        critic__cpus_per_rank=0.25,
        reward__cpus=2,
        loop={"steps": 10, "max_staleness": 2},
    )
    assert config.derived() == {
        "samples a step": 96,
        "minibatches a step (optimizer steps)": 4,  # 96 / 24
        "samples a rank and minibatch": 12.0,  # 24 / 2
        "optimizer steps in all": 40,  # 4 * 10
        "samples in all": 960,  # 96 * 10
        "samples in flight at most": 288,  # (2 + 1) * 96
        "context of an engine (tokens)": 300,  # 100 + 200
        "rollout slots (workers x sequences)": 96,  # 3 * 32
        "logical CPUs": 5.75,  # 3 * 0.5 + 2 * 1 + 1 * 0.25 + 2
        "GPUs": 5.0,  # 3 * 1 + 2 * 1
    }


def test_dump_reads_back_as_the_same_config() -> None:
    config = config_with(
        algorithm={"old_logprobs": "learner", "importance_cap": 2.0}, data__system_prompt="x: {y} \\boxed{}"
    )
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@given(prompts=st.integers(1, 400), minibatch=st.integers(1, 400))
def test_a_minibatch_size_is_accepted_exactly_when_it_divides_the_step(prompts: int, minibatch: int) -> None:
    sizes = {"data__prompts_per_step": prompts, "data__minibatch_size": minibatch}
    if prompts % minibatch == 0:
        assert config_with(**sizes).data.minibatches_per_step == prompts // minibatch
        return
    message = refusal(**sizes)
    offered = [int(text) for text in message.rpartition("nearest that do are ")[2].split(" (")[0].split(", ")]
    assert offered and all(prompts % size == 0 for size in offered)
