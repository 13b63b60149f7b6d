"""The grammar of the command line: every command, its flags, what they become, and what is refused
with which exit code. Nothing is trained, sampled or served: what a command calls at its end is
replaced by a note of the call.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sppo_ray import __version__
from sppo_ray.cli.main import COMMANDS, Commands, main

REPOSITORY = Path(__file__).resolve().parents[3]
Call = Callable[[str], tuple[int, str, str]]

# command: its positional arguments and flags
GRAMMAR = {
    "init": "DIRECTORY",
    "train": "RECIPE --from --run-dir --seed --resume --restarts --config-sha256 --trace --verbose "
    "--allow-module --allow-unconfined --dry-run",
    "plan": "RECIPE --gpus --cpus --host-memory --model-config --critic-config --steps-done --assume --json",
    "prepare": "TARGET",
    "compare": "RECIPE RUN --plot --arms --arm --seeds --budget --concurrent --targets --baseline --out "
    "--dry-run --allow-module --allow-unconfined --report-only",
    "eval": "MODEL --data --recipe -k --samples-per-prompt --pass-k --temperature --max-response-tokens "
    "--limit --seed --reward --workers --allow-module --allow-unconfined --out",
    "calibrate": "RUN --critic --policy --data --seen --reward --allow-module --allow-unconfined -k "
    "--prompts --bins --out",
    "map": "CRITIC --data --out",
    "replay": "RUN --step --exact --json",
    "score": "FILE",
    "serve": "--runs --host --port --ray-address --tokens --allow --allow-module --allow-unconfined "
    "--cors-origin --python --rate --body-timeout --max-body-bytes --max-streams --max-streams-per-caller",
    "token": "NAME --role --tokens",
    "submit": "RECIPE --url --json --name --seed --metadata --follow",
    "list": "--url --json --state --name --limit",
    "status": "JOB --url --json --watch",
    "logs": "JOB --url -f --follow --tail",
    "scale": "JOB --url --json --rollout-workers",
    "pause": "JOB --url --json",
    "resume": "JOB --url --json",
    "checkpoint": "JOB --url --json",
    "stop": "JOB --url --json --force",
    "delete": "JOB --url --yes",
    "report": "RUN --out",
    "push": "RUN REPO --private --critic-repo --no-critic",
    "recipes": "",
    "settings": "",
    "doctor": "",
}
# the least that each command needs, where that is more than its name
LEAST = {
    "init": "mine",
    "train": "quickstart",
    "plan": "quickstart",
    "prepare": "quickstart",
    "compare": "quickstart",
    "eval": "model",
    "calibrate": "run",
    "map": "critic --data a --out b.parquet",
    "replay": "run --step 1",
    "score": "file",
    "token": "anna --tokens file",
    "submit": "quickstart",
    "report": "run",
    "push": "run org/name",
    "scale": "job --rollout-workers 1",
    **dict.fromkeys(("status", "logs", "pause", "resume", "checkpoint", "stop", "delete"), "job"),
}
TAKES_SETTINGS = {
    *("train", "plan", "prepare", "compare", "eval", "calibrate", "map", "replay", "score", "submit"),
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a line, split as a shell does, in an empty directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SPPO_RAY_RUNS", raising=False)

    def run(line: str) -> tuple[int, str, str]:
        try:
            code = main(shlex.split(line))
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return run


# --------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_help_names_every_command(call: Call, flag: str) -> None:
    code, out, err = call(flag)
    assert (code, err) == (0, "")
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()}
    assert GRAMMAR.keys() <= listed
    assert "Sequence-Level PPO on Ray, vLLM and DeepSpeed." in out


@pytest.mark.parametrize("command", GRAMMAR)
def test_the_help_of_a_command_names_its_arguments_and_flags(call: Call, command: str) -> None:
    code, out, err = call(f"{command} --help")
    assert (code, err) == (0, "")
    assert f"sppo-ray {command}" in out
    words = out.replace(",", " ").replace("=", " ").split()
    flags = {word for word in words if word.startswith("-") and word.strip("-")[:1].isalpha()}
    wanted = GRAMMAR[command].split()
    assert {name for name in wanted if name.startswith("-")} <= flags
    assert all(name in out or name.lower() in out for name in wanted)


def test_the_version(call: Call) -> None:
    assert call("--version") == (0, f"sppo-ray {__version__}\n", "")


def test_python_m_is_the_same_command_line() -> None:
    done = _python(
        "import runpy, sys\n"
        "sys.argv = ['sppo_ray', 'train', '--help']\n"
        "try: runpy.run_module('sppo_ray', run_name='__main__')\n"
        "except SystemExit as ended: print('exit', ended.code)"
    )
    assert done.stdout.splitlines()[-1] == "exit 0", done.stdout + done.stderr
    assert "--run-dir" in done.stdout and not done.stderr


def test_help_imports_only_what_it_prints() -> None:
    """The program's help imports no command, and a command's help not what its work needs."""
    done = _python(
        "import contextlib, io, sys\n"
        "from sppo_ray.cli.main import COMMANDS, main\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'pyarrow', 'numpy', 'httpx', 'sppo_ray.config'}\n"
        "for words in ['--help'], *([name, '--help'] for name in COMMANDS):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert main(words) == 0\n"
        "    if len(words) == 1:\n"
        "        print(*sorted(name for name in sys.modules if name.startswith('sppo_ray.cli.')))\n"
        "        assert 'pydantic' not in sys.modules\n"  # Typer needs it for the options of a command
        "    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sppo_ray.cli.main", "sppo_ray.cli.shared"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_has_the_first_sentence_of_each(command: str) -> None:
    sentence = COMMANDS[command][1]
    help_text = " ".join(Commands()[command].help.split())
    assert help_text == sentence or help_text.startswith(f"{sentence} ")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # of commands
        ("", ""),
        ("trian quickstart", "trian"),
        # of arguments
        *((name, "") for name in LEAST if name not in ("compare", "calibrate")),
        ("compare", "name a recipe to start a comparison, or the --out of one to continue or report"),
        ("calibrate", "give the directory of a finished run, or both --critic DIR and --policy MODEL"),
        ("train quickstart more", "error: unexpected argument 'more': settings are written --section.key"),
        ("recipes more", "error: unexpected argument 'more': settings are written --section.key=value"),
        ("status job more", "error: unexpected argument 'more'"),
        # of flags
        ("train quickstart --resum", "error: unexpected argument '--resum': settings are written"),
        ("train quickstart --dry", "error: unexpected argument '--dry'"),
        ("train quickstart -x", "error: unexpected argument '-x'"),
        ("train quickstart --loop.steps 3 --dry-run", "error: unexpected argument '--loop.steps'"),
        ("status job --follow", "error: unexpected argument '--follow'"),
        ("train quickstart --seed", "--seed"),
        ("train quickstart --seed --dry-run", "--seed"),
        ("train quickstart --seed one", "--seed"),
        ("train quickstart --seed 1.5", "--seed"),
        ("train quickstart --seed=", "--seed"),
        ("train quickstart --resume=yes", "--resume"),
        ("compare quickstart --budget long", "--budget"),
        ("eval model -k many", "-k"),
        ("eval model --data --limit 3", "--data"),
        ("map critic --data --out b.parquet", "--data"),
        ("map critic --out b.parquet", "--data"),
        ("replay run", "--step"),
        ("token anna", "--tokens"),
        ("token anna --tokens file --role admin", "--role"),
        ("scale job", "--rollout-workers"),
        ("scale job --rollout-workers=-1", "error: rollout_workers"),
        # of settings
        ("train quickstart --loop.stepz=3", "did you mean"),
        ("train quickstart --nosection.key=3", "nosection"),
        ("train quickstart --loop.steps=many", "loop.steps"),
        ("train no-such-recipe", "quickstart"),
        ("prepare no-such-recipe", "quickstart"),
        ("eval model --data running-sum --eval.propmts=3", "did you mean"),
        ("submit quickstart --metadata team", "error: --metadata 'team': write it as KEY=VALUE"),
        ("submit quickstart --name ../up", "error: run_name"),
        ("submit quickstart --working-dir .", "error: --working-dir: a job of the REST server"),
        ("list --state done", "error: --state DONE: there are PENDING, RUNNING"),
        # of what the commands themselves look at first
        ("train quickstart --resume", "error: --resume needs the --run-dir of the run to continue"),
        ("train quickstart --config-sha256 00", "error: "),
        ("compare quickstart --seeds 1", "error: --budget is missing"),
        ("compare quickstart --budget 1", "error: --seeds is missing"),
        ("compare --out x --seeds 2", "error: --seeds needs a recipe"),
        ("compare --out x --loop.steps=2", "error: --loop.steps=2 needs a recipe"),
        ("compare --out x --targets .5", "error: --targets and --baseline are part of a comparison's plan"),
        ("compare --report-only", "error: name a recipe to start a comparison"),
        ("compare quickstart --arm=Z --seeds 1 --budget 1", "error: --arm Z: write it as NAME:section"),
        ("compare quickstart --seeds 1 --budget 1 --targets a", "error: --targets a: write accuracies"),
        ("eval model", "error: nothing to evaluate on"),
        ("eval model --data x.txt", "error: --data x.txt: neither a .parquet or .jsonl file"),
        ("eval model --data running-sum --pass-k x", "error: --pass-k x: write whole numbers"),
        ("eval model --data running-sum --reward no", "error: --reward no: no such reward function"),
        ("calibrate run -k 0", "error: -k is 0: at least one is needed"),
        ("calibrate run --prompts=0", "error: --prompts is 0: at least one is needed"),
        ("calibrate run --bins 1", "error: --bins is 1: at least two bins"),
        ("calibrate run --critic c", "error: give a run directory, or --critic and --policy, not both"),
        ("calibrate --critic c --policy p", "error: --critic and --policy come without prompts"),
        ("calibrate run", "error: run run: no config.yaml in it"),
        ("map critic --data a --out b.json", "error: --out b.json: a map is a Parquet file"),
        ("replay run --step 1", "error: run run: no config.yaml in it"),
        ("score no-such-file", "error: "),
        ("delete job", "error: delete removes metrics, samples and checkpoints: say --yes"),
        ("serve --host 0.0.0.0", "error: "),
        ("serve --port 70000", "error: serve: port"),
        ("serve --ray-address 127.0.0.1:8265", "error: serve: ray_address"),
        ("list --url http://127.0.0.1:9", "error: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_exit_code_2(call: Call, words: str, message: str) -> None:
    code, out, err = call(words)
    assert (code, out) == (2, ""), err
    assert message in err and err.strip()


@pytest.mark.parametrize("command", sorted(GRAMMAR.keys() - TAKES_SETTINGS))
def test_a_command_without_settings_refuses_them(call: Call, command: str) -> None:
    line = f"{command} {LEAST.get(command, '')} --loop.steps=1"
    assert call(line) == (2, "", f"error: {command} takes no settings: --loop.steps=1\n")


def test_a_name_close_to_a_command_is_proposed(call: Call) -> None:
    assert "train" in call("trian")[2]


# --------------------------------------------------------------------------- what the words become


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of what the commands call at their end."""
    from sppo_ray.api import server
    from sppo_ray.launch import supervisor, train

    notes: list[tuple[Any, ...]] = []

    class Supervisor:
        def __init__(self, command: Callable[[bool], list[str]], run_dir: Path, *, restarts: int) -> None:
            notes.append((command(False)[4:-2], run_dir, restarts))

        def run(self, *, resume: bool) -> int:
            notes.append((resume,))
            return 0

    def note(*arguments: Any, **named: Any) -> int:
        notes.append((*arguments, *named.values()))
        return 0

    monkeypatch.setattr(train, "train", note)
    monkeypatch.setattr(supervisor, "Supervisor", Supervisor)
    monkeypatch.setattr(server, "run", note)
    return notes


def test_train(call: Call, noted: list[tuple[Any, ...]]) -> None:
    words = "--loop.steps=3 --run-dir 'a b' quickstart --rollout.workers=2 --seed=7 --resume --verbose"
    assert call(f"train {words}")[0] == 0
    ((config, run_dir, resume, _),) = noted
    assert (config.seed, config.loop.steps, config.rollout.workers) == (7, 3, 2)
    assert (run_dir, resume) == (Path("a b"), True)
    assert config.cluster.actor_output


@pytest.mark.parametrize(
    "line",
    [
        "train quickstart -- --loop.steps=3",
        "--loop.steps=3 train quickstart",
        "train quickstart --loop.steps=4 --loop.steps=3",
    ],
)
def test_where_settings_may_stand(call: Call, noted: list[tuple[Any, ...]], line: str) -> None:
    assert call(line)[0] == 0
    assert noted[0][0].loop.steps == 3


@pytest.mark.parametrize(
    ("words", "seed"),
    [
        ("--seed 7", 7),
        ("--seed=7 --seed=8", 8),  # the last one counts
        ("--seed 8 --seed 0", 0),
        ("--seed=7 --loop.steps=3", 7),
    ],
)
def test_the_seed(call: Call, noted: list[tuple[Any, ...]], words: str, seed: int) -> None:
    assert call(f"train quickstart {words}")[0] == 0
    ((config, run_dir, resume, _),) = noted
    assert (config.seed, run_dir.parent, resume) == (seed, Path("runs"), False)
    assert run_dir.name.startswith(f"quickstart-seed{seed}-")


def test_a_setting_may_hold_spaces_equal_signs_and_yaml(call: Call, noted: list[tuple[Any, ...]]) -> None:
    settings = "'--data.system_prompt=Say x = 1, then --stop.' --eval='{every: 3, prompts: 4}'"
    assert call(f"train quickstart {settings}")[0] == 0
    config = noted[0][0]
    assert config.data.system_prompt == "Say x = 1, then --stop."
    assert (config.eval.every, config.eval.prompts) == (3, 4)


def test_a_supervised_run_hands_its_words_on(call: Call, noted: list[tuple[Any, ...]]) -> None:
    words = "--restarts 2 --run-dir r --allow-module a --allow-module=b.c --allow-unconfined a --seed 4"
    assert call(f"train quickstart {words} --loop.steps=3")[0] == 0
    (command, run_dir, restarts), (resume,) = noted
    assert (run_dir, restarts, resume) == (Path("r"), 2, False)
    assert command == [
        *("quickstart", "--allow-module=a", "--allow-module=b.c", "--allow-unconfined=a"),
        *("--loop.steps=3", "--seed=4"),
    ]


def test_a_dry_run_of_train_prints_and_trains_nothing(call: Call, noted: list[tuple[Any, ...]]) -> None:
    code, out, err = call("train quickstart --dry-run --rollout.workers=2")
    assert (code, err, noted) == (0, "", [])
    assert "workers: 2" in out and "# derived" in out


def test_a_dry_run_of_compare(call: Call) -> None:
    words = "--arms sppo,grpo --arm mine:sppo,critic.warmup_steps=2 --seeds 2 --budget 60 --concurrent 2"
    more = "--baseline grpo --targets .4,.5 --dry-run --learner.optimizer.lr=1e-4"
    code, out, err = call(f"compare quickstart {words} {more}")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["sppo", "grpo", "mine"]
    assert "learner.optimizer.lr=1e-4" in out and "6 runs with 60 s of training, 2 at a time" in out


def test_eval(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from sppo_ray.cli import evaluate

    noted = []
    monkeypatch.setattr(evaluate, "run_evaluation", lambda config, out: noted.append((config, out)) or 143)
    words = "eval model --data running-sum:size=4 running-sum:seed=9 --data running-sum -k 4 --pass-k 4,1"
    more = "--temperature 0.5 --max-response-tokens 64 --limit 5 --seed 3 --workers 2 --out o --device=cpu"
    assert call(f"{words} {more}")[0] == 143
    ((config, out),) = noted
    assert [(source.size, source.seed) for source in config.data.held_out][0][0] == 4
    assert len(config.data.held_out) == 3 and config.data.held_out[1].seed == 9
    assert (config.eval.samples_per_prompt, config.eval.pass_k, config.eval.prompts) == (4, (1, 4), 5)
    assert (config.eval.temperature, config.rollout.max_response_tokens) == (0.5, 64)
    assert (config.seed, config.rollout.workers, out) == (3, 2, Path("o"))
    for k in ("-k8", "-k=8", "--samples-per-prompt 8", "--samples-per-prompt=8"):
        assert call(f"eval builtin:x --data running-sum {k}")[0] == 143
        config, out = noted[-1]
        assert config.eval.samples_per_prompt == 8
        assert out.parent == Path("runs") and out.name.startswith("eval-x-")


def test_serve(call: Call, noted: list[tuple[Any, ...]]) -> None:
    assert call("serve")[0] == 0
    ((settings,),) = noted
    assert settings.model_fields_set == {"runs"} and settings.runs == Path("runs")
    words = (
        "--runs r --host localhost --port 0 --ray-address http://h:1 --tokens t --allow a --allow b --rate 0 "
        "--allow-module m --allow-module n --allow-unconfined m --cors-origin http://o --python p "
        "--body-timeout 1.5 --max-body-bytes 9 --max-streams 8 --max-streams-per-caller 7"
    )
    assert call(f"serve {words}")[0] == 0
    settings = noted[1][0]
    assert (settings.runs, settings.host, settings.port) == (Path("r"), "localhost", 0)
    assert (settings.ray_address, settings.tokens) == ("http://h:1", Path("t"))
    assert (settings.allow, settings.allow_modules) == ((Path("a"), Path("b")), ("m", "n"))
    assert (settings.allow_unconfined, settings.cors_origins) == (("m",), ("http://o",))
    assert (settings.python, settings.rate_per_second, settings.body_timeout_s) == ("p", 0.0, 1.5)
    assert (settings.max_body_bytes, settings.max_streams, settings.max_streams_per_caller) == (9, 8, 7)


def test_where_runs_go_by_default(
    call: Call, noted: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPPO_RAY_RUNS", "elsewhere")
    assert call("serve")[0] == 0
    monkeypatch.delenv("SPPO_RAY_RUNS")
    cache = tmp_path / "working_dir_files" / "package"
    cache.mkdir(parents=True)
    monkeypatch.chdir(cache)
    assert call("serve")[0] == 0
    assert [note[0].runs for note in noted] == [Path("elsewhere"), Path.home() / "sppo_ray_runs"]


# ----------------------------------------------------------------------------------- jobs over REST


class Server:
    """Stands in for the client: notes what it is asked for."""

    calls: list[tuple[Any, ...]] = []

    def __init__(self, url: str | None) -> None:
        self.calls.append(("url", url))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, *arguments, named))
            command = SimpleNamespace(kind="asked")
            job = SimpleNamespace(
                id="job", state="RUNNING", commands=[command], model_dump_json=lambda indent: "JSON"
            )
            empty = SimpleNamespace(jobs=[], total=0, model_dump_json=lambda indent: "JSON")
            return {"list_jobs": empty, "log": iter(["a line\n"])}.get(name, job)

        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    from sppo_ray.api import client
    from sppo_ray.cli import jobs

    monkeypatch.setattr(jobs, "describe", lambda job: "described")
    monkeypatch.setattr(client, "Client", Server)
    monkeypatch.setattr(Server, "calls", [])
    return Server.calls


@pytest.mark.parametrize(
    ("words", "asked", "printed"),
    [
        ("logs j", ("log", "j", {"tail": 1000, "follow": False}), "a line"),
        ("logs j -f --tail 5", ("log", "j", {"tail": 5, "follow": True}), "a line"),
        ("logs --follow j", ("log", "j", {"tail": 1000, "follow": True}), "a line"),
        ("checkpoint j", ("checkpoint_job", "j", {}), "job: asked asked for, the job is RUNNING"),
        ("stop j --json", ("stop_job", "j", {"force": False}), "JSON"),
        ("stop j --force", ("stop_job", "j", {"force": True}), "job: asked asked for, the job is RUNNING"),
        ("delete j --yes", ("delete_job", "j", {}), "deleted j"),
        ("list", ("list_jobs", {"state": None, "name": None, "limit": 20}), "JOB"),
        ("list --json --name x", ("list_jobs", {"state": None, "name": "x", "limit": 20}), "JSON"),
        (
            "list --state running --state=FAILED --limit 3",
            ("list_jobs", {"state": ["RUNNING", "FAILED"], "name": None, "limit": 3}),
            "JOB",
        ),
        ("status j", ("get_job", "j", {}), "described"),
        ("status j --json", ("get_job", "j", {}), "JSON"),
    ],
)
def test_a_command_asks_the_server(
    call: Call, server: list[tuple[Any, ...]], words: str, asked: tuple[Any, ...], printed: str
) -> None:
    code, out, err = call(f"{words} --url http://h")
    assert (code, err) == (0, "") and out.startswith(printed)
    assert server == [("url", "http://h"), asked]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("pause j", {"paused": True}),
        ("resume j", {"paused": False}),
        ("scale j --rollout-workers 3", {"rollout_workers": 3}),
    ],
)
def test_a_command_changes_a_job(
    call: Call, server: list[tuple[Any, ...]], words: str, change: dict[str, Any]
) -> None:
    assert call(f"{words} --json") == (0, "JSON\n", "")
    name, job, patch, _ = server[-1]
    assert (name, job, patch.model_dump(exclude_unset=True)) == ("patch_job", "j", change)


def test_submit(call: Call, server: list[tuple[Any, ...]]) -> None:
    words = "submit quickstart --name n --seed 3 --metadata a=b --metadata c=d=e --follow --loop.steps=4"
    code, out, _ = call(words)
    assert code == 0
    assert out == "submitted job: `sppo-ray status job --watch`, `sppo-ray logs job -f`\na line\n"
    url, (_, request, _), log = server
    assert url == ("url", None)
    assert (request.recipe, request.run_name, request.seed) == ("quickstart", "n", 3)
    assert request.metadata == {"a": "b", "c": "d=e"} and request.overrides == {"loop.steps": 4}
    assert log == ("log", "job", {"tail": 0, "follow": True})


def test_token(call: Call, tmp_path: Path) -> None:
    for words, role in (("anna --tokens t", "viewer"), ("--role operator --tokens t olga", "operator")):
        code, out, err = call(f"token {words}")
        assert code == 0 and out.startswith("sppo_")
        assert err.startswith(role) and "its hash is in t; the token itself is shown only now" in err
    assert "viewer" in (tmp_path / "t").read_text() and "operator" in (tmp_path / "t").read_text()


# --------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "command", ["train quickstart", "eval m --data running-sum", "calibrate run", "replay run --step 1"]
)
def test_a_lost_worker_is_named_and_exits_with_3(
    call: Call, noted: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from sppo_ray.cli import calibrate_critic, evaluate, replay
    from sppo_ray.launch import train
    from sppo_ray.protocols import WorkerFailure

    def lose(*arguments: Any, **named: Any) -> int:
        raise WorkerFailure("rollout-1", "is gone")

    for module, name in (
        (train, "train"), (evaluate, "run_evaluation"), (calibrate_critic, "_subject"), (replay, "_config_of")
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lose)
    code, _, err = call(command)
    assert code == 3 and err.startswith("error: lost rollout-1") and err.count("\n") == 1


def test_libraries_are_quiet_unless_asked(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    deepspeed = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(deepspeed, "filters", [])
    warning = logging.LogRecord("DeepSpeed", logging.WARNING, "", 0, "no GPU", None, None)
    call("train quickstart --verbose --dry")  # refused after that
    assert "TQDM_DISABLE" not in os.environ and deepspeed.filter(warning)
    call("train quickstart --dry")
    assert os.environ["TQDM_DISABLE"] == "1" and not deepspeed.filter(warning)


def test_ctrl_c_exits_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from sppo_ray.launch import train

    def interrupt(*arguments: Any, **named: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupt)
    assert call("train quickstart") == (130, "", "interrupted\n")


def test_recipes_and_settings_print(call: Call) -> None:
    code, out, _ = call("recipes")
    assert code == 0 and any(line.startswith("quickstart ") for line in out.splitlines())
    code, out, _ = call("settings")
    assert code == 0 and "max_staleness" in out


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "sppo_ray", "settings"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
