"""The whole of it: a Ray head, the server, jobs by three doors, scaled in mid-run, the server killed, one job stopped."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sppo_ray.api.client import ApiError, Client, Event, wait_for
from sppo_ray.api.schemas import Job, JobPatch, JobRequest, JobState
from sppo_ray.api.serve_app import application
from sppo_ray.api.tokens import add_token
from sppo_ray.cli import main
from sppo_ray.errors import UserError
from tests.api.conftest import free_port, serving
from tests.api.run_directories import finished_run
from tests.ray_head import BIN, ray_head

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {"data.prompts_per_step": 32, "data.minibatch_size": 16, "data.held_out.0.size": 16, "critic.warmup_steps": 1}
LONG = 400  # steps; more than the test waits for
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

    with Client(timeout_s=120) as client:
        with serving(runs, *options, port=port, env=environment) as (_, process):
            _wait_for_ray(client)
            # Door one: POST /v1/jobs. It goes on until it is stopped.
            rest = client.submit_job(JobRequest(recipe="quickstart", overrides=SMALL | {"loop.steps": LONG}, run_name="rest"))
            assert (rest.id, rest.submission_id, rest.state, rest.submitted_by) == ("rest", "rest", "PENDING", "olga")
            with pytest.raises(ApiError, match="there is a run 'rest' already"):
                client.submit_job(JobRequest(recipe="quickstart", run_name="rest"))
            watcher = threading.Thread(target=follow, daemon=True)
            watcher.start()
            wait_for(client, "rest", trains, timeout_s=WAIT_S)
            # Up to two workers, and work only after a verified sync: the new one serves the fleet's version.
            client.patch_job("rest", JobPatch(rollout_workers=2))
            scaled = wait_for(client, "rest", lambda job: len(healthy(job)) == 2, timeout_s=WAIT_S)
            assert (scaled.wanted_workers, scaled.commands[-1].outcome) == (2, "done")
            before = scaled.step
            process.kill()  # in mid-run
            process.wait()
        with serving(runs, *options, port=port, env=environment):
            _wait_for_ray(client)
            again = client.get_job("rest")
            assert (again.state, again.recipe, again.step >= before) == ("RUNNING", "quickstart", True)
            client.patch_job("rest", JobPatch(rollout_workers=1))
            wait_for(client, "rest", lambda job: len(healthy(job)) == 1 and job.step > before, timeout_s=WAIT_S)
            # Door two: the command line. Door three: Ray's own, which this server learns of by its list.
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
    submit = [str(BIN / "ray"), "job", "submit", "--no-wait", "--address", address, "--working-dir", ".", "--", *train]
    done = subprocess.run(submit, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(word.strip("'") for word in done.stdout.split() if word.strip("'").startswith("raysubmit_"))


def _check_stream(events: list[Event], ended: Job) -> None:
    """The stream of the stopped job, over the death of the server: every step once, and how it ended."""
    assert [event.data["step"] for event in events if event.kind == "step"] == list(range(1, ended.step + 1))
    assert events[-1].kind == "end"
    assert events[-1].data == {"state": "STOPPED"}
    kinds = [event.data["kind"] for event in events if event.kind == "event"]
    assert kinds.count("control") == 3  # scale, scale, stop
    fleets = [len(event.data["workers"]) for event in events if event.kind == "state"]
    assert max(fleets) == 2


@pytest.mark.timeout(600)
def test_jobs_outlive_the_head(runs: Path) -> None:
    """A run that the dead head's cluster took with it is LOST, is shown by a server without Ray, and needs no head to be read."""
    port = free_port()
    with (
        ray_head(cpus=2) as (address, environment),
        serving(runs, "--ray-address", address, port=port, env=environment) as (url, _),
        Client(url, timeout_s=120) as client,
    ):
        client.submit_job(JobRequest(recipe="quickstart", overrides=SMALL | {"loop.steps": LONG}, run_name="orphan"))
        wait_for(client, "orphan", lambda job: job.phase == "starting actors", timeout_s=WAIT_S)
    with serving(runs, "--ray-address", address, port=port) as (url, _), Client(url) as client:
        assert client.readyz().status == "degraded"
        deadline = time.monotonic() + 90  # a heartbeat is believed for 45 s when its host is another
        while client.get_job("orphan").state is not JobState.LOST and time.monotonic() < deadline:
            time.sleep(1)
        job = client.get_job("orphan")
        assert (job.state, job.recipe) == ("LOST", "quickstart")
        assert json.loads((runs / "orphan" / "job.json").read_text())["submission_id"] == "orphan"
        client.delete_job("orphan")
        assert client.list_jobs().total == 0


@pytest.mark.timeout(600)
def test_the_same_server_as_a_serve_application(head: tuple[str, dict[str, str]], runs: Path, tmp_path: Path) -> None:
    """By one config file, as docs/api.md shows it."""
    address, environment = head
    token = add_token(tmp_path / "tokens", "olga", "operator")
    finished_run(runs, "done", steps=2)
    port = free_port()
    ours = {
        "name": "sppo-ray",
        "route_prefix": "/",
        "import_path": "sppo_ray.api.serve_app:application",
        "args": {"runs": str(runs), "tokens": str(tmp_path / "tokens"), "ray_address": address},
        "runtime_env": {"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
    }
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [ours]}))
    client_environment = environment | {"RAY_DASHBOARD_ADDRESS": address}
    deploy = [str(BIN / "serve"), "deploy", "--address", address, str(config)]
    done = subprocess.run(deploy, env=client_environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    with Client(f"http://127.0.0.1:{port}", token=token) as client:
        deadline = time.monotonic() + 240
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


def test_serve_without_tokens_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="Ray Serve listens for others"):
        application({"runs": str(runs)})
    with pytest.raises(UserError, match="rnus: unknown setting"):
        application({"rnus": str(runs)})
