"""What can be told of a run's files before Ray starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.data.sources import files
from sppo_ray.errors import UserError
from sppo_ray.models.bundled import recipe_key
from sppo_ray.planning.preflight import CPU_HEAD_SIZES, check_files, check_policy, check_settings

MODEL = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 256, "vocab_size": 40}
TOKENIZER = {"model": {"vocab": {"a": 0, "b": 38}}, "added_tokens": [{"id": 39}]}


def policy(directory: Path, tokenizer: Any = TOKENIZER, **changes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(MODEL | changes))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


CUSTOM = "{type: custom, environment: 'mine:Game', max_turn_tokens: 8, options: {bonus: 0.5}}"
TOOLS = "{type: tools, tools: [{type: function, function: 'mine:tool'}], max_turn_tokens: 8}"


def config(*overrides: str) -> Any:
    lengths = ["--data.max_prompt_tokens=100", "--rollout.max_response_tokens=156"]
    return load_config("quickstart", [*lengths, *overrides])


def test_a_policy_that_fits_passes(tmp_path: Path) -> None:
    check_policy(config(), policy(tmp_path))  # 100 + 156 = 256 tokens; head size 64 / 2 = 32; token 39 of 40


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_position_embeddings": 255}, "its context is 255 tokens, .* 100 .* 156 are 256: lower one"),
        ({"head_dim": 48}, "its head size is 48, and vLLM's attention on a CPU has kernels for 32, 64"),
        ({"hidden_size": 16}, "its head size is 8"),
        ({"vocab_size": 39}, "its tokenizer has token 39, and its embedding has 39 tokens"),
        ({"text_config": MODEL | {"vocab_size": 12}}, "its tokenizer has token 39, and .* has 12 tokens"),
    ],
)
def test_a_policy_that_the_engine_cannot_run(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"learner.model .*: {said}"):
        check_policy(config(), policy(tmp_path, **changes))


def test_what_a_gpu_or_scaled_positions_allow_passes(tmp_path: Path) -> None:
    gpu = ["--rollout.gpus_per_worker=1", "--learner.gpus_per_rank=1", "--device=auto"]
    check_policy(config(*gpu), policy(tmp_path, head_dim=48))
    scaled = {"rope_type": "yarn", "factor": 4.0}
    check_policy(config(), policy(tmp_path, max_position_embeddings=64, rope_scaling=scaled))


def test_a_unigram_tokenizer_has_a_list_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has token 40"):
        check_policy(config(), policy(tmp_path, {"model": {"vocab": [["a", -1.0]] * 41}}))


def test_the_head_sizes_are_vllms() -> None:
    code = (
        "from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend as backend\n"
        "print(backend.get_supported_head_sizes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == list(CPU_HEAD_SIZES)


def test_large_files_are_checked_by_their_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "ground_truth": "1"}\n{\n')
    source = [f"--data.train=[{{type: jsonl, path: {rows}}}]"]
    with pytest.raises(UserError, match="line 2: not JSON"):
        check_files(config(*source))
    monkeypatch.setattr(files, "SMALL_FILE", 10)
    check_files(config(*source))
    rows.write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match="line 1: no ground_truth"):
        check_files(config(*source))
    with pytest.raises(UserError, match=r"data.held_out\[0\].path: .*no such"):
        check_files(config(f"--data.held_out=[{{type: hf-disk, path: {tmp_path / 'none'}}}]"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "no module mine in the working directory or on the PYTHONPATH"),
        ("def g(response, ground_truth, extra): return 1.0\n", "f does not exist in module mine"),
        ("def f(:\n", r"is no Python: invalid syntax \(\w+.py, line 1\)"),
        ("def f(answer): return 1.0\n", r"it takes \(answer\), and is called with \(response, ground_truth"),
        ("def f(a, b, c, d): return 1.0\n", r"it takes \(a, b, c, d\)"),
        ("def f(completions, **kwargs): return [1.0]\n", None),  # TRL's
        ("def f(a, b, c, d=1): return 1.0\n", None),
        ("def f(*args): return 1.0\n", None),
        ("raise SystemExit('it was run')\ndef f(response, ground_truth, extra): return 1.0\n", None),
        ("from math import floor as f\n", None),
        ("import functools\nf = functools.partial(print)\n", None),
    ],
)
def test_a_reward_function_is_read_and_not_run(
    source: str | None, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    wanted = config("--reward.function.type=custom", "--reward.function.function=mine:f")
    if said is None:
        check_files(wanted)
    else:
        with pytest.raises(UserError, match=said):
            check_files(wanted)


GAME = "class Game:\n    def __init__(self, row, seed, bonus=0.0): ...\n    def step(self, action): ...\n"
TOOL = "def tool(a: int) -> str:\n    \"\"\"A tool.\"\"\"\n"


@pytest.mark.parametrize(
    ("environment", "source", "said"),
    [
        (CUSTOM, None, "no module mine in the working directory"),
        (CUSTOM, "class Games: ...\n", "Game does not exist in module mine"),
        (CUSTOM, "class Game:\n    def stop(self, action): ...\n", "it has no method step"),
        (CUSTOM, "class Game:\n    def step(self, action): ...\n", "does not take them .it has no __init__"),
        (CUSTOM, GAME, None),
        (CUSTOM, "raise SystemExit('it was run')\n" + GAME, None),
        (CUSTOM, GAME.replace("bonus=0.0", "*, bonus"), None),
        (CUSTOM, GAME.replace(", bonus=0.0", ""), "does not take them .*bonus"),
        (CUSTOM, GAME.replace("seed, bonus=0.0", "seed, bonus, more"), "does not take them .*more"),
        (CUSTOM, "class Game(Base):\n    pass\n", None),  # the base is not read
        (CUSTOM, "def Game(row, seed, **options): ...\n", None),
        (CUSTOM, "async def Game(row): ...\n", "does not take them"),
        (CUSTOM, "from games import Game\n", None),
        (CUSTOM.replace("mine:", "json:"), None, "of Python's standard library"),
        (TOOLS, TOOL, None),
        (TOOLS, "async " + TOOL, None),
        (TOOLS, TOOL.replace(": int", ""), "parameter a has no type"),
        (TOOLS, TOOL.replace("A tool.", ""), "has no docstring"),
        (TOOLS, "def other(): ...\n", "tool does not exist in module mine"),
    ],
)
def test_an_environment_is_read_and_not_run(
    environment: str, source: str | None, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    wanted = config(f"--environment={environment}")
    if said is None:
        check_files(wanted)
    else:
        with pytest.raises(UserError, match=said):
            check_files(wanted)


def test_all_settings_of_a_run_are_checked_without_making_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPPO_RAY_CACHE", str(tmp_path))
    check_settings(load_config("quickstart"))
    with pytest.raises(UserError, match="no such built-in model"):
        check_settings(load_config("quickstart", ["--critic.model=builtin:runnin"]))
    with pytest.raises(UserError, match="no such directory; give a Transformers checkpoint"):
        check_settings(load_config("quickstart", ["--learner.model=./models/none"]))
    custom = ["--reward.function={type: custom, function: 'no_such.module:f'}"]
    with pytest.raises(UserError, match="no module no_such.module"):
        check_settings(load_config("quickstart", custom))
    check_settings(load_config("quickstart", custom), code=False)
    assert not list(tmp_path.iterdir())
    made = tmp_path / f"running-sum-{recipe_key('running-sum')}"  # one that is in the cache is looked at
    made.mkdir()
    with pytest.raises(UserError, match="config.json: cannot be read as JSON"):
        check_settings(load_config("quickstart"))
