"""The server's command line defines what a job may run, at submission, on resume and at the
start.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sppo_ray.api.path_policy import confined
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import JobRequest
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.submission import Submission, checked_config, prepare
from sppo_ray.cli.main import main
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from tests.api.run_directories import LiveRun, own_module
from tests.api.test_jobs import problem

CUSTOM = "--reward.function={type: custom, function: 'evil.code:reward'}"


def submitted(request: dict, runs: Path, **allowed) -> Submission:
    return prepare(JobRequest(**request), ApiSettings(runs=runs, python="python", **allowed), by="alice")


def refused(request: dict, runs: Path, **allowed) -> ApiProblem:
    with pytest.raises(ApiProblem) as caught:
        submitted(request, runs, **allowed)
    return caught.value


def words(job: Submission) -> list[str]:
    """Of the trainer's command line."""
    return shlex.split(shlex.split(job.entrypoint)[3])


def stopped(runs: Path, *overrides: str) -> Path:
    run = LiveRun(runs, overrides=list(overrides))
    run.finish(status="stopped")
    return run.path


# --------------------------------------------------------------------------------------- continuing


def test_a_strangers_run_does_not_bring_its_own_code(runs: Path) -> None:
    run = stopped(runs, CUSTOM)
    asked = refused({"run_name": "first", "resume": True}, runs)
    assert (asked.status, asked.kind) == (400, "module-outside")
    assert "asks for code of module 'evil.code'" in asked.detail and "--allow-module" in asked.detail
    assert not (run / "submitted.yaml").exists() and not (run / "submission.json").exists()
    job = submitted({"run_name": "first", "resume": True}, runs, allow_modules=("evil",))
    assert "--allow-module=evil.code" in words(job) and "--resume" in words(job)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("--data.train=[{type: jsonl, path: /etc/passwd}]", "data.train.0.path"),
        ("--data.held_out=[{type: parquet, path: /etc/x.parquet}]", "data.held_out.0.path"),
        ("--learner.model=/etc", "learner.model"),
        ("--critic.model=/etc", "critic.model"),
    ],
)
def test_nor_does_it_name_files_outside(runs: Path, override: str, field: str) -> None:
    stopped(runs, override)
    asked = refused({"run_name": "first", "resume": True}, runs)
    assert (asked.status, asked.kind) == (400, "path-outside")
    assert asked.errors[0].path == field


def test_a_relative_path_of_a_run_is_refused_with_the_remedy(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    stopped(runs, "--data.train=[{type: jsonl, path: a.jsonl}]")
    asked = refused({"run_name": "first", "resume": True}, runs, allow=(tmp_path,))
    assert (asked.status, asked.kind) == (409, "relative-path")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("--learner.model=org/none", "learner.model"),
        ("--data.train=[{type: hf, dataset: org/none}]", "data.train.0.dataset"),
    ],
)
def test_a_server_does_not_download_from_the_hub(
    override: str, field: str, runs: Path, tmp_path: Path
) -> None:
    stopped(runs, override)
    asked = refused({"run_name": "first", "resume": True}, runs, allow=(tmp_path,))
    assert (asked.status, asked.kind, asked.errors[0].path) == (400, "path-outside", field)
    assert "hf download" in asked.detail


@pytest.mark.parametrize(
    "text",
    ["a: &a [1]\nb: *a", "[" * 5000, "name: x\nname: y", "\0", "- 1", "nothing: 1", "x: " + "y" * 2_000_000],
)
def test_settings_that_cannot_be_read_are_not_continued(runs: Path, text: str) -> None:
    (stopped(runs) / "config.yaml").write_text(text)
    asked = refused({"run_name": "first", "resume": True}, runs)
    assert (asked.status, asked.kind) == (409, "damaged-record")


def test_a_secret_in_a_run_is_not_handed_on(runs: Path) -> None:
    run = stopped(runs)
    text = (run / "config.yaml").read_text().replace("name: quickstart", "name: ghp_" + "a1B2" * 9)
    (run / "config.yaml").write_text(text)
    asked = refused({"run_name": "first", "resume": True}, runs)
    assert asked.status == 409 and "holds a secret" in asked.detail and "a1B2" not in asked.detail


@pytest.mark.parametrize("name", ["output.log", "metrics.jsonl", "events.jsonl"])
def test_a_job_does_not_append_through_a_link(runs: Path, tmp_path: Path, name: str) -> None:
    run = stopped(runs)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "victim")
    asked = refused({"run_name": "first", "resume": True}, runs)
    assert (asked.status, asked.kind) == (409, "link-in-run")
    assert name in asked.detail


def test_the_server_refuses_it_too(make_server: Callable[..., TestClient], runs: Path) -> None:
    stopped(runs, CUSTOM)
    answer = make_server().post("/v1/jobs", json={"run_name": "first", "resume": True})
    problem(answer, 400, "module-outside")  # though Ray is away
    assert not (runs / "first" / "submitted.yaml").exists()


# --------------------------------------------------------------------------------------- submitting


@pytest.mark.parametrize(
    ("function", "allowed", "what"),
    [
        ({"function": "sympy:sympify", "packages": ["sympy"]}, (), "module 'sympy'"),
        (
            {"function": "sppo_ray.rewards.last_number:reward", "packages": ["sympy"]},
            (),
            "the installed package 'sympy'",
        ),
        (
            {"function": "mine.rewards:score", "packages": ["sympy"]},
            ("mine",),
            "the installed package 'sympy'",
        ),
        ({"function": "sppo_ray.launch.supervisor:Supervisor"}, (), "module 'sppo_ray.launch.supervisor'"),
        ({"function": "sppo_ray.rewards.last_number:answer"}, (), "module 'sppo_ray.rewards.last_number'"),
        ({"function": "minefield:x"}, ("mine",), "module 'minefield'"),
    ],
)
def test_settings_grant_themselves_nothing(runs: Path, function: dict, allowed: tuple, what: str) -> None:
    overrides = {"reward.function": {"type": "custom", **function}}
    asked = refused({"recipe": "quickstart", "overrides": overrides}, runs, allow_modules=allowed)
    assert (asked.status, asked.kind) == (400, "module-outside")
    assert what in asked.detail
    assert not list(runs.iterdir())


def test_the_recipe_with_the_packages_own_function_is_taken(runs: Path) -> None:
    job = submitted({"recipe": "smollm2-arithmetic"}, runs)
    function = load_config(str(job.run_dir / "submitted.yaml")).reward.function
    assert (function.function, function.packages) == ("sppo_ray.rewards.last_number:reward", ())
    assert not any(word.startswith("--allow") for word in words(job))


@pytest.mark.parametrize("name", ["quickstart", "long-sum", "smollm2-arithmetic"])
def test_every_recipe_without_files_is_taken(runs: Path, name: str) -> None:
    checked_config(JobRequest(recipe=name), ApiSettings(runs=runs))


# ----------------------------------------------------------------------------------- when it starts


def test_the_job_is_held_to_what_was_checked(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(tmp_path, "mine.rewards", monkeypatch)
    overrides = {"reward.function": {"type": "custom", "function": "mine.rewards:score"}}
    job = submitted({"recipe": "quickstart", "overrides": overrides}, runs, allow_modules=("mine",))
    file = job.run_dir / "submitted.yaml"
    arguments = words(job)[words(job).index("train") : words(job).index(">")] + ["--dry-run"]
    assert main(arguments) == 0
    file.write_text(file.read_text().replace("mine.rewards:score", "evil.code:reward"))
    assert main(arguments) == 2
    assert "was changed after it was checked" in capsys.readouterr().err


def test_without_the_flag_settings_of_a_run_directory_do_not_start(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(tmp_path, "evil.code", monkeypatch, function="reward")
    path = stopped(runs, CUSTOM) / "config.yaml"
    assert main(["train", str(path), "--dry-run"]) == 2
    assert "add --allow-module=evil.code" in capsys.readouterr().err
    assert main(["train", str(path), "--dry-run", "--allow-module=evil"]) == 0
    assert main(["train", str(path), "--dry-run", "--reward.function={type: running-sum}"]) == 0


# ------------------------------------------------------------------------------------------ secrets

TOKEN = "sk-" + "abcdefgh12345678"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
OWN = "sppo_" + "aB3-" * 10 + "xyz"


@pytest.mark.parametrize("secret", [TOKEN, JWT, OWN, "https://u:hunter22@host/x", "ghp_" + "a1B2" * 9])
@pytest.mark.parametrize(
    "request_",
    [
        {"recipe": "quickstart", "overrides": {"name": "SECRET"}},
        {"recipe": "quickstart", "overrides": {"data.system_prompt": "use SECRET now"}},
        {"recipe": "quickstart", "overrides": {"loop": {"SECRET": 1}}},
        {"recipe": "quickstart", "metadata": {"note": "SECRET"}},
        {"recipe": "quickstart", "metadata": {"SECRET": "note"}},
        {"recipe": "SECRET.yaml"},
        {"config": {"name": "SECRET"}},
        {"run_name": "first", "resume": True, "metadata": {"note": "SECRET"}},
    ],
)
def test_a_secret_in_a_request_is_refused_before_anything_is_written(
    runs: Path, secret: str, request_: dict
) -> None:
    asked = refused(json.loads(json.dumps(request_).replace("SECRET", secret)), runs)
    assert (asked.status, asked.kind) == (422, "holds-secret")
    assert secret not in asked.detail and secret not in str(asked.errors)
    assert not list(runs.iterdir())


@pytest.mark.parametrize("name", [TOKEN, OWN])
def test_nor_is_it_a_jobs_name(runs: Path, name: str) -> None:
    assert refused({"recipe": "quickstart", "run_name": name}, runs).kind == "holds-secret"


@pytest.mark.parametrize(
    "key", ["password", "db.password", "API_KEY", "secret", "token", "hub_token", "aws-secret-key"]
)
def test_nor_is_a_value_under_the_name_of_one(runs: Path, key: str) -> None:
    asked = refused({"recipe": "quickstart", "metadata": {key: "hunter22"}}, runs)
    assert (asked.kind, asked.errors[0].path) == ("holds-secret", f"body.metadata.{key}")
    assert "hunter22" not in asked.detail


def test_what_only_sounds_like_a_secret_is_taken(runs: Path) -> None:
    metadata = {
        "tokenizer": "smollm2",
        "max_tokens": "2048",
        "file": "sk-learn-2024.jsonl",
        "note": "The password: guess it",
    }
    submitted({"recipe": "quickstart", "metadata": metadata}, runs)


def test_a_recipe_below_an_allowed_directory_holds_none_either(runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"name: {TOKEN}\n")
    asked = refused({"recipe": str(recipe)}, runs, allow=(tmp_path,))
    assert asked.status == 422 and TOKEN not in asked.detail


def test_a_recipe_with_aliases_is_refused(runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("a: &a [1]\nb: *a\n")
    asked = refused({"recipe": str(recipe)}, runs, allow=(tmp_path,))
    assert asked.status == 422 and "the anchor &a" in asked.detail
    with pytest.raises(UserError, match="the anchor"):
        load_config(str(recipe))


def test_a_reward_model_lies_below_the_allowed_directories(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    (allowed / "reward").mkdir(parents=True)
    settings = ApiSettings(runs=tmp_path, allow=(allowed,))

    def config(model: str) -> RunConfig:
        part = f"{{name: liked, function: {{type: model, model: '{model}', transform: {{type: sigmoid}}}}}}"
        return load_config("quickstart", [f"--reward.function={{type: sum, parts: [{part}]}}"])

    (model,) = confined(config("reward"), settings).reward.models
    assert model.model == str(allowed / "reward")
    with pytest.raises(ApiProblem, match="reward.function.parts.0.function.model"):
        confined(config("/etc"), settings)


def test_a_judge_is_reached_only_with_permission(runs: Path) -> None:
    judge = "{type: judge, url: 'http://judge.test:8000/v1', model: m, rubric: '{response}'}"
    stopped(runs, f"--reward.function={judge}")
    asked = refused({"run_name": "first", "resume": True}, runs)
    assert "requests to 'judge.test:8000'" in asked.detail and "--allow-unconfined" in asked.detail
    job = submitted({"run_name": "first", "resume": True}, runs, allow_unconfined=("judge.test:8000",))
    assert "--allow-unconfined=judge.test:8000" in words(job)
