"""No code of a checkpoint is run, no outside data is unpickled, and no secret is written."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.launch.job import write_job
from sppo_ray.launch.train import _described
from sppo_ray.models.loading import read_config
from sppo_ray.models.policy import load_policy
from sppo_ray.models.tokenizers import load_tokenizer
from sppo_ray.redaction import HIDDEN, holds_secret
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import EventLog, read_events
from tests.training_data import save_llama

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    p for package in ("sppo_ray", "actors", "benchmarks") for p in (REPOSITORY / package).rglob("*.py")
)
TOKEN = "hf_" + "Q7" * 17


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a function or method of that name, with its place."""
    for path in SOURCES:
        for node in nodes_of(path):
            called = node.func if isinstance(node, ast.Call) else None
            if getattr(called, "attr", getattr(called, "id", None)) == name:
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno} {ast.unparse(node)[:80]}", node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


# --------------------------------------------------------------------------------- code and pickles


def test_every_loader_of_checkpoints_refuses_their_code() -> None:
    found = list(calls("from_pretrained"))
    assert len(found) >= 5
    # A GenerationConfig is numbers; Transformers has no way to put code into one that is not asked
    # for by `custom_generate`.
    open_ones = [where for where, call in found if keyword(call, "trust_remote_code") is not False]
    assert [where for where in open_ones if "GenerationConfig.from_pretrained" not in where] == []
    assert [keyword(call, "trust_remote_code") for _, call in calls("EngineArgs")] == [False]


def test_nothing_is_unpickled_but_what_a_parent_sends_its_child() -> None:
    assert [
        where
        for where, call in calls("load")
        if "torch.load" in where and keyword(call, "weights_only") is not True
    ] == []
    unpickled = [
        where for name in ("load", "loads", "Unpickler") for where, _ in calls(name) if "pickle." in where
    ]
    # worker.py: from parent to child; pickled.py: a reward function that was given as an object,
    # with its SHA-256 in the settings and permission for a run of somebody else's; ipc.py, of a
    # benchmark: a tensor's handle, from parent to child
    found = {Path(where.partition(":")[0]).name for where in unpickled}
    assert found == {"worker.py", "pickled.py", "ipc.py"}


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.victim, "owned")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickled_model_is_refused_unread_with_the_remedy(tmp_path: Path, name: str) -> None:
    model = save_llama(tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save({"w": Payload(tmp_path / "victim")}, model / name)
    with pytest.raises(
        UserError, match=rf"{name} can run code when read and are refused: get the model in safetensors"
    ):
        load_policy(model, dtype="float32")
    assert not (tmp_path / "victim").exists()


def test_a_pickle_beside_safetensors_is_not_read(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    torch.save({"w": Payload(tmp_path / "victim")}, model / "pytorch_model.bin")
    load_policy(model, dtype="float32")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("family", ["mine", "llama"])
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for a family that Transformers lacks, nor to replace one that it has; nobody is asked
    at the terminal either.
    """
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    model = save_llama(tmp_path / "model")
    attack = f"open({str(tmp_path / 'victim')!r}, 'w').write('owned')\n"
    (model / "own.py").write_text(attack + "class Own:\n    pass\n")
    config = json.loads((model / "config.json").read_text())
    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    config |= {"model_type": family, "auto_map": dict.fromkeys(classes, "own.Own")}
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text()) | {
        "auto_map": {"AutoTokenizer": ["own.Own", None]}
    }
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if family == "llama":
        read_config(model)
        load_policy(model, dtype="float32")
    else:
        with pytest.raises(UserError, match="brings code of its own.*never run: convert it"):
            read_config(model)
    try:
        load_tokenizer(model)
    except UserError as error:
        assert "code of its own" in str(error)
    assert not (tmp_path / "victim").exists()


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model .*nothing: its tokenizer does not load"):
        load_tokenizer(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        (TOKEN, True),
        (f"/models/{TOKEN}/x", True),
        ("https://someone:hunter2hunter2@example.org/data.parquet", True),
        ("value-of-the-planted-key", True),
        ("/data/sk-learn-benchmarks-2026/train.parquet", False),
        ("hf_datasets/train", False),
        ("https://example.org/a:b@c", False),
        ("short-pw", False),  # a secret of 8 characters may well be a word
    ],
)
def test_a_secret_is_told_from_a_name(text: str, certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_API_KEY", "value-of-the-planted-key")
    monkeypatch.setenv("PLANTED_PASSWORD", "short-pw")
    assert holds_secret(text) is certain


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        (f"--data.train.0={{type: parquet, path: 'https://u:{TOKEN}@host/x'}}", "data.train.0.path"),
        (f"--name={TOKEN}", "name"),
        (
            f"--data.train.0={{type: reasoning-gym, task: chain_sum, options: {{key: {TOKEN}}}}}",
            "data.train.0.options.key",
        ),
    ],
)
def test_a_setting_that_holds_a_secret_is_refused_without_repeating_it(override: str, setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting}: holds a secret.*give it in the environment") as caught:
        load_config("quickstart", [override])
    assert TOKEN not in str(caught.value)


def test_what_the_writers_write_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PLANTED_API_KEY", "value-of-the-planted-key")
    argv = [
        "sppo-ray",
        "train",
        "quickstart",
        f"--hf_token={TOKEN}",
        "--x=value-of-the-planted-key",
        "--seed=1",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    run = RunDir(tmp_path)
    write_job(run, load_config("quickstart"))
    run.write_environment()
    events = EventLog(tmp_path)
    events.write(
        "failed", f"401 for Bearer {TOKEN}", where=f"https://me:{TOKEN}@host", rows=[f"hf_token={TOKEN}"]
    )
    events.close()
    try:
        raise RuntimeError(f"no access with {TOKEN}")
    except RuntimeError as error:
        run.write_json("status.json", {"last_error": _described(error)})
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert TOKEN.encode() not in written and b"value-of-the-planted-key" not in written
    # What is no secret is kept.
    assert json.loads(run.job.read_text())["entrypoint"] == [
        "sppo-ray", "train", "quickstart", f"--hf_token={HIDDEN}", f"--x={HIDDEN}", "--seed=1",
    ]  # fmt: skip
    assert read_events(tmp_path)[0]["message"] == f"401 for Bearer {HIDDEN}"


def test_the_command_line_prints_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sppo_ray.cli.main import main

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["train", "quickstart", "--dry-run", f"--nme={TOKEN}"]) == 2
    printed = capsys.readouterr()
    assert "nme" in printed.err and TOKEN not in printed.err + printed.out
