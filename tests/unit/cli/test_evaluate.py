"""`sppo-ray eval` up to where engines would start: options, data, what is refused; and its table
and files.
"""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from sppo_ray.cli.eval_options import data_source
from sppo_ray.cli.evaluate import (
    UNDECIDED_LIMIT,
    Plan,
    make_plan,
    make_report,
    require_decisions,
    write_output,
)
from sppo_ray.cli.main import app
from sppo_ray.config import CustomReward, RunningSumReward
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.data.folding import fold
from sppo_ray.display.evaluation_progress import LineProgress
from sppo_ray.display.evaluation_table import evaluation_table
from sppo_ray.errors import UserError
from sppo_ray.evaluation.sampler import Batch, GradedTrajectory, Sampler, evaluation_requests
from sppo_ray.types import Example, Prompt, SamplingSettings, Trajectory, Verdict
from tests.training_data import save_llama
from tests.unit.fakes import FakeFleet, FakeRewardClient, prompt


def config_of(*arguments: str, overrides: tuple[str, ...] = ()) -> EvaluationConfig:
    """What `sppo-ray eval` would run with. Raises UserError for what it would refuse."""
    noted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sppo_ray.cli.evaluate.run_evaluation", lambda config, out: noted.append(config))
        words = ["eval", *arguments, *overrides]
        with typer.main.get_command(app).make_context("sppo-ray", words) as context:
            context.command.invoke(context)
    return noted[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Reads digits, letters and a few signs; its config.json names a context."""
    return str(save_llama(tmp_path_factory.mktemp("models") / "tiny"))


def field_file(path: Path, rows: list[tuple[str, str]], source: str = "test") -> Path:
    """(prompt, ground truth) rows in the field's Parquet format, with a running index as the real
    files have.
    """
    table = [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"ground_truth": truth, "style": "rule"},
            "extra_info": {"index": index},
        }
        for index, (prompt, truth) in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


# ------------------------------------------------------------------------------------------ options


def test_options_become_settings() -> None:
    config = config_of(
        *(
            "m",
            "--data",
            "running-sum:size=16,seed=7",
            "-k",
            "4",
            "--pass-k",
            "4,1",
            "--temperature",
            "0.6",
            "--seed",
            "5",
        ),
        *("--max-response-tokens", "32", "--workers", "2", "--limit", "3"),
        overrides=("--rollout.dtype=bfloat16",),
    )
    (source,) = config.data.held_out
    assert (source.type, source.size, source.seed) == ("running-sum", 16, 7)
    assert (config.eval.samples_per_prompt, config.eval.pass_k, config.eval.prompts) == (4, (1, 4), 3)
    assert (config.temperature, config.seed, config.rollout.workers) == (0.6, 5, 2)
    assert (config.rollout.max_response_tokens, config.rollout.dtype) == (32, "bfloat16")
    assert config.reward.function == RunningSumReward()  # by the data


def test_a_recipe_gives_data_reward_and_rollout_settings() -> None:
    config = config_of("m", "--recipe", "quickstart", "-k", "2")
    (source,) = config.data.held_out
    assert (source.seed, source.size, config.rollout.max_response_tokens) == (1_000_000, 256, 80)
    assert (config.reward.function.type, config.eval.samples_per_prompt, config.model) == (
        "running-sum",
        2,
        "m",
    )


def test_data_is_told_by_its_name(tmp_path: Path) -> None:
    assert data_source("running-sum") == {"type": "running-sum", "size": 256}
    assert data_source("reasoning-gym:task=chain_sum,size=8") == {
        "type": "reasoning-gym",
        "task": "chain_sum",
        "size": 8,
    }
    assert data_source("a/*.parquet") == {"type": "parquet", "path": "a/*.parquet"}
    assert data_source("jsonl:path=x.txt,prompt_key=q") == {
        "type": "jsonl",
        "path": "x.txt",
        "prompt_key": "q",
    }
    (tmp_path / "a.jsonl").touch()
    assert data_source(str(tmp_path))["type"] == "jsonl"


def test_rewards_by_name() -> None:
    assert config_of("m", "--data", "a.parquet").reward.function.type == "math"
    last_number = config_of("m", "--data", "a.parquet", "--reward", "last-number").reward.function
    assert last_number == CustomReward(function="sppo_ray.rewards.last_number:reward")
    assert config_of("m", "--data", "a.parquet", "--reward", "my.module:f").reward.function == CustomReward(
        function="my.module:f", packages=("my",)
    )


SUM = ("--data", "running-sum")


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        ((), (), "nothing to evaluate on: name files with --data"),
        (
            (*SUM, "-k", "2", "--pass-k", "1,4"),
            (),
            r"pass@4 needs at least 4 samples .* is 2: raise it \(-k 4\)",
        ),
        ((*SUM, "--pass-k", "1,x"), (), "--pass-k 1,x: write whole numbers"),
        ((*SUM, "--pass-k", "0"), (), "eval.pass_k.0: .*greater than or equal to 1"),
        ((*SUM, "-k", "2", "--temperature", "0"), (), "at temperature 0 the 2 samples .* one and the same"),
        ((*SUM, "--temperature", "-1"), (), "eval.temperature: .*greater than or equal to 0"),
        ((*SUM, "--limit", "0"), (), "eval.prompts: .*greater than or equal to 1"),
        ((*SUM, "--reward", "mth"), (), "--reward mth: no such reward function; there are math, running-sum"),
        ((*SUM, "--reward", "reasoning-gym"), (), "judges only data of type reasoning-gym"),
        ((*SUM, "a.parquet"), (), "parquet and running-sum are judged by different reward functions"),
        (("--data", "a.txt"), (), "--data a.txt: neither a .parquet or .jsonl file"),
        (("--data", "running-sum:8"), (), "'8' is not key=value"),
        (("--data", "running-sum:sise=8"), (), "sise: unknown setting; did you mean size?"),
        (SUM, ("--rollout.wokers=2",), "rollout.wokers: unknown setting; did you mean workers?"),
        (SUM, ("--data.held_out=[]",), "held_out names no data source"),
        (SUM, ("--device=cuda",), "rollout.gpus_per_worker is 0"),
        (("--recipe", "quickstrat"), (), "did you mean quickstart?"),
    ],
)
def test_mistakes_are_refused_with_the_remedy(
    arguments: tuple[str, ...], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config_of("m", *arguments, overrides=overrides)


def test_a_run_directory_stands_for_its_export_and_brings_its_settings(tmp_path: Path) -> None:
    from sppo_ray.config.loading import dump_config, load_config

    (tmp_path / "config.yaml").write_text(
        dump_config(load_config("quickstart", ["--data.held_out.0.size=9", "--seed=4"]))
    )
    with pytest.raises(UserError, match=f"run directory {tmp_path} has no export/policy: let the run finish"):
        config_of(str(tmp_path))
    (tmp_path / "export" / "policy").mkdir(parents=True)
    config = config_of(str(tmp_path))
    assert (config.model, config.data.held_out[0].size, config.seed) == (
        str(tmp_path / "export" / "policy"),
        9,
        4,
    )


# --------------------------------------------------------------------------------------------- data


def example(index: int, text: str) -> Example:
    return Example(f"file/{index}", "file", ({"role": "user", "content": text},), "1", {"index": index})


def test_a_file_that_holds_every_prompt_equally_often_is_folded() -> None:
    distinct, times = fold([example(i, text) for i, text in enumerate("abcabc")])
    assert ([one.id for one in distinct], times) == (["file/0", "file/1", "file/2"], 2)
    distinct, times = fold([example(i, text) for i, text in enumerate("bbbaaa")])
    assert ([one.id for one in distinct], times) == (["file/0", "file/3"], 3)
    rows = [example(i, text) for i, text in enumerate("abca")]
    assert fold(rows) == (rows, 1)  # only `a` comes twice: no sign that the file means samples


def test_repeated_files_become_samples(model: str, tmp_path: Path) -> None:
    repeated = field_file(
        tmp_path / "repeated.parquet", [(text, "1") for text in ("a=1", "b=2") for _ in range(8)]
    )
    some = field_file(tmp_path / "some.parquet", [("a=1", "1"), ("b=2", "2"), ("a=1", "1")])
    plan = make_plan(config_of(model, "--data", str(repeated), str(some)), print)
    assert [(one.name, len(one.prompts), one.samples_per_prompt) for one in plan.sets] == [
        ("repeated", 2, 8),
        ("some", 3, 1),
    ]
    assert plan.sets[0].notes == ("repeated: holds each of its 2 prompts 8 times; read as 2 prompts",)
    assert plan.sets[1].notes == ("some: 1 of 3 rows repeat another; each counts as a prompt of its own",)
    assert plan.num_responses == 2 * 8 + 3
    told = make_plan(config_of(model, "--data", str(repeated), "-k", "2", "--limit", "1"), print)
    assert [(len(one.prompts), one.samples_per_prompt) for one in told.sets] == [(1, 2)]
    greedy = make_plan(config_of(model, "--data", str(repeated), "--temperature", "0"), print)
    assert greedy.sets[0].samples_per_prompt == 1
    with pytest.raises(UserError, match="pass@8 needs at least 8 samples a prompt, and some has 1: add -k 8"):
        make_plan(config_of(model, "--data", str(repeated), str(some), "--pass-k", "8"), print)


def test_the_response_gets_what_the_context_leaves(model: str, tmp_path: Path) -> None:
    context = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
    file = field_file(tmp_path / "a.parquet", [("a=1", "1"), ("a=1;b=2;c=3", "1")])
    plan = make_plan(config_of(model, "--data", str(file)), print)
    longest = max(len(prompt.token_ids) for prompt in plan.sets[0].prompts)
    assert plan.config.data.max_prompt_tokens == longest
    assert plan.config.rollout.max_response_tokens == context - longest
    tight = ("--max-response-tokens", str(context - longest + 1))
    with pytest.raises(
        UserError, match=f"prompt a/1: {longest} tokens, and there is room for {longest - 1}: lower"
    ):
        make_plan(config_of(model, "--data", str(file), *tight), print)
    dropped = make_plan(
        config_of(model, "--data", str(file), *tight, overrides=("--data.overlong_prompts=drop",)), print
    )
    assert dropped.sets[0].notes == (f"a: left out 1 prompts of more than {longest - 1} tokens",)
    with pytest.raises(
        UserError, match=f"leaves no room for a prompt in the model's context of {context} tokens"
    ):
        make_plan(config_of(model, "--data", str(file), "--max-response-tokens", str(context)), print)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or directory"),
        (b"", "is empty: give a file with at least one prompt"),
        (b"not parquet", "cannot be read as Parquet"),
        ([{"question": "a", "reward_model": {"ground_truth": "1"}}], "no column 'prompt'"),
        ([], "has no rows"),
    ],
)
def test_bad_files_are_named(model: str, tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "bad.parquet"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        pq.write_table(pa.Table.from_pylist(content), file)
    elif content is not None:
        pq.write_table(pq.read_table(field_file(file, [("a", "1")])).slice(0, 0), file)
    with pytest.raises(UserError, match=rf"bad.parquet.*{message}"):
        make_plan(config_of(model, "--data", str(file)), print)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UserError, match="builtin:nope: no such built-in model"):
        make_plan(config_of("builtin:nope", *SUM), print)


# --------------------------------------------------------------------------------- requests, output


def test_seeds_depend_on_neither_k_nor_the_other_sets() -> None:
    prompts = [Prompt(f"p/{i}", "p", "", (1,), (1,), "") for i in range(3)]
    few, many = (
        evaluation_requests(prompts, [1, 2, 1], seed=3),
        evaluation_requests(prompts, [4, 4, 4], seed=3),
    )
    assert [str(name) for name in few] == [
        "evaluation/0/0",
        "evaluation/1/0",
        "evaluation/1/1",
        "evaluation/2/0",
    ]
    assert all(many[key] == entry for key, entry in few.items())
    assert len({request.seed for request, _, _ in many.values()}) == 12


def test_responses_come_in_the_order_of_prompts_and_samples() -> None:
    seen: list[int] = []
    # prompt 0 is generated last, and the verdicts of prompt 1 are late
    batch = Batch([prompt(i) for i in range(3)], [2, 1, 2], lambda graded: seen.append(len(graded)))
    sampler = Sampler(
        fleet=FakeFleet(delays={"task/0": 9}),
        reward_client=FakeRewardClient(slow=frozenset({"1"})),
        decode=lambda rows: [str(ids.tolist()) for ids in rows],
        sampling=SamplingSettings(1.0, 8, (0,)),
        seed=3,
    )
    found = asyncio.run(sampler.sample(batch))
    assert [(one.prompt.id, one.sample) for one in found] == [
        ("task/0", 0), ("task/0", 1), ("task/1", 0), ("task/2", 0), ("task/2", 1),
    ]  # fmt: skip
    assert seen == [1, 2, 3, 4, 5]


def test_what_follow_raises_ends_the_sampling() -> None:
    def refuse(graded: object) -> None:
        raise UserError("enough")

    sampler = Sampler(
        fleet=FakeFleet(),
        reward_client=FakeRewardClient(),
        decode=lambda rows: [str(ids.tolist()) for ids in rows],
        sampling=SamplingSettings(1.0, 8, (0,)),
        seed=3,
    )
    with pytest.raises(UserError, match="enough"):
        asyncio.run(sampler.sample(Batch([prompt(0)], [4], refuse)))


def graded(prompt: str, sample: int, reward: float | None, answer: str | None) -> GradedTrajectory:
    trajectory = Trajectory(
        f"r/{prompt}/{sample}", prompt, (5, 6), (-0.5, -0.25), "length", 0, 0, "rollout-0", 0.1
    )
    verdict = Verdict(reward, "correct" if reward else "wrong", 0.0, answer)
    return GradedTrajectory(
        Prompt(prompt, "sum", "a=1", (1, 2), (1, 2), "7"), sample, trajectory, "text", verdict
    )


def test_the_output_appears_whole_and_the_table_shows_the_figures(model: str, tmp_path: Path) -> None:
    plan: Plan = make_plan(config_of(model, "--data", "running-sum:size=2", "-k", "2"), print)
    responses = [
        graded("a", 0, 1.0, "7"),
        graded("a", 1, 1.0, "7"),
        graded("b", 0, 0.0, "3"),
        graded("b", 1, None, None),
    ]
    report = make_report(plan, responses, seconds=1.5)
    out = tmp_path / "new" / "out"
    write_output(out, plan, responses, report)
    assert sorted(path.name for path in out.iterdir()) == [
        "report.json",
        "responses.parquet",
        "settings.yaml",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    tree = json.loads((out / "report.json").read_text())
    # (1 + 0) / 2 prompts
    assert (tree["overall"]["accuracy"], tree["overall"]["reward_errors"], tree["k"]) == (0.5, 1, 2)
    assert tree["sets"] == [{"name": "running-sum", "prompts": 2, "samples_per_prompt": 2, "notes": []}]
    rows = pq.read_table(out / "responses.parquet").to_pylist()
    assert [(row["prompt_id"], row["sample"], row["reward"], row["answer"]) for row in rows] == [
        ("a", 0, 1.0, "7"),
        ("a", 1, 1.0, "7"),
        ("b", 0, 0.0, "3"),
        ("b", 1, None, None),
    ]
    assert rows[0]["response_ids"] == [5, 6] and rows[0]["response_logprobs"] == [-0.5, -0.25]
    lines = dict(line.split("  ", 1) for line in evaluation_table(report).splitlines()[2:])
    figures = {name: rest.split() for name, rest in lines.items()}
    # b has one graded response
    assert figures["avg@k"][0] == "0.500" and figures["pass@2"] == ["1.000", "[1.000,", "1.000]"]
    assert (figures["truncated"], figures["reward errors"]) == (["100.0%"], ["1"])


def test_a_reward_that_can_judge_nothing_is_refused_early() -> None:
    undecided = [graded("a", sample, None, None) for sample in range(UNDECIDED_LIMIT)]
    require_decisions(undecided[:-1])  # too few to tell
    require_decisions([*undecided[:-1], graded("a", 99, 0.0, None)])  # it could judge one
    with pytest.raises(
        UserError, match="judge none of the first 32 responses .prompt a: wrong.: .* --reward"
    ):
        require_decisions(undecided)


def test_lines_tell_how_far_it_is() -> None:
    now, stream = [0.0], io.StringIO()
    progress = LineProgress(stream, now=lambda: now[0])
    progress.start(4)
    for reward in (1.0, 0.0, None, 1.0):
        now[0] += 6.0
        progress.advance(reward, 30)
    # after 12 s: 2 of 4, so 12 s are left; at the end 2 of 3 graded ones are right, 120 tokens in
    # 24 s
    assert stream.getvalue().splitlines() == [
        "graded 2/4  avg 0.50  5 tok/s  ETA 12s",
        "graded 4/4  avg 0.67  5 tok/s  reward errors 1  ETA 0s",
    ]
