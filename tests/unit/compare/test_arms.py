"""Arms: their batch sizes from the recipe's, definitions of the user's own, and what is refused
before anything runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_ray.cli.main import main
from sppo_ray.compare.arms import BUILT_IN, make_arms
from sppo_ray.compare.plan import Plan, differences, make_plan, read_plan, write_plan
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError


def quickstart(*overrides: str) -> RunConfig:
    return load_config("quickstart", overrides)


def plan_of(
    *arms: str, seeds: range = range(1, 3), overrides: tuple[str, ...] = (), **keywords: object
) -> Plan:
    return make_plan("quickstart", arms, seeds, 60.0, overrides=overrides, **keywords)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- batch sizes


@pytest.mark.parametrize(
    ("name", "prompts", "samples", "minibatch"),
    [
        # The quickstart has 256 samples a step in minibatches of 64: 4 optimizer steps.
        ("sppo", 256, 1, 64),
        ("ppo", 256, 1, 64),
        ("reinforce", 256, 1, 64),
        ("sao", 256, 1, 64),
        ("spo", 256, 1, 64),
        ("grpo", 32, 8, 64),  # 32 x 8 = 256 samples
        ("rloo", 32, 8, 64),
        ("grpo-equal-prompts", 256, 8, 512),  # 2,048 samples / 512 = 4
        ("remax", 128, 1, 32),  # 128 sampled + 128 greedy = 256 responses; 128 / 32 = 4
    ],
)
def test_batch_sizes_follow_from_the_recipe(name: str, prompts: int, samples: int, minibatch: int) -> None:
    plan = plan_of(name)
    data = plan.config(plan.arms[0]).data
    assert (data.prompts_per_step, data.samples_per_prompt, data.minibatch_size) == (
        prompts,
        samples,
        minibatch,
    )
    assert data.minibatches_per_step == 4


@pytest.mark.parametrize(
    ("name", "updates"),
    # The quickstart warms up over 20 updates of 64 samples = 1,280; equal prompts: 2 of 512 =
    # 1,024.
    [("sppo", 20), ("grpo", 20), ("remax", 20), ("grpo-equal-prompts", 2)],
)
def test_the_learning_rate_warms_up_over_as_many_samples(name: str, updates: int) -> None:
    plan = plan_of(name)
    assert plan.config(plan.arms[0]).learner.optimizer.lr_warmup_steps == updates


def test_without_a_warmup_no_arm_gets_one() -> None:
    (arm,) = make_arms(["grpo-equal-prompts"], quickstart("learner.optimizer.lr_warmup_steps=0"))
    assert not any("lr_warmup_steps" in override for override in arm.overrides)


def test_a_group_recipe_gives_single_sample_arms_as_many_samples() -> None:
    base = quickstart("algorithm.type=grpo", "data.prompts_per_step=32", "data.samples_per_prompt=8")
    (sppo,) = make_arms(["sppo"], base)
    assert sppo.overrides == ("algorithm.type=sppo", "data.prompts_per_step=256", "data.samples_per_prompt=1")


def test_every_built_in_arm_is_a_valid_recipe_and_differs_in_nothing_else() -> None:
    plan = plan_of(*BUILT_IN)
    sppo = plan.config(plan.arms[0]).model_dump(mode="json")
    for arm in plan.arms:
        changed = differences(sppo, plan.config(arm).model_dump(mode="json"))
        own = {"critic"} if arm.name == "sao" else set()  # two critic updates for one of the policy
        sections = {"algorithm", "data", "learner"} | own
        assert {change.split(".")[0] for change in changed} <= sections, arm.name
        assert {change.split()[0] for change in changed if change.startswith("learner")} <= {
            "learner.optimizer.lr_warmup_steps"
        }


def test_settings_of_the_recipes_own_algorithm_stay_behind() -> None:
    base = quickstart("algorithm.type=ppo", "algorithm.lam=0.9", "algorithm.clip_high=0.28")
    ppo, sppo = make_arms(["ppo-lam95", "sppo"], base)
    assert ppo.overrides[:2] == ("algorithm.type=ppo", "algorithm.lam=0.95")
    assert sppo.overrides == ("algorithm={type: sppo, clip_high: 0.28}",)
    assert quickstart("algorithm.lam=0.9", "algorithm.type=ppo", *sppo.overrides).algorithm.clip_high == 0.28


def test_a_token_critic_gets_micro_batches_that_hold_a_sample() -> None:
    # The longest sample has 40 + 80 = 120 tokens; 64 hold a prompt only. The learner's are 2,048.
    (arm,) = make_arms(["ppo"], quickstart("critic.max_tokens_per_microbatch=64"))
    assert arm.overrides[-1] == "critic.max_tokens_per_microbatch=2048"


# -------------------------------------------------------------------------------------- definitions


def test_an_arm_of_ones_own_starts_from_a_built_in_one() -> None:
    (arm,) = make_arms(
        ["mine:grpo,algorithm.normalize_std=false,learner.optimizer.betas=[0.9,0.99]"], quickstart()
    )
    assert arm.name == "mine"
    assert arm.overrides == (
        "algorithm.type=grpo",
        "data.prompts_per_step=32",
        "data.samples_per_prompt=8",
        "algorithm.normalize_std=false",
        "learner.optimizer.betas=[0.9,0.99]",  # the comma in brackets does not part it
    )


def test_an_arm_of_overrides_alone() -> None:
    (arm,) = make_arms(["small:critic.model=builtin:running-sum,critic.optimizer.lr=1e-4"], quickstart())
    assert arm.overrides == ("critic.model=builtin:running-sum", "critic.optimizer.lr=1e-4")


@pytest.mark.parametrize(
    ("arms", "overrides", "message"),
    [
        (["gprpo"], (), r"unknown arm 'gprpo': there are sppo, grpo"),
        (["sppo", "sppo"], (), r"arm sppo: given twice"),
        ([], (), r"at least one arm"),
        (
            ["grpo"],
            ("data.prompts_per_step=60", "data.minibatch_size=12"),
            r"is 60 and has to be a multiple of 8: make it 56 or 64",
        ),
        (
            ["rloo"],
            ("data.minibatch_size=4",),
            r"data.minibatch_size is 4 and has to be a multiple of 8: make it 8,",
        ),
        (
            ["remax"],
            ("data.prompts_per_step=63", "data.minibatch_size=21"),
            r"is 63 and has to be a multiple of 2",
        ),
        (["a b:sppo"], (), r"its name 'a b' has to be letters"),
        (["x:"], (), r"arm x: names no settings"),
        (["x:algorithm.clip_low=0.1,grpo"], (), r"'grpo' is not an override"),
        (["x:algorithm.clip=0.1"], (), r"arm x: .*unknown setting; did you mean"),
        (["x:seed=3"], (), r"arm x: seed cannot differ between arms: it is what --seeds varies"),
        (["x:eval.every=3"], (), r"arm x: eval.every cannot differ"),
        (["x:rollout.workers=2"], (), r"the same engines"),
        (["x:data.held_out.0.size=3"], (), r"on the same prompts"),
        (["x:learner.model=builtin:running-sum"], (), r"from the same weights"),
        (["x:learner={}"], (), r"learner as a whole would change learner.model"),
        (["sppo"], ("seed=4",), r"--seed is the comparison's own: give --seeds N"),
        (["sppo"], ("loop.budget_s=4",), r"give --budget SECONDS"),
        (["sppo"], ("eval.at_start=false",), r"eval.at_start is off"),
        (["sppo"], ("data.held_out=[]",), r"data.held_out is empty"),
    ],
)
def test_refused_before_anything_runs(arms: list[str], overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(*arms, overrides=overrides)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"concurrent": 0}, r"--concurrent 0: .* between 1 and"),
        ({"concurrent": 10_000}, r"each run needs a core of its own"),
        ({"targets": (0.5, 80.0)}, r"--targets 80: a target is a held-out accuracy between 0 and 1"),
        ({"baseline": "grpo"}, r"--baseline grpo: no such arm"),
        ({"seeds": range(0)}, r"give at least one"),
    ],
)
def test_refused_numbers(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of("sppo", **keywords)  # type: ignore[arg-type]


def test_a_budget_is_needed() -> None:
    with pytest.raises(UserError, match="--budget 0"):
        make_plan("quickstart", ["sppo"], [1], 0.0)


def test_a_schedule_that_would_be_flat() -> None:
    with pytest.raises(UserError, match="arm sppo: critic.optimizer.schedule linear falls over loop.steps"):
        plan_of("sppo", overrides=("critic.optimizer.schedule=linear",))
    plan_of("grpo", overrides=("critic.optimizer.schedule=linear",))  # has no critic


def test_a_clock_that_stands_still_while_work_goes_on() -> None:
    with pytest.raises(
        UserError, match=r"arm sppo: loop.max_staleness 2 .* while the clock stands still.*leave it at 0"
    ):
        plan_of("sppo", overrides=("loop.max_staleness=2",))
    with pytest.raises(UserError, match="arm stale: loop.max_staleness 1"):
        plan_of("sppo", "stale:sppo,loop.max_staleness=1")


def test_no_guardrail_holds_a_run_that_nobody_watches() -> None:
    plan = plan_of("sppo")
    assert plan.config(plan.arms[0]).guardrails.action == "warn"


# ----------------------------------------------------------------------------------------- the plan


def test_seeds_are_interleaved() -> None:
    # A comparison that is cut short after four runs has two of each arm.
    assert [job.name for job in plan_of("sppo", "grpo").jobs] == [
        "sppo-seed1",
        "grpo-seed1",
        "sppo-seed2",
        "grpo-seed2",
    ]


def test_the_users_overrides_win_over_the_comparisons_own() -> None:
    plan = plan_of(
        "sppo", overrides=("--learner.optimizer.schedule=linear", "--loop.steps=60", "--eval.every_s=4.0")
    )
    config = plan.config(plan.arms[0])
    assert (config.learner.optimizer.schedule, config.critic.optimizer.schedule) == ("linear", "constant")
    assert (config.loop.budget_s, config.eval.every_s) == (60.0, 4.0)
    assert [override for override in plan.common if "eval" in override] == ["eval.every_s=4.0"]
    # Without one: 60 s / 20 evaluations.
    assert plan_of("sppo").config(plan.arms[0]).eval.every_s == 3.0


def test_a_plan_reads_as_it_was_written_and_grows(tmp_path: Path) -> None:
    first = write_plan(plan_of("sppo", targets=(0.8, 0.6)), tmp_path)
    assert read_plan(tmp_path) == first
    assert first.targets == (0.6, 0.8)
    grown = write_plan(plan_of("grpo", seeds=range(2, 4), baseline="grpo"), tmp_path)
    assert [arm.name for arm in grown.arms] == ["sppo", "grpo"]
    assert (grown.seeds, grown.baseline) == ((1, 2, 3), "grpo")
    assert load_config(str(tmp_path / "arms" / "grpo.yaml")) == grown.config(grown.arms[1])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make_plan("quickstart", ["sppo"], [1], 30.0), r"with budget_s 60.0, now it is 30.0"),
        (
            lambda: plan_of("sppo", overrides=("learner.optimizer.lr=1e-3",)),
            r"overrides \(none\), now it is learner.optimizer.lr",
        ),
        (lambda: plan_of("sppo:algorithm.clip_low=0.1"), r"holds runs of another arm sppo"),
    ],
)
def test_what_would_not_be_comparable_is_not_added(tmp_path: Path, other: object, message: str) -> None:
    write_plan(plan_of("sppo"), tmp_path)
    with pytest.raises(UserError, match=message):
        write_plan(other(), tmp_path)  # type: ignore[operator]


def test_a_recipe_that_changed_since_is_noticed(tmp_path: Path) -> None:
    plan = write_plan(plan_of("sppo"), tmp_path)
    settings = tmp_path / "arms" / "sppo.yaml"
    settings.write_text(settings.read_text().replace("minibatch_size: 64", "minibatch_size: 32"))
    with pytest.raises(UserError, match=r"data.minibatch_size 32 -> 64"):
        write_plan(plan, tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no comparison"):
        write_plan(plan_of("sppo"), tmp_path)


# ------------------------------------------------------------------------------------- command line


def test_dry_run_shows_the_arms(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compare",
        "quickstart",
        "--arms",
        "sppo,remax",
        "--arm",
        "gspo:sppo,algorithm.ratio=sequence",
    ]
    assert (
        main([*arguments, "--seeds", "2", "--budget", "30", "--dry-run", "--learner.optimizer.lr=3e-4"]) == 0
    )
    out = capsys.readouterr().out
    assert "remax                algorithm.type=remax data.prompts_per_step=128 data.minibatch_size=32" in out
    assert "gspo                 algorithm.type=sppo algorithm.ratio=sequence" in out
    assert "learner.optimizer.lr=3e-4" in out
    assert "6 runs with 30 s of training" in out and "3m00s" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart", "--arms", "sppo", "--budget", "30"], "--seeds is missing"),
        (["quickstart", "--arms", "sppo", "--seeds", "1"], "--budget is missing"),
        (
            ["quickstart", "--arm", "sppo", "--seeds", "1", "--budget", "9"],
            "--arm sppo: write it as NAME:section.key=value",
        ),
        (
            ["quickstart", "--targets", "high", "--seeds", "1", "--budget", "9"],
            "--targets high: write accuracies",
        ),
        ([], "name a recipe to start a comparison"),
        (["--out", "nowhere-at-all", "--seeds", "3"], "--seeds needs a recipe"),
        (["--out", "nowhere-at-all"], "holds no comparison"),
        (["--out", "nowhere-at-all", "--report-only"], "holds no comparison"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("nowhere-at-all").exists()
