"""The exported critic: its card, its values in plain Transformers, its map, and a warm start from
it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from sppo_ray.cli.main import main
from sppo_ray.config import DataSettings, RunConfig
from sppo_ray.display.reliability_plot import reliability_of_run, reliability_plot
from sppo_ray.errors import UserError
from sppo_ray.evaluation.calibration import HELD_OUT, TRAINED_ON, calibrate
from sppo_ray.evaluation.critic_card import check_warm_start, read_card, write_card
from sppo_ray.evaluation.critic_measurement import SolveRate, measured, solve_rates, table_text
from sppo_ray.evaluation.last import LastEvaluation, last_evaluation
from sppo_ray.evaluation.prompt_map import histogram_text
from sppo_ray.evaluation.sampler import GradedTrajectory
from sppo_ray.library.critic import values_of
from sppo_ray.models.exported_critic import ExportedCritic, check_value_head, critic_directory
from sppo_ray.types import Prompt, Trajectory, Verdict
from tests.training_data import save_llama
from tests.unit.deploy.files import parse_ours

TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def config(**data: Any) -> RunConfig:
    source = {"type": "running-sum", "size": 100}
    return RunConfig.model_validate(
        {
            "name": "sums",
            "data": {"train": [source], "held_out": [source | {"seed": 1}], "max_prompt_tokens": 40} | data,
            "learner": {"model": "/somewhere/private/policy-7b"},
            "critic": {"model": "builtin:running-sum"},
            "rollout": {"max_response_tokens": 80, "temperature": 0.6},
            "reward": {"function": {"type": "running-sum"}},
        }
    )


def save_critic(directory: Path, base: Path, labels: int = 1) -> Path:
    """A classifier with a head that tells prompts apart."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def critic(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_critic(tmp_path_factory.mktemp("critic"), base)


@pytest.fixture
def carded(base: Path, tmp_path: Path) -> Path:
    """A critic of its own with a card."""
    directory = save_critic(tmp_path / "critic", base)
    write_card(
        directory,
        config(prompt_suffix="="),
        step=60,
        policy_version=60,
        critic_version=240,
        chat_template=TEMPLATE,
        evaluation=LastEvaluation(60, 1, calibrate([0.25, 0.75], [0.0, 1.0]), calibrate([0.5], [1.0])),
    )
    return directory


# --------------------------------------------------------------------------------------- its values


def test_the_values_are_those_of_plain_transformers_and_of_the_pipeline(critic: Path) -> None:
    texts = ["<bos>a12b7=", "<bos>a1=", "<bos>a99b98c97d96="]
    tokenizer = AutoTokenizer.from_pretrained(critic)
    ids = [tuple(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    values = ExportedCritic(critic).values(ids)
    assert [value.value for value in values] == pytest.approx(
        [1 / (1 + math.exp(-v.value_logit)) for v in values]
    )
    assert len({round(value.value, 3) for value in values}) == 3
    model = AutoModelForSequenceClassification.from_pretrained(critic)
    with torch.no_grad():
        plain = [model(torch.tensor([row])).logits.item() for row in ids]
    assert [value.value_logit for value in values] == pytest.approx(plain, abs=1e-5)
    classify = pipeline("text-classification", model=str(critic), tokenizer=str(critic))
    scores = [classify(text, add_special_tokens=False)[0]["score"] for text in texts]
    assert [value.value for value in values] == pytest.approx(scores, abs=1e-5)


def test_a_head_of_two_labels_and_a_missing_head_have_different_errors(base: Path, tmp_path: Path) -> None:
    check_value_head(base, required=False)  # a causal LM starts a fresh critic
    with pytest.raises(UserError, match=r"has no value head \(score.weight\)"):
        check_value_head(base, required=True)
    two = save_critic(tmp_path / "two", base, labels=2)
    with pytest.raises(UserError, match="its head has 2 labels, a critic has one"):
        check_value_head(two, required=False)
    with pytest.raises(UserError, match="no such directory"):
        check_value_head(tmp_path / "nowhere", required=True)


def test_a_run_directory_means_its_export(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: run\n")
    with pytest.raises(UserError, match="has no export/critic: finish it"):
        critic_directory(tmp_path)
    (tmp_path / "export" / "critic").mkdir(parents=True)
    assert critic_directory(tmp_path) == tmp_path / "export" / "critic"
    assert critic_directory("builtin:running-sum") == Path("builtin:running-sum")


# ----------------------------------------------------------------------------------------- its card


def test_the_card_says_what_it_takes_to_read_the_critic(carded: Path) -> None:
    card = read_card(carded)
    # no directory of the machine
    assert card["policy"] == {"model": "policy-7b", "step": 60, "policy_version": 60}
    assert card["settings"]["data"]["prompt_suffix"] == "="
    assert card["settings"]["rollout"]["temperature"] == 0.6
    assert card["held_out"]["figures"]["brier"] == pytest.approx(0.0625)  # (1/4)^2 both times
    assert card["seen"]["count"] == 1 and card["seen"]["figures"]["pearson"] is None
    text = (carded / "README.md").read_text()
    assert "private" not in text
    for part in (
        "policy-7b after step 60",
        "| Brier score (mean squared error) | 0.062 | 0.250 |",
        "| 0.2 - 0.3 | 1 | 0.25 | 0.00 |",
        "ends in '='",
        "at most 40 tokens",
    ):
        assert part in text, part


def test_the_code_in_the_card_runs_and_gives_the_value(carded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (carded / "README.md").read_text(), re.DOTALL).group(1)
    names: dict[str, Any] = {}
    monkeypatch.chdir(carded)
    exec(code.replace('"..."', '"a1b2="'), names)
    ids = tuple(AutoTokenizer.from_pretrained(carded)("<bos>a1b2=", add_special_tokens=False)["input_ids"])
    assert names["value"].tolist() == pytest.approx([ExportedCritic(carded).values([ids])[0].value], abs=1e-5)


TOOLS = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}]
TOOLED = "{{ bos_token }}{{ tools | length if tools else 0 }}" + TEMPLATE.removeprefix("{{ bos_token }}")


def test_a_critic_of_prompts_with_tools_reads_them_by_its_card(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_critic(tmp_path / "critic", base)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TOOLED
    tokenizer.save_pretrained(directory)
    kept = {"chat_template": TOOLED, "evaluation": None, "tools": TOOLS}
    write_card(directory, config(), step=1, policy_version=1, critic_version=1, **kept)
    ids = tuple(tokenizer("<bos>1a1b2=", add_special_tokens=False)["input_ids"])
    expected = ExportedCritic(directory).values([ids])[0].value
    assert values_of(directory, ["a1b2="]) == [pytest.approx(expected)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a1b2=", "ground_truth": "3"}\n')
    assert main(["map", str(directory), "--data", str(rows), "--out", str(tmp_path / "map.parquet")]) == 0
    (row,) = pq.read_table(tmp_path / "map.parquet").to_pylist()
    assert row["prompt"] == "<bos>1a1b2=" and row["value"] == pytest.approx(expected)
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL).group(1)
    names: dict[str, Any] = {}
    monkeypatch.chdir(directory)
    exec(code.replace('"..."', '"a1b2="'), names)
    assert names["value"].tolist() == pytest.approx([expected], abs=1e-5)
    check_warm_start(directory, config().data, TOOLED, TOOLS)
    with pytest.raises(UserError, match="describe other tools than environment.tools"):
        check_warm_start(directory, config().data, TOOLED)


def test_a_card_without_an_evaluation_says_so(critic: Path, tmp_path: Path) -> None:
    versions = {"step": 1, "policy_version": 1, "critic_version": 1}
    write_card(tmp_path, config(), **versions, chat_template=None, evaluation=None)
    text = (tmp_path / "README.md").read_text()
    assert "Not measured" in text and "apply_chat_template" not in text
    assert read_card(tmp_path)["held_out"] is None and read_card(critic) is None


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9, "settings": {}}', '{"format": 1}'])
def test_a_damaged_card_is_one_message(carded: Path, text: str) -> None:
    (carded / "calibration.json").write_text(text)
    with pytest.raises(UserError, match=r"calibration.json: is not a calibration card"):
        read_card(carded)


def test_a_warm_start_needs_prompts_written_as_the_critic_learned_them(carded: Path, critic: Path) -> None:
    train = [{"type": "running-sum"}]
    fitting = DataSettings(train=train, prompt_suffix="=")
    check_warm_start(carded, fitting, TEMPLATE)
    check_warm_start(critic, DataSettings(train=train), None)  # no card, nothing to compare with
    with pytest.raises(UserError, match="learned on prompts with data.prompt_suffix '=', this run has null"):
        check_warm_start(carded, DataSettings(train=train), TEMPLATE)
    with pytest.raises(UserError, match="data.system_prompt null, this run has 'Be brief.'"):
        check_warm_start(
            carded, DataSettings(train=train, prompt_suffix="=", system_prompt="Be brief."), TEMPLATE
        )
    with pytest.raises(UserError, match="its chat template is not the one"):
        check_warm_start(carded, fitting, TEMPLATE + "!")


def told_critic(base: Path, directory: Path) -> Path:
    """A critic with a card that reads reference answers."""
    save_critic(directory, base)
    write_card(
        directory,
        config(critic_suffix="+{ground_truth}="),
        step=60,
        policy_version=60,
        critic_version=240,
        chat_template=TEMPLATE,
        evaluation=None,
    )
    return directory


def test_a_critic_that_reads_the_answer_says_so(
    base: Path, carded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_critic(base, tmp_path / "told")
    text = (told / "README.md").read_text()
    assert "**It needs the reference answer**: '+{ground_truth}=' follows the last user message" in text
    assert "cannot value prompts whose answer is unknown" in text and "needs" not in (
        carded / "README.md"
    ).read_text().partition("## Calibration")[0].partition("## How")[2]
    train = [{"type": "running-sum"}]
    check_warm_start(told, DataSettings(train=train, critic_suffix="+{ground_truth}="), TEMPLATE)
    with pytest.raises(UserError, match="data.critic_suffix '\\+{ground_truth}=', this run has null"):
        check_warm_start(told, DataSettings(train=train), TEMPLATE)
    out = tmp_path / "map.parquet"
    data = prompts_file(tmp_path / "sums.jsonl", 3)
    assert main(["map", str(told), "--data", str(data), "--out", str(out)]) == 0
    assert "reads each prompt with '+{ground_truth}='" in capsys.readouterr().err
    rows = pq.read_table(out).to_pylist()
    # <bos>a1b2 + 3 = : the answer is read, and the map shows the prompt alone
    tokenizer = AutoTokenizer.from_pretrained(told)
    ids = tuple(tokenizer("<bos>a1b2=+3=", add_special_tokens=False)["input_ids"])
    assert (rows[1]["prompt"], rows[1]["prompt_tokens"]) == ("<bos>a1b2=", len(ids))
    assert rows[1]["value"] == pytest.approx(ExportedCritic(told).values([ids])[0].value, abs=1e-6)


# ------------------------------------------------------------------------------------------ its map


def prompts_file(path: Path, count: int) -> Path:
    rows = [{"prompt": f"a{i}b{i + 1}=", "ground_truth": str(2 * i + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_map_holds_every_prompt_with_its_value(
    critic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # several blocks, the last one short
    monkeypatch.setattr("sppo_ray.evaluation.prompt_map.BLOCK_ROWS", 7)
    out = tmp_path / "maps" / "sums.parquet"
    assert (
        main(
            ["map", str(critic), "--data", str(prompts_file(tmp_path / "sums.jsonl", 30)), "--out", str(out)]
        )
        == 0
    )
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == [f"sums/{i}" for i in range(30)]
    assert rows[12] | {"value": 0, "value_logit": 0} == {
        "id": "sums/12", "source": "sums", "prompt": "<bos>a12b13=", "prompt_tokens": 8, "value": 0,
        "value_logit": 0,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(critic)
    ids = [tuple(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]) for row in rows]
    expected = ExportedCritic(critic).values(ids)
    assert [row["value"] for row in rows] == pytest.approx([value.value for value in expected], abs=1e-6)
    assert [row["value_logit"] for row in rows] == pytest.approx(
        [value.value_logit for value in expected], abs=1e-5
    )
    printed = capsys.readouterr().out
    assert len(re.findall(r"(?m)^\d\.\d\d - ", printed)) == 20 and "30 prompts in" in printed
    assert [entry.name for entry in out.parent.iterdir()] == ["sums.parquet"]


def test_the_map_writes_prompts_as_the_card_says(carded: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl").write_text('{"prompt": "a1b2", "ground_truth": "3"}\n')
    out = tmp_path / "map.parquet"
    assert main(["map", str(carded), "--data", str(tmp_path / "bare.jsonl"), "--out", str(out)]) == 0
    # the run's data.prompt_suffix
    assert pq.read_table(out)["prompt"].to_pylist() == ["<bos>a1b2="]
    more = ["--data.prompt_suffix=++"]
    assert main(["map", str(carded), "--data", str(tmp_path / "bare.jsonl"), "--out", str(out), *more]) == 0
    assert pq.read_table(out)["prompt"].to_pylist() == ["<bos>a1b2++"]


def test_a_map_that_fails_leaves_the_earlier_one(
    critic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.parquet"
    out.write_bytes(b"earlier")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "a1" * 100 + "=", "ground_truth": "3"}) + "\n")
    assert main(["map", str(critic), "--data", str(long), "--out", str(out)]) == 2
    assert "prompt long/0: 202 tokens, the critic" in capsys.readouterr().err  # 128 positions
    assert out.read_bytes() == b"earlier" and len(list(tmp_path.iterdir())) == 2


def test_the_histogram() -> None:
    text = histogram_text([0.0, 0.05, 0.5, 0.99, 1.0], bins=2)
    assert text.splitlines()[0] == "0.00 - 0.50  2  " + "█" * 32  # 2 of 3, of 48
    assert text.splitlines()[1] == "0.50 - 1.00  3  " + "█" * 48
    assert "out of reach (< 0.1) 40.0%, between 20.0%, solved (> 0.9) 40.0%" in text


def test_the_histogram_of_a_critic_without_a_sigmoid_has_values_outside_in_its_outermost_bins() -> None:
    counts = [line.split()[3] for line in histogram_text([-0.7, -0.01, 0.6, 1.2], bins=2).splitlines()[:2]]
    assert counts == ["2", "2"]


# ---------------------------------------------------------------------------------- its measurement


def rate(*rewards: float, errors: int = 0) -> SolveRate:
    return SolveRate(rewards, errors)


def test_a_measured_set_compares_each_value_with_its_solve_rate() -> None:
    rates = [rate(1.0, 0.0), rate(1.0, 1.0), rate(errors=2), rate(0.0, errors=1)]
    one = measured("sums", [0.5, 0.75, 0.9, 0.25], rates, k=2, seed=0)
    assert one.report.count == 3 and one.prompts_left_out == 1 and one.reward_errors == 3
    assert one.solve_rate == pytest.approx(0.5) and one.value_mean == pytest.approx(0.5)
    assert one.report.figures["brier"] == pytest.approx((0.0 + 0.0625 + 0.0625) / 3)
    tree = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert tree["responses_a_prompt"] == 2 and len(tree["intervals"]["brier"]) == 2
    text = table_text([one, one])
    assert re.search(r"^brier +0.042 \[0.000, 0.062\] +0.042", text, re.MULTILINE)
    assert re.search(r"^\[0.50, 0.60\) +1 +0.50 +0.50 +1 +0.50 +0.50$", text, re.MULTILINE)
    with pytest.raises(ValueError, match="no response could be graded"):
        measured("sums", [0.5], [rate(errors=2)], k=2, seed=0)


def test_solve_rates_of_responses_in_the_order_of_the_prompts() -> None:
    prompts = [Prompt(f"p/{i}", "p", "", (1,), (1,), "") for i in range(2)]

    def graded(prompt: Prompt, sample: int, reward: float | None, num_tokens: int) -> GradedTrajectory:
        tokens = tuple(range(num_tokens))
        trajectory = Trajectory("r", prompt.id, tokens, (-0.1,) * num_tokens, "stop", 0, 0, "rollout-0", 0.1)
        return GradedTrajectory(prompt, sample, trajectory, "", Verdict(reward, "", 0.0))

    responses = [
        graded(prompts[0], 0, 1.0, 10),
        graded(prompts[0], 1, 0.5, 20),
        graded(prompts[1], 0, None, 5),
        graded(prompts[1], 1, 0.0, 5),
    ]
    assert solve_rates(responses, 2) == [rate(1.0, 0.5), rate(0.0, errors=1)]
    # shaping takes .01 off for each token
    shaped = solve_rates(responses, 2, shaped=lambda reward, n: max(reward - n / 100, 0.0))
    assert shaped[0].rewards == pytest.approx((0.9, 0.3)) and math.isnan(rate(errors=2).mean)


def test_the_plot_of_a_run_is_of_its_last_evaluation_with_a_critic(tmp_path: Path) -> None:
    assert reliability_of_run(tmp_path) is None
    held_out, seen = calibrate([0.2, 0.8], [0.0, 1.0]), calibrate([0.1, 0.9, 0.9], [0.0, 1.0, 0.0])
    tree = held_out.to_dict()
    (tmp_path / "evaluations").mkdir()
    for step, critic in (
        (10, {}),
        (20, {"critic": tree["figures"], "critic_bins": tree["bins"], "train_critic": seen.to_dict()}),
    ):
        content = {"step": step, "k": 1, "critic": {}, "critic_bins": []} | critic
        (tmp_path / "evaluations" / f"step-{step:06d}.json").write_text(json.dumps(content))
    last = last_evaluation(tmp_path)
    assert (last.step, last.held_out.count, last.trained_on.figures["brier"]) == (
        20,
        2,
        pytest.approx((0.01 + 0.01 + 0.81) / 3),
    )
    image = reliability_of_run(tmp_path).read_bytes()
    assert image.startswith(b"\x89PNG") and (tmp_path / "reliability.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("error")
def test_a_plot_of_one_prompt_can_be_drawn_and_one_of_none_is_refused(tmp_path: Path) -> None:
    one = calibrate([1.0], [1.0])
    assert reliability_plot(tmp_path / "a.png", {HELD_OUT: one}, title="one").exists()
    nothing = LastEvaluation(0, 1, one, calibrate([0.5], [0.5])).reports | {TRAINED_ON: type(one)(0, {}, ())}
    assert reliability_plot(tmp_path / "b.png", nothing, title="one set").exists()
    with pytest.raises(ValueError, match="at least one set"):
        reliability_plot(tmp_path / "c.png", {TRAINED_ON: type(one)(0, {}, ())}, title="none")


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate"], "give the directory of a finished run, or both --critic DIR and --policy MODEL"),
        (["calibrate", "RUN", "--critic", "x"], "not both"),
        (["calibrate", "--critic", "x"], "both --critic DIR and --policy MODEL"),
        (["calibrate", "RUN", "-k", "0"], "-k is 0: at least one is needed"),
        (["calibrate", "RUN", "--prompts", "0"], "--prompts is 0"),
        (["calibrate", "RUN", "--bins", "1"], "at least two bins"),
        (["calibrate", "RUN"], "no config.yaml in it, so it is not a run directory"),
        (["calibrate", "--critic", "x", "--policy", "y"], "give held-out ones with --data FILE"),
        (["map", "CRITIC", "--data", "EMPTY", "--out", "m.parquet"], "is empty"),
        (["map", "CRITIC", "--data", "nowhere.parquet", "--out", "m.parquet"], "no such file"),
        (["map", "CRITIC", "--data", "EMPTY", "--out", "m.csv"], "a map is a Parquet file"),
        (["map", "BASE", "--data", "EMPTY", "--out", "m.parquet"], "has no value head"),
        (["map", "CRITIC", "--data", "EMPTY", "--out", "m.parquet", "--data.nothing=1"], "data.nothing"),
        (["map", "CRITIC", "--data", "EMPTY", "--out", "m.parquet", "--dat.x=1"], "unknown setting"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str],
    message: str,
    base: Path,
    critic: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "run").mkdir()
    names = {"RUN": tmp_path / "run", "CRITIC": critic, "BASE": base, "EMPTY": tmp_path / "empty.jsonl"}
    assert main([str(names.get(argument, argument)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error, error


def test_several_files_after_one_flag() -> None:
    line = "calibrate r --data a b -k 4 --seed=2 --seen=c --seen d --seen e f"
    options, settings = parse_ours(line.split())
    assert (options.run_dir, options.k, options.prompts, settings) == (Path("r"), 4, 256, ["--seed=2"])
    assert (list(options.data), list(options.seen)) == (["a", "b"], ["c", "d", "e", "f"])
