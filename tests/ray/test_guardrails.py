"""A real run with a diverging critic: the guardrail pauses it, and the REST API shows the
diagnosis.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sppo_ray.api.app import create_app
from sppo_ray.api.settings import ApiSettings
from sppo_ray.rundir.commands import send
from sppo_ray.rundir.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=16",
    "--critic.warmup_steps=0",
    "--eval.every=0",
    "--eval.at_start=false",
    "--checkpoint.export=false",
    "--logging.progress=plain",
    "--loop.steps=60",
    "--critic.optimizer.lr=1000",
]
SECRETS = {"HF_TOKEN": "hf_" + "Q7" * 17, "PLANTED_API_KEY": "value-of-the-planted-key"}
TIMEOUT_S = 240


def status_of(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@pytest.mark.slow
def test_a_critic_that_is_blown_up_pauses_the_run_with_the_diagnosis(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "sick"
    command = [sys.executable, "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir), *SMALL]
    output = (tmp_path / "output").open("w")
    run = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output, env=os.environ | SECRETS)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while (
            status_of(run_dir).get("phase") != "paused" and run.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        assert status_of(run_dir).get("phase") == "paused", (tmp_path / "output").read_text()
        server = create_app(ApiSettings(runs=run_dir.parent, ray_address="http://127.0.0.1:1", refresh_s=0))
        with TestClient(server, base_url="http://127.0.0.1", client=("127.0.0.1", 5000)) as api:
            job = api.get("/v1/jobs/sick").json()
            # The critic's weights overflow within the first steps; each of its two updates a step
            # is skipped from then on.
            assert job["state"] == "PAUSED" and job["step"] <= 20
            (alert,) = job["alerts"]
            assert (alert["detector"], alert["action"], alert["step"]) == (
                "skipped_updates",
                "pause",
                job["step"],
            )
            assert "critic/grad_norm not finite, 2 updates of the step skipped" in alert["message"]
            assert read_metrics(run_dir)[-1]["guardrail/skipped_updates"] == 1.0
            assert "guardrail (pause): skipped updates: critic/grad_norm" in (tmp_path / "output").read_text()
            # Its user looks, and lets it go on: the same alarm does not hold it again.
            assert api.patch("/v1/jobs/sick", json={"paused": False}).status_code == 202
            later = job
            while (
                later["step"] < job["step"] + 2 or later["state"] != "RUNNING"
            ) and time.monotonic() < deadline:
                time.sleep(0.1)
                later = api.get("/v1/jobs/sick").json()
            assert (later["state"], later["alerts"]) == ("RUNNING", [alert])
        send(run_dir, "stop")
        assert run.wait(60) == 0
    finally:
        if run.poll() is None:
            run.kill()
        output.close()
    assert status_of(run_dir)["phase"] == "stopped" and status_of(run_dir)["alerts"]
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pt" for path in written)  # the checkpoint of the stop
    for path in (*written, tmp_path / "output"):
        content = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], path
