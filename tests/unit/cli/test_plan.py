"""`sppo-ray plan` and the plan of `train --dry-run`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sppo_ray.cli.main import main
from sppo_ray.models.bundled import resolve_model

PAPER = ("paper-1.5b", "paper-7b", "paper-7b-small-critic")


@pytest.mark.parametrize("recipe", PAPER)
@pytest.mark.parametrize("count", [1, 4, 8, 32])
def test_the_papers_recipes(recipe: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["plan", recipe, "--gpus", f"{count}xH100"])
    out = capsys.readouterr().out
    assert code == (1 if count == 1 else 0)
    assert out.startswith(f"cluster   {count}xH100")
    words = "rollout x, learner x, critic x, placement, host, /dev/shm, disk, KV cache, step, run"
    assert all(word in out for word in words.split(", "))
    if count == 1:
        assert "problem   the run needs 4 GPUs, the cluster has 1" in out
        fits_in_turns = "the nearest change that fits: --cluster.layout=colocated" in out
        assert fits_in_turns == (recipe == "paper-1.5b")
        assert fits_in_turns or "no change of settings makes it fit here; it fits on --gpus=3xH100" in out
    else:
        assert "problem" not in out
        assert (f"{count - 4} of {count} GPUs are idle" in out) == (count > 4)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "paper-7b", "--gpus=4xH100", "--json", "--steps-done=150"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["steps"] == 50 and plan["advice"] == []
    learner = next(row for row in plan["processes"] if row["role"] == "learner")
    assert learner["phases"]["backward"]["weights"] == 15_231_233_024
    assert learner["peak"] == learner["peak_with_and_without_recompute"][0]
    assert sum(plan["seconds"].values()) == pytest.approx(plan["step_seconds"])


def test_settings_and_a_config_file(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    shape = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(shape | {"model_type": "llama", "num_attention_heads": 2}))
    words = ["plan", "paper-7b", "--gpus=4xH100", "--learner.model=my/own", "--json"]
    assert main(words) == 2
    assert "--model-config PATH" in capsys.readouterr().err
    assert main([*words, f"--model-config={path}"]) == 0
    learner = json.loads(capsys.readouterr().out)["processes"][1]
    # 2 layers of 4 x 64 x 64 + 3 x 64 x 128 + 128, a norm of 64, embedding and head of 64,000 each
    assert learner["phases"]["backward"]["weights"] == 2 * (2 * (16_384 + 24_576 + 128) + 64 + 128_000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["paper-7b", "--gpus=8xTPU"], "known devices"),
        (["paper-7b", "--cpus=8"], "give it too"),
        (["paper-7b", "--gpus=4xH100", "--assume=speed=1"], "there is no 'speed'"),
        (["quickstart", "--model-config=none.json"], "none.json: cannot be read"),
    ],
)
def test_errors(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_gpus_are_asked_for_where_there_are_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppo_ray.planning.devices.local_gpus", lambda: (None, 0))
    assert main(["plan", "paper-7b"]) == 2
    assert "sppo-ray plan RECIPE --gpus=4xH100" in capsys.readouterr().err
    assert main(["train", "paper-7b", "--dry-run"]) == 2
    assert "# none: paper-7b needs GPUs" in capsys.readouterr().out


def test_a_dry_run_shows_the_plan_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "quickstart", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "# plan\n# cluster" in out and "# learner x1" in out


def test_a_dry_run_refuses_prompts_that_the_run_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 2 3", "ground_truth": "6"}\n')
    models = [f"--{role}.model={resolve_model('builtin:byte-critic')}" for role in ("learner", "critic")]
    both = [f"--data.{part}=[{{type: jsonl, path: {rows}}}]" for part in ("train", "held_out")]
    command = ["train", "quickstart", "--dry-run", *models, *both]
    assert main(command) == 2
    assert "data.train: 1 prompts are also in data.held_out" in capsys.readouterr().err
    assert main([*command, "--data.max_prompt_tokens=2"]) == 2
    assert "data.held_out: prompt rows/0:" in capsys.readouterr().err


def test_a_plan_needs_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed'): sys.modules[name] = None\n"
        "from sppo_ray.cli.main import main\n"
        "sys.exit(main(['plan', 'paper-7b', '--gpus=4xH100']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
