"""Settings, rewards and rows that are given as objects."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest

import sppo_ray as sr
from sppo_ray.config import CustomReward, PickledReward, RewardSettings
from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.config.permissions import asks_for
from sppo_ray.data.sources import open_sources
from sppo_ray.errors import UserError
from sppo_ray.library.objects import reward_setting, rows_setting
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.rewards.registry import build_verifier
from sppo_ray.types import ScoreRequest
from tests.unit.rewards.verifier_functions import by_command

ROWS = [
    {"prompt": "1+1=", "ground_truth": "2", "extra_info": {"level": 1}},
    {"prompt": "1+2=", "ground_truth": 3},
]


def closure(paid: float) -> Any:
    def reward(response: str, ground_truth: str, extra: dict[str, Any]) -> float:
        return paid if ground_truth in response else 0.0

    return reward


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, sppo_ray\n"
        "assert 'train' in dir(sppo_ray)\n"
        "print(sorted({'torch', 'ray', 'pydantic', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in sr._PLACES:
        assert getattr(sr, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = sr.trian


def test_sections_and_single_settings_change_a_recipe() -> None:
    config = sr.load_config(
        "quickstart", loop={"steps": 3}, seed=7, algorithm={"type": "grpo"},
        data={"samples_per_prompt": 2, "minibatch_size": 64}, **{"learner.optimizer.lr": 1e-5},
    )  # fmt: skip
    assert (config.loop.steps, config.seed, config.algorithm.type) == (3, 7, "grpo")
    assert (config.data.prompts_per_step, config.data.samples_per_prompt) == (256, 2)
    assert (config.learner.optimizer.lr, config.learner.optimizer.schedule) == (1e-5, "linear")
    assert sr.load_config(config) == config == sr.load_config(config.model_dump())


class KeptSettings(sr.AlgorithmSettings):
    type: Literal["kept"] = "kept"
    factor: float = 0.5


KEPT = sr.AlgorithmSpec(KeptSettings, lambda samples, _: [s.reward for s in samples], needs="sample")


def test_a_specification_is_named_from_then_on_and_keeps_the_settings_of_a_run() -> None:
    with pytest.raises(UserError, match="there is no 'kept'"):
        sr.load_config("quickstart", algorithm={"type": "kept"})
    config = sr.load_config("quickstart", algorithm=KEPT, **{"algorithm.factor": 0.25})
    assert (config.algorithm.type, config.algorithm.factor) == ("kept", 0.25)
    assert sr.load_config(config, algorithm=KEPT) == config


def test_a_mistake_is_told_as_on_the_command_line() -> None:
    with pytest.raises(UserError, match="quickstart: loop.stepz: unknown setting; did you mean steps"):
        sr.load_config("quickstart", loop={"stepz": 3})
    with pytest.raises(UserError, match="unknown recipe 'quikstart'; did you mean quickstart"):
        sr.load_config("quikstart")


def test_a_function_of_a_module_is_named_and_any_other_is_pickled(tmp_path: Path) -> None:
    named = reward_setting(by_command, tmp_path / "reward.pkl")
    assert named["function"] == "tests.unit.rewards.verifier_functions:by_command"
    assert not list(tmp_path.iterdir())
    pickled = PickledReward(**reward_setting(closure(1.0), tmp_path / "reward.pkl"))
    assert build_verifier(pickled).score("so 42", "42", {}) == (1.0, "correct")
    assert reward_setting("math", tmp_path) == {"type": "math"}
    assert CustomReward(**reward_setting("numpy:full", tmp_path)).packages == ("numpy",)


def test_a_pickled_function_scores_in_a_process_of_its_own(tmp_path: Path) -> None:
    settings = RewardSettings(function=reward_setting(closure(0.5), tmp_path / "reward.pkl"))

    async def score() -> list[float | None]:
        pool = VerifierPool(settings)
        try:
            requests = [ScoreRequest(text, "42", "", "", {}) for text in ("so 42", "so 43")]
            return [verdict.reward for verdict in await pool.score_all(requests)]
        finally:
            await pool.close()

    assert asyncio.run(score()) == [0.5, 0.0]


def test_another_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    settings = PickledReward(**reward_setting(closure(1.0), tmp_path / "reward.pkl"))
    (tmp_path / "reward.pkl").write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(UserError, match="reward.pkl: is not the function that the run began with"):
        build_verifier(settings)
    (tmp_path / "reward.pkl").unlink()
    with pytest.raises(UserError, match="cannot be read .*file system that all nodes share"):
        build_verifier(settings)


def test_settings_with_a_pickle_ask_for_permission(tmp_path: Path) -> None:
    settings = RewardSettings(function=reward_setting(closure(1.0), tmp_path / "reward.pkl"))
    [asked] = asks_for(settings)
    assert (asked.kind, asked.name, asked.flag) == ("pickle", settings.function.sha256, "--allow-module")


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            lambda response: 1.0,
            r"it takes \(response\), and is called with \(response, ground_truth, extra\)",
        ),
        (3, "reward: is a int: give a function"),
        (lambda a, b, c, out=sys.stdout: 1.0, "cannot be sent to the processes that score"),
    ],
)
def test_what_is_no_reward_function_is_refused_at_once(reward: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        reward_setting(reward, tmp_path / "reward.pkl")


@pytest.mark.parametrize("make", [list, pa.Table.from_pylist])
def test_rows_become_a_file_of_the_run(make: Any, tmp_path: Path) -> None:
    rows = [{**row, "ground_truth": str(row["ground_truth"])} for row in ROWS]
    config = sr.load_config(
        "quickstart", data={"train": [rows_setting(make(rows), tmp_path / "d.parquet", "d")]}
    )
    [source] = open_sources(config.data.train)
    first, second = source.examples([0, 1])
    assert (first.ground_truth, dict(first.extra), second.ground_truth) == ("2", {"level": 1}, "3")
    assert first.messages == ({"role": "user", "content": "1+1="},)


def test_other_fields_of_rows_are_for_the_reward(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "ground_truth": "b", "level": 1},
        {"prompt": "c", "ground_truth": "d", "level": 2, "extra_info": {"k": "e"}},
    ]
    config = sr.load_config("quickstart", data={"train": [rows_setting(rows, tmp_path / "d.parquet", "d")]})
    [source] = open_sources(config.data.train)
    found = [{k: v for k, v in one.extra.items() if v is not None} for one in source.examples([0, 1])]
    assert found == [{"level": 1}, {"level": 2, "k": "e"}]
    table = pa.table({"prompt": ["a"], "ground_truth": ["b"], "level": [1]})
    config = sr.load_config("quickstart", data={"train": [rows_setting(table, tmp_path / "e.parquet", "d")]})
    [source] = open_sources(config.data.train)
    assert source[0].extra == {"level": 1}


def test_a_data_frame_and_paths_are_rows_too(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{"prompt": "1+1=", "ground_truth": "2"}])
    assert rows_setting(frame, tmp_path / "d.parquet", "d")["ground_truth_key"] == "ground_truth"
    assert rows_setting("rows.jsonl", tmp_path, "d") == {"type": "jsonl", "path": "rows.jsonl"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS, "dataset: is not a table"),  # 2 as text and 3 as a number
        (
            [{"question": "1+1=", "ground_truth": "2"}],
            r"dataset: no column 'prompt' \(there are: question, ground_truth\)",
        ),
        (3, "dataset: is not a table"),
        ([{"prompt": "a", "ground_truth": "b", "extra_info": {}}], "cannot be written as Parquet"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(rows: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        rows_setting(rows, tmp_path / "d.parquet", "dataset")


def test_nothing_is_written_over_a_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="holds a run already"):
        sr.train("quickstart", run_dir=tmp_path, reward=closure(1.0), dataset=ROWS[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_recipe_of_a_run_directory_brings_no_code(tmp_path: Path) -> None:
    function = reward_setting(closure(1.0), tmp_path / "reward.pkl")
    (tmp_path / "config.yaml").write_text(
        dump_config(sr.load_config("quickstart", reward={"function": function}))
    )
    (tmp_path / "status.json").write_text("{}")
    assert load_config(str(tmp_path / "config.yaml")).reward.function.type == "pickled"
    with pytest.raises(UserError, match=f"add --allow-module={function['sha256']}"):
        sr.train(tmp_path / "config.yaml", run_dir=tmp_path / "new")
    with pytest.raises(UserError, match=f"add --allow-module={function['sha256']}"):
        sr.Run(tmp_path).resume()
