"""Submissions: settings are checked, files are confined, and callers cannot change the command."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import JobRequest
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.submission import as_yaml, checked_config, entrypoint, prepare
from sppo_ray.config.loading import load_config
from tests.api.run_directories import LiveRun, own_module

ROW = '{"prompt": "a1b2=", "ground_truth": "3"}'


def refused(request: dict, runs: Path, **allowed) -> ApiProblem:
    with pytest.raises(ApiProblem) as caught:
        prepare(JobRequest(**request), ApiSettings(runs=runs, **allowed), by="alice")
    assert not list(runs.iterdir())  # what is refused leaves nothing
    return caught.value


def test_a_recipe_with_overrides(runs: Path) -> None:
    request = JobRequest(
        recipe="quickstart", overrides={"loop.steps": 7, "name": "yes", "learner.optimizer.lr": 1e-4}, seed=3
    )
    made = prepare(request, ApiSettings(runs=runs, python="python"), by="alice")
    assert made.run_dir.parent == runs
    assert made.run_dir.name.startswith("yes-seed3-")
    assert made.submission_id == made.run_dir.name
    config = load_config(str(made.run_dir / "submitted.yaml"))
    assert (config.loop.steps, config.name, config.learner.optimizer.lr, config.seed) == (7, "yes", 1e-4, 3)
    record = json.loads((made.run_dir / "submission.json").read_text())
    assert (record["recipe"], record["by"], record["entrypoint"]) == ("quickstart", "alice", made.entrypoint)
    digest = hashlib.sha256((made.run_dir / "submitted.yaml").read_bytes()).hexdigest()
    script = (
        f"exec python -m sppo_ray train {made.run_dir}/submitted.yaml --run-dir {made.run_dir} --restarts=3 "
    )
    script += f"--config-sha256={digest} > "
    assert shlex.split(made.entrypoint)[:3] == ["exec", "bash", "-c"]
    assert shlex.split(made.entrypoint)[3].startswith(script)


def test_a_whole_config_with_overrides(runs: Path) -> None:
    tree = load_config("quickstart").model_dump(mode="json")
    request = JobRequest(
        config=tree, overrides={"rollout": {"workers": 2, "max_response_tokens": 80}}, run_name="mine"
    )
    made = prepare(request, ApiSettings(runs=runs), by="alice")
    assert made.submission_id == "mine"
    assert yaml.safe_load((made.run_dir / "submitted.yaml").read_text())["rollout"]["workers"] == 2


@pytest.mark.parametrize(
    ("request_", "status", "path", "message"),
    [
        ({}, 422, "body.recipe", "give either a recipe or a config"),
        ({"recipe": "quickstart", "config": {}}, 422, "body.recipe", "give either"),
        ({"recipe": "quickstar"}, 422, "body.recipe", "did you mean quickstart?"),
        ({"recipe": "quickstart", "overrides": {"loop.stepz": 3}}, 422, "body.overrides.loop.stepz",
        "did you mean steps?"),
        ({"recipe": "quickstart", "overrides": {"loop": {"steps": 0}}}, 422, "body.overrides.loop",
        "greater than or equal to 1"),
        ({"recipe": "quickstart", "overrides": {"rollout.workers": "many"}}, 422,
        "body.overrides.rollout.workers", "integer"),
        ({"recipe": "quickstart", "overrides": {"name.x": 1}}, 422, "body.overrides.name.x",
        "is a value, not a section"),
        ({"recipe": "quickstart", "overrides": {"a b; rm -rf /": 1}}, 422, "body.overrides.a b; rm -rf "
                                                                           "/", "not the name"),
        ({"recipe": "quickstart", "overrides": {"--x": 1}}, 422, "body.overrides.--x",
        "not the name of a setting"),
        ({"config": {"data": 3}}, 422, "config.data", "is a section, not a single value"),
        ({"config": {}}, 422, "config.data", "Field required"),
        ({"recipe": "quickstart", "overrides": {"cluster.address": "auto"}}, 422, "cluster.address",
        "leave it out"),
        ({"recipe": "/etc/passwd"}, 400, "body.recipe", "outside"),
        ({"recipe": "../../etc/x.yaml"}, 400, "body.recipe", "outside"),
        ({"recipe": "a\0.yaml"}, 400, "body.recipe", "outside"),
        ({"recipe": "paper-7b"}, 400, "data.train.0.path", "outside"),
        ({"recipe": "quickstart", "overrides": {"learner.model": "/etc"}}, 400, "learner.model", "outside"),
        ({"recipe": "quickstart", "resume": True}, 422, "body.resume", "give run_name and nothing else"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_field_and_the_remedy(
    runs: Path, request_: dict, status: int, path: str, message: str
) -> None:
    problem = refused(request_, runs)
    assert problem.status == status
    assert problem.errors[0].path == path
    assert message in problem.errors[0].message + problem.detail


def test_a_verifier_of_ones_own_is_code_and_needs_leave(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(tmp_path, "mine.rewards", monkeypatch)
    overrides = {"reward.function": {"type": "custom", "function": "os:system"}}
    assert (
        refused({"recipe": "quickstart", "overrides": overrides}, runs, allow_modules=("mine",)).kind
        == "module-outside"
    )
    overrides["reward.function"]["function"] = "mine.rewards:score"
    request = JobRequest(recipe="quickstart", overrides=overrides)
    allowed = checked_config(request, ApiSettings(runs=runs, allow_modules=("mine",))).reward.function
    assert (allowed.type, allowed.packages) == ("custom", ("mine",))
    overrides["reward.function"]["function"] = "mine.rewards:scored"
    problem = refused({"recipe": "quickstart", "overrides": overrides}, runs, allow_modules=("mine",))
    assert "scored does not exist in module mine.rewards" in problem.detail
    assert "mine" not in sys.modules  # read, not run


def test_files_are_looked_into_before_a_job_starts(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1=", "ground_truth": "2"}')
    overrides = {"data.train": [{"type": "jsonl", "path": str(tmp_path / "rows.jsonl")}]}
    problem = refused({"recipe": "quickstart", "overrides": overrides}, runs, allow=(tmp_path,))
    assert problem.status == 422 and "rows.jsonl: line 1: no prompt" in problem.detail
    overrides = {"learner.model": str(tmp_path / "model")}
    problem = refused({"recipe": "quickstart", "overrides": overrides}, runs, allow=(tmp_path,))
    assert problem.status == 422 and "no such directory; give a Transformers checkpoint" in problem.detail


def test_paths_below_an_allowed_directory_become_absolute_and_links_out_of_it_do_not_help(
    runs: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "data").mkdir(parents=True)
    (shared / "data" / "train.jsonl").write_text(ROW)
    (shared / "out").symlink_to("/etc")
    recipe = shared / "mine.yaml"
    recipe.write_text(yaml.safe_dump(load_config("quickstart").model_dump(mode="json")))
    allowed = ApiSettings(runs=runs, allow=(shared,))
    source = {"data.train": [{"type": "jsonl", "path": "data/train.jsonl"}]}
    for given_as in (str(recipe), "mine.yaml"):
        config = checked_config(JobRequest(recipe=given_as, overrides=source), allowed)
        assert config.data.train[0].path == str(shared / "data" / "train.jsonl")
    for outside in ("out/passwd", "../x", "/etc/passwd", f"{shared}/../x", f"{shared}x/y"):
        escaping = {"data.train": [{"type": "jsonl", "path": outside}]}
        assert (
            refused({"recipe": "quickstart", "overrides": escaping}, runs, allow=(shared,)).kind
            == "path-outside"
        )


def test_a_name_is_taken_once(runs: Path) -> None:
    here = ApiSettings(runs=runs)
    prepare(JobRequest(recipe="quickstart", run_name="mine"), here, by="a")
    with pytest.raises(ApiProblem, match="there is a run 'mine' already") as caught:
        prepare(JobRequest(recipe="quickstart", run_name="mine"), here, by="a")
    assert caught.value.status == 409
    for name in ("../x", "a/b", "", ".hidden", "-rf", "a b", "x" * 101, "a\n", "ä"):
        with pytest.raises(ValueError, match="run_name"):
            JobRequest(recipe="quickstart", run_name=name)


def test_a_run_is_continued_with_its_own_settings_under_a_new_id(runs: Path) -> None:
    run = LiveRun(runs, overrides=["--loop.steps=77"])
    run.finish(status="stopped")
    made = prepare(JobRequest(run_name="first", resume=True), ApiSettings(runs=runs), by="alice")
    assert made.submission_id.startswith("first-20")
    assert " --resume " in made.entrypoint
    assert load_config(str(run.path / "submitted.yaml")).loop.steps == 77
    with pytest.raises(ApiProblem, match="there is no run 'nobody'"):
        prepare(JobRequest(run_name="nobody", resume=True), ApiSettings(runs=runs), by="alice")


@given(text=st.text(max_size=50))
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_from_the_file(text: str) -> None:
    assert yaml.safe_load(as_yaml({"name": text})) == {"name": text}


@pytest.mark.parametrize("text", ["1e5", "yes", "null", "\x85", "\U00010000", "a: b", "{}", "# no comment"])
def test_a_text_among_the_overrides_stays_the_same_text(runs: Path, text: str) -> None:
    made = prepare(
        JobRequest(recipe="quickstart", overrides={"name": text}), ApiSettings(runs=runs), by="alice"
    )
    assert load_config(str(made.run_dir / "submitted.yaml")).name == text


def test_the_command_has_no_word_of_the_callers_but_the_name(runs: Path) -> None:
    hostile = "x'; touch /tmp/hacked; '$(id)`id`"
    request = JobRequest(
        recipe="quickstart", overrides={"name": hostile}, run_name="mine", metadata={"m": hostile}
    )
    made = prepare(request, ApiSettings(runs=runs, python="python"), by="alice")
    digest = hashlib.sha256((made.run_dir / "submitted.yaml").read_bytes()).hexdigest()
    assert made.entrypoint == entrypoint(
        runs / "mine", "python", resume=False, checked=[f"--config-sha256={digest}"]
    )
    assert "hacked" not in made.entrypoint


def test_bottomless_settings_are_refused(runs: Path) -> None:
    deep: dict = {}
    for _ in range(600):
        deep = {"a": deep}
    assert "nested more than 20 deep" in refused({"config": deep}, runs).detail
    assert (
        "nested more than 20 deep"
        in refused({"recipe": "quickstart", "overrides": {"name": deep}}, runs).detail
    )


def test_the_entrypoint_as_a_shell_runs_it(tmp_path: Path) -> None:
    """Hostile directories stay words, the exit code is the trainer's, and its last words after
    SIGTERM are in the log.
    """
    run_dir = tmp_path / "a $(touch hacked) 'b\" ; touch hacked2 #"
    run_dir.mkdir()
    python = tmp_path / "py thon"
    python.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\n"
        "def end(*_):\n    print('last words', flush=True); sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print(sys.argv[1:], flush=True)\nprint('error', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    )
    python.chmod(0o755)
    command = entrypoint(run_dir, str(python), resume=True)
    process = subprocess.Popen(
        command, shell=True, start_new_session=True, stdout=subprocess.PIPE, cwd=tmp_path
    )
    log = run_dir / "output.log"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (log.exists() and "error" in log.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as Ray ends a job: every process of it
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    arguments = [
        "-m",
        "sppo_ray",
        "train",
        f"{run_dir}/submitted.yaml",
        "--run-dir",
        str(run_dir),
        "--restarts=3",
        "--resume",
    ]
    assert out.decode().splitlines() == [str(arguments), "error", "last words"]
    assert log.read_text() == out.decode()
    assert not list(tmp_path.glob("**/hacked*"))


def test_a_pattern_chooses_files_and_no_directories(runs: Path, tmp_path: Path) -> None:
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    (shared / "data").mkdir(parents=True)
    outside.mkdir()
    (outside / "x.jsonl").write_text(ROW)
    (shared / "data" / "a.jsonl").write_text(ROW)
    (shared / "link").symlink_to(outside)
    allowed = ApiSettings(runs=runs, allow=(shared,))

    def ask(path: str) -> JobRequest:
        return JobRequest(recipe="quickstart", overrides={"data.train": [{"type": "jsonl", "path": path}]})

    for inside in ("data", "data/*.jsonl", "data/[a].jsonl", "data/a.jsonl"):
        assert checked_config(ask(inside), allowed).data.train[0].path == str(shared / inside)
    for path in (
        "lin[k]/*.jsonl",
        "lin[k]/x.jsonl",
        "*/x.jsonl",
        "**/x.jsonl",
        "data/**",
        f"{shared}/lin[k]/*.jsonl",
    ):
        with pytest.raises(ApiProblem, match="chosen by a pattern") as caught:
            checked_config(ask(path), allowed)
        assert (caught.value.status, caught.value.kind) == (400, "path-outside")
    (shared / "data" / "b.jsonl").symlink_to(outside / "x.jsonl")
    for path in ("data", "data/*.jsonl", "data/b.jsonl"):
        with pytest.raises(ApiProblem, match="outside what this server allows"):
            checked_config(ask(path), allowed)


@pytest.mark.parametrize("text", ["[]", "{", "\0", '{"recipe": 5}', "null"])
def test_a_run_with_a_damaged_record_is_not_continued(runs: Path, text: str) -> None:
    run = LiveRun(runs)
    run.finish(status="stopped")
    (run.path / "submission.json").write_text(text)
    with pytest.raises(
        ApiProblem, match=r"submission.json of run 'first' is damaged: remove that file"
    ) as caught:
        prepare(JobRequest(run_name="first", resume=True), ApiSettings(runs=runs), by="alice")
    assert (caught.value.status, caught.value.kind) == (409, "damaged-record")
    assert (run.path / "submission.json").read_text() == text
    assert not (run.path / "submitted.yaml").exists()
