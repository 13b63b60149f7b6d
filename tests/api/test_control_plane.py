"""The whole control plane: a Ray head, the server, submission in three ways, scaling, a killed
server, a stopped job.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sppo_ray.api.client import ApiError, Client, Event, wait_for
from sppo_ray.api.schemas import Job, JobPatch, JobRequest, JobState
from sppo_ray.api.serve_app import application
from sppo_ray.api.tokens import add_token
from sppo_ray.cli.main import main
from sppo_ray.errors import UserError
from tests.api.browser import WHY_NOT, chromium
from tests.api.conftest import free_port, serving
from tests.api.documented import curls, run_curl
from tests.api.run_directories import LiveRun, finished_run
from tests.ray_head import BIN, ray_head

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {
    "data.prompts_per_step": 32,
    "data.minibatch_size": 16,
    "data.held_out.0.size": 16,
    "critic.warmup_steps": 1,
}
LONG = 5000  # steps; more than the test waits for
WAIT_S = 300.0


def flags(steps: int) -> list[str]:
    return [f"--{name}={value}" for name, value in (SMALL | {"loop.steps": steps}).items()]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    with ray_head(cpus=6) as found:
        yield found


def trains(job: Job) -> bool:
    assert not job.state.is_final, job.last_error
    return job.state is JobState.RUNNING and job.step >= 1


def healthy(job: Job) -> list[str]:
    return [worker.name for worker in job.workers if worker.state == "HEALTHY"]


@pytest.mark.timeout(1200)
def test_three_doors_scaling_a_killed_server_and_a_stop(
    head: tuple[str, dict[str, str]], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    address, environment = head
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "olga", "operator")
    port = free_port()
    options = ("--ray-address", address, "--tokens", str(tokens), "--rate", "0")
    monkeypatch.setenv("SPPO_RAY_API", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("SPPO_RAY_API_TOKEN", token)
    events: list[Event] = []

    def follow() -> None:
        with Client() as watcher:
            events.extend(watcher.event_stream("rest"))

    with Client(timeout_s=120) as client, onlooker() as page:
        with serving(runs, *options, port=port, env=environment) as (_, process):
            _wait_for_ray(client)
            # Door one: POST /v1/jobs. It goes on until it is stopped.
            rest = client.submit_job(
                JobRequest(recipe="quickstart", overrides=SMALL | {"loop.steps": LONG}, run_name="rest")
            )
            assert (rest.id, rest.submission_id, rest.state, rest.submitted_by) == (
                "rest",
                "rest",
                "PENDING",
                "olga",
            )
            with pytest.raises(ApiError, match="there is a run 'rest' already"):
                client.submit_job(JobRequest(recipe="quickstart", run_name="rest"))
            watcher = threading.Thread(target=follow, daemon=True)
            watcher.start()
            wait_for(client, "rest", trains, timeout_s=WAIT_S)
            # Up to two workers, and work only after a verified sync: the new one serves the fleet's
            # version.
            _look_at(page, f"http://127.0.0.1:{port}/#/jobs/rest", token)
            _scale_on(page, client, 2)
            scaled = wait_for(client, "rest", lambda job: len(healthy(job)) == 2, timeout_s=WAIT_S)
            assert (scaled.wanted_workers, scaled.commands[-1].outcome) == (2, "done")
            _answers_while_the_learner_is_blocked(client, runs / "rest")
            before = client.get_job("rest").step
            process.kill()  # in mid-run
            process.wait()
        with serving(runs, *options, port=port, env=environment):
            _wait_for_ray(client)
            again = client.get_job("rest")
            assert (again.state, again.recipe, again.step >= before) == ("RUNNING", "quickstart", True)
            _is_live_again(page, workers=2)
            client.patch_job("rest", JobPatch(rollout_workers=1))
            wait_for(
                client, "rest", lambda job: len(healthy(job)) == 1 and job.step > before, timeout_s=WAIT_S
            )
            _pause_checkpoint_resume(client)
            # Door two: the command line. Door three: Ray's own, which this server learns of by its
            # list.
            assert main(["submit", "quickstart", "--name", "cli", *flags(2)]) == 0
            assert "submitted cli" in capsys.readouterr().out
            bare = _submit_by_ray(address, environment, runs / "bare")
            _wait_until_listed(client, bare)
            found = wait_for(client, bare, lambda job: job.run_id == "bare", timeout_s=WAIT_S)
            assert (found.id, found.submission_id, found.recipe) == (bare, bare, "quickstart")
            assert {job.id for job in client.list_jobs().jobs} == {"rest", "cli", bare}
            # Stop one; see the others through.
            assert client.stop_job("rest").state == "STOPPING"
            ended = wait_for(client, "rest", lambda job: job.state.is_final, timeout_s=WAIT_S)
            assert (ended.state, ended.checkpoints[-1].step) == ("STOPPED", ended.step)
            with pytest.raises(ApiError, match=r"has ended \(STOPPED\)"):
                client.stop_job("rest")
            for job_id in ("cli", bare):
                job = wait_for(client, job_id, lambda job: job.state.is_final, timeout_s=WAIT_S)
                assert (job.state, job.step) == ("SUCCEEDED", 2), job.last_error
                assert client.evaluations(job_id).evaluations[-1]["step"] == 2
            assert (runs / "cli" / "curve.png").stat().st_size > 1000
            assert [row["step"] for row in client.metrics("cli", name=["reward/mean"]).rows] == [1, 2]
            assert "step 2/2  reward" in "".join(client.log("cli"))  # from the run directory
            assert "step 2/2  reward" in "".join(client.log(bare))  # from Ray
            watcher.join(timeout=60)
            _check_stream(events, ended)
            client.delete_job("cli")
            assert {job.id for job in client.list_jobs().jobs} == {"rest", bare}


@contextlib.contextmanager
def onlooker() -> Iterator[Any]:
    """A page of a real browser; None on a machine without one."""
    if WHY_NOT:
        yield None
        return
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 1440, "height": 1000})


def _look_at(page: Any, url: str, token: str) -> None:
    """The running job as a person finds it: asked for the token, then live curves, figures and
    fleet.
    """
    if page is None:
        return
    from playwright.sync_api import expect

    page.goto(url)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Bearer token").fill(token)
    dialog.get_by_role("button", name="Use this token").click()
    expect(page.locator(".live")).to_have_text("live")
    expect(page.locator(".head-state")).to_contain_text("running")
    expect(page.locator(".chart canvas").first).to_be_visible()
    expect(page.locator(".fleet tbody tr")).to_have_count(1)


def _scale_on(page: Any, client: Client, workers: int) -> None:
    """By the page's button where there is a browser, else by the client."""
    if page is None:
        client.patch_job("rest", JobPatch(rollout_workers=workers))
        return
    page.get_by_role("button", name="Scale").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Rollout workers", exact=True).fill(str(workers))
    dialog.get_by_role("button", name="Scale").click()


def _is_live_again(page: Any, *, workers: int) -> None:
    """The page was open while its server was killed and another one started."""
    if page is None:
        return
    from playwright.sync_api import expect

    expect(page.locator(".live")).to_have_text("live", timeout=60_000)
    expect(page.locator(".fleet tbody tr")).to_have_count(workers)


def _answers_while_the_learner_is_blocked(client: Client, run_dir: Path) -> None:
    """The learner's process is frozen for five seconds: the server answers, and the trainer's sign
    of life goes on.
    """
    trainer = psutil.Process(json.loads((run_dir / "job.json").read_text())["pid"])
    raylet = next(process for process in trainer.parents() if process.name() == "raylet")
    learner = next(
        process for process in raylet.children() if process.cmdline()[0].startswith("ray::LearnerRank")
    )
    seconds = []
    learner.suspend()
    try:
        before = client.get_job("rest")
        for _ in range(20):
            asked = time.monotonic()
            job = client.get_job("rest")
            seconds.append(time.monotonic() - asked)
            time.sleep(0.25)
    finally:
        learner.resume()
    assert max(seconds) < 2.0, seconds  # on a machine that is busy with more than this
    assert (job.state, job.step <= before.step + 1) == ("RUNNING", True)
    assert job.updated is not None and before.updated is not None and job.updated > before.updated


def _pause_checkpoint_resume(client: Client) -> None:
    client.patch_job("rest", JobPatch(paused=True))
    paused = wait_for(client, "rest", lambda job: job.phase == "paused", timeout_s=WAIT_S)
    assert paused.state == "PAUSED"
    client.checkpoint_job("rest")
    job = wait_for(client, "rest", lambda job: job.commands[-1].outcome != "waiting", timeout_s=WAIT_S)
    assert (job.commands[-1].kind, job.commands[-1].outcome) == ("checkpoint", "done")
    assert (job.step, job.checkpoints[-1].step) == (paused.step, paused.step)
    client.patch_job("rest", JobPatch(paused=False))
    wait_for(client, "rest", lambda job: job.state == "RUNNING" and job.step > paused.step, timeout_s=WAIT_S)


def _wait_for_ray(client: Client) -> None:
    """Importing Ray takes its time, and the job server answers a while after its port is open."""
    deadline = time.monotonic() + 120
    while client.readyz().status != "ok":
        assert time.monotonic() < deadline, client.readyz()
        time.sleep(0.5)


def _wait_until_listed(client: Client, job_id: str) -> None:
    """The server asks Ray for its list every two seconds."""
    deadline = time.monotonic() + 30
    while job_id not in [job.id for job in client.list_jobs().jobs]:
        assert time.monotonic() < deadline, client.list_jobs()
        time.sleep(0.5)


def _submit_by_ray(address: str, environment: dict[str, str], run_dir: Path) -> str:
    """`ray job submit --no-wait`; returns Ray's id."""
    train = ["python", "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir), *flags(2)]
    submit = [
        str(BIN / "ray"),
        "job",
        "submit",
        "--no-wait",
        "--address",
        address,
        "--working-dir",
        ".",
        "--",
        *train,
    ]
    done = subprocess.run(
        submit, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(word.strip("'") for word in done.stdout.split() if word.strip("'").startswith("raysubmit_"))


def _check_stream(events: list[Event], ended: Job) -> None:
    """The stream of the stopped job, over the death of the server: every step once, and how it
    ended.
    """
    assert [event.data["step"] for event in events if event.kind == "step"] == list(range(1, ended.step + 1))
    assert events[-1].kind == "end"
    assert events[-1].data == {"state": "STOPPED"}
    kinds = [event.data["kind"] for event in events if event.kind == "event"]
    assert kinds.count("control") == 6  # scale, scale, pause, checkpoint, resume, stop
    fleets = [len(event.data["workers"]) for event in events if event.kind == "state"]
    assert max(fleets) == 2


@pytest.mark.timeout(600)
def test_jobs_outlive_the_head(runs: Path) -> None:
    """A run that the dead head's cluster took with it is LOST, is shown by a server without Ray,
    and needs no head to be read.
    """
    port = free_port()
    with (
        ray_head(cpus=2) as (address, environment),
        serving(runs, "--ray-address", address, port=port, env=environment) as (url, _),
        Client(url, timeout_s=120) as client,
    ):
        client.submit_job(
            JobRequest(recipe="quickstart", overrides=SMALL | {"loop.steps": LONG}, run_name="orphan")
        )
        wait_for(client, "orphan", lambda job: job.phase == "starting actors", timeout_s=WAIT_S)
    with serving(runs, "--ray-address", address, port=port) as (url, _), Client(url) as client:
        assert client.readyz().status == "degraded"
        # a heartbeat is believed for 45 s when its host is another
        deadline = time.monotonic() + 90
        while client.get_job("orphan").state is not JobState.LOST and time.monotonic() < deadline:
            time.sleep(1)
        job = client.get_job("orphan")
        assert (job.state, job.recipe) == ("LOST", "quickstart")
        assert json.loads((runs / "orphan" / "job.json").read_text())["submission_id"] == "orphan"
        client.delete_job("orphan")
        assert client.list_jobs().total == 0


@pytest.mark.timeout(900)
def test_the_same_server_as_a_serve_application(
    head: tuple[str, dict[str, str]], runs: Path, tmp_path: Path
) -> None:
    """By the RayService's own Serve config, with the paths and the address of this test in it."""
    address, environment = head
    token = add_token(tmp_path / "tokens", "olga", "operator")
    finished_run(runs, "done", steps=2)
    port = free_port()
    service = yaml.safe_load(
        (REPOSITORY / "deploy/kubernetes/overlays/cpu-service/rayservice.yaml").read_text(encoding="utf-8")
    )
    content = yaml.safe_load(service["spec"]["serveConfigV2"])
    content["http_options"] = {"host": "127.0.0.1", "port": port}
    (ours,) = content["applications"]
    ours["args"] |= {"runs": str(runs), "tokens": str(tmp_path / "tokens"), "ray_address": address}
    ours["runtime_env"] = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(content))
    client_environment = environment | {"RAY_DASHBOARD_ADDRESS": address}
    deploy = [str(BIN / "serve"), "deploy", "--address", address, str(config)]
    done = subprocess.run(
        deploy, env=client_environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with Client(f"http://127.0.0.1:{port}", token=token) as client:
        deadline = time.monotonic() + 480
        while True:
            try:
                assert client.healthz().status == "ok"
                break
            except UserError as error:  # not listening yet, or Serve's own 404 while it deploys
                assert time.monotonic() < deadline, error
                time.sleep(1)
        _wait_for_ray(client)
        assert client.get_job("done").state == "SUCCEEDED"
        assert [event.kind for event in client.event_stream("done")][-1] == "end"
        with Client(f"http://127.0.0.1:{port}") as stranger, pytest.raises(ApiError, match="no valid token"):
            stranger.list_jobs()
    shutdown = [str(BIN / "serve"), "shutdown", "--yes", "--address", address]
    subprocess.run(shutdown, env=client_environment, capture_output=True, timeout=120, check=True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.timeout(300)
def test_the_documented_calls_that_need_a_head(
    head: tuple[str, dict[str, str]], runs: Path, tmp_path: Path
) -> None:
    """Those of test_docs.py that Ray's absence answers there. The jobs' interpreter sleeps instead
    of training.
    """
    address, environment = head
    token = add_token(tmp_path / "tokens", "olga", "operator")
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    submits = [
        command
        for page in ("api.md", "operations.md")
        for command in curls(page)
        if re.search("-X POST .*/v1/jobs |--json", command)
    ]
    (force,) = [command for command in curls("api.md") if "force=true" in command]
    assert len(submits) == 4
    options = ("--ray-address", address, "--tokens", str(tmp_path / "tokens"), "--python", str(sleeper))
    with serving(runs, *options, env=environment) as (url, _), Client(url, token=token) as client:
        _wait_for_ray(client)
        # of the tests before, on the same head
        earlier = {job.id for job in client.list_jobs().jobs}
        for number, command in enumerate(submits):
            if "resume" in command:
                LiveRun(runs, f"old-{number}").finish(status="stopped")
            command = command.replace('"first", "resume"', f'"old-{number}", "resume"')
            status, body = run_curl(command, url=url, token=token, folder=tmp_path)
            assert (status, json.loads(body)["state"]) == (201, "PENDING"), f"{command}: {body}"
        assert (client.get_job("first").seed, client.get_job("first").metadata) == (1, {"team": "reasoning"})
        ids = {job.id for job in client.list_jobs().jobs} - earlier
        assert len(ids) == 4
        status, body = run_curl(force, url=url, token=token, folder=tmp_path)
        assert status == 202, body
        for job_id in ids - {"first"}:
            client.stop_job(job_id)  # at once: their trainers have not begun
        for job_id in ids:
            wait_for(client, job_id, lambda job: job.state == "STOPPED", timeout_s=60)


def test_serve_without_tokens_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="Ray Serve listens for others"):
        application({"runs": str(runs)})
    with pytest.raises(UserError, match="rnus: unknown setting"):
        application({"rnus": str(runs)})
