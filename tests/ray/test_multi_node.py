"""A Ray cluster of three hosts, started by the commands of docker/compose.yaml, with the RayJob's
entrypoint.

The hosts are network namespaces on this machine, so actors communicate over a network.
`make test-cluster`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sppo_ray.models.bundled import cache_directory, resolve_model
from tests.ray.network_hosts import SHARED, Hosts, why_not

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = shlex.quote(sys.executable)
RUN_DIR = "quickstart"
SMALL = (
    "--data.prompts_per_step=32 --data.minibatch_size=16 --data.held_out.0.size=16 --loop.steps=2 "
    "--critic.warmup_steps=1"
    " --eval.every=0 --learner.ranks=2"
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# Run on the head by Ray's own client, as the KubeRay operator does in HTTPMode: the entrypoint is a
# string for a shell.
SUBMIT = """
import sys
from ray.job_submission import JobSubmissionClient
print(JobSubmissionClient(sys.argv[1]).submit_job(entrypoint=sys.argv[2], submission_id="quickstart"))
"""
NODES_OF_ACTORS = """
import json, ray
from ray.util.state import list_actors
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
print(json.dumps([[a.class_name, a.node_id, addresses[a.node_id]] for a in list_actors(limit=1000)]))
"""


def compose_command(service: str) -> str:
    services = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text(encoding="utf-8"))["services"]
    return services[service]["command"]


def job_entrypoint() -> str:
    job = yaml.safe_load(
        (REPOSITORY / "deploy/kubernetes/overlays/cpu-job/rayjob.yaml").read_text(encoding="utf-8")
    )
    return job["spec"]["entrypoint"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """head, worker-1 and worker-2, joined to one Ray cluster."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    resolve_model("builtin:running-sum")  # made once a machine: the hosts share its cache
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_worker_niceness": "0",
        "SPPO_RAY_RUNS": f"{SHARED}/runs",
        "SPPO_RAY_CACHE": str(cache_directory()),
    }
    logs = {name: folder / f"{name}.log" for name in ("head", "worker-1", "worker-2")}
    hosts = Hosts(list(logs), folder / "lab", environment)
    (hosts.shared / "runs").mkdir()
    try:
        # one after the other, as `condition: service_healthy` has it
        for name, log in logs.items():
            with log.open("wb") as output:
                node = hosts.start(name, compose_command("head" if name == "head" else "worker"), output)
            hosts.wait_for(name, health_check(), 180, alive=node)
        yield hosts
    except AssertionError as error:
        raise AssertionError(
            f"{error}\n" + "\n".join(f"--- {n}\n{_end_of(log)}" for n, log in logs.items())
        ) from None
    finally:
        hosts.close()


def _end_of(log: Path) -> str:
    return log.read_text()[-3000:] if log.exists() else "not started"


def health_check() -> str:
    """The image's own: what follows CMD of the Dockerfile's HEALTHCHECK."""
    text = (REPOSITORY / "docker/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("HEALTHCHECK"))
    return shlex.join(json.loads(line[line.index("[") :]))


def test_rollout_workers_on_two_hosts_train(hosts: Hosts) -> None:
    submit = (
        f"{PYTHON} -c {shlex.quote(SUBMIT)} http://head:8265 {shlex.quote(f'{job_entrypoint()} {SMALL}')}"
    )
    assert hosts.run("worker-2", submit) == "quickstart\n"  # from another host, over the network
    hosts.run("worker-2", "ray job logs --follow --address http://head:8265 quickstart", timeout_s=600)
    run = hosts.shared / "runs" / RUN_DIR
    log = hosts.run("head", "ray job logs --address http://head:8265 quickstart")
    assert (run / "summary.json").exists(), log
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["samples"]) == ("finished", 2, 64)

    actors: list[list[Any]] = json.loads(
        hosts.run("head", f"{PYTHON} -c {shlex.quote(NODES_OF_ACTORS)}").splitlines()[-1]
    )
    places = {
        kind: sorted(address for name, _, address in actors if name == kind)
        for kind in {a[0] for a in actors}
    }
    workers = [hosts.addresses["worker-1"], hosts.addresses["worker-2"]]
    assert places["RolloutWorker"] == workers, "one engine on each worker"
    assert len({node for name, node, _ in actors if name == "RolloutWorker"}) == 2
    assert places["LearnerRank"] == workers, "two learner ranks that talk gloo over the network"
    on_head = {name for name, _, address in actors if address == hosts.addresses["head"]}
    assert on_head == {"JobSupervisor"}, "the head runs the driver, under Ray's own actor, and none of ours"


def test_nodes_expose_the_metrics_that_the_dashboard_shows(hosts: Hosts) -> None:
    shown = (REPOSITORY / "deploy/monitoring/grafana-dashboard.json").read_text(encoding="utf-8")
    wanted = {name for name in re.findall(r"\bray_\w+", shown) if "gpu" not in name and "gram" not in name}
    seen: set[str] = set()
    # a node reports its first figures some seconds after it joined
    deadline = time.monotonic() + 60
    while not wanted <= seen and time.monotonic() < deadline:
        seen = set(
            re.findall(
                r"^# TYPE (\S+)", hosts.run("head", "wget -q -T 10 -O - http://worker-1:8080/metrics"), re.M
            )
        )
        time.sleep(1)
    assert wanted and wanted <= seen
