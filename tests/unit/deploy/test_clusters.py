"""`ray up`, Slurm, Prometheus and Grafana, and the commands of the deployment's documentation."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.unit.deploy.files import (
    DEPLOY,
    OVERLAYS,
    REPOSITORY,
    SHARED,
    check_ray_start,
    command_names,
    parse_ours,
    text_of,
    training_run,
)

SBATCH = "deploy/slurm/train.sbatch"
# of Ray 2.60, as its own dashboards use them and as test_multi_node.py finds them on a node
RAY_METRICS = {
    "ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_object_store_memory",
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
}  # fmt: skip


def joined(text: str) -> list[str]:
    """The lines of a shell text, with continued ones joined."""
    return re.sub(r"\\\n\s*", " ", text).splitlines()


# ------------------------------------------------------------------------------------------- ray up


def test_ray_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(text_of("deploy/ray-up/cluster.yaml"))
    validate_config(prepare_config(config))
    assert len(config["provider"]["worker_ips"]) == config["min_workers"] == config["max_workers"]
    assert {f"--volume={SHARED}:{SHARED}", "--ulimit=memlock=-1:-1"} <= set(config["docker"]["run_options"])


def test_the_cluster_file_starts_ray_and_the_server() -> None:
    config = yaml.safe_load(text_of("deploy/ray-up/cluster.yaml"))
    lines = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [check_ray_start(shlex.split(line.partition("; ")[2])) for line in lines if "ray start" in line]
    assert [start["head"] for start in starts] == [True, False]
    assert starts[1]["address"] == f"$RAY_HEAD_IP:{starts[0]['port']}"
    (serve,) = [shlex.split(line) for line in lines if "sppo-ray serve" in line]
    options, rest = parse_ours(serve[serve.index("sppo-ray") + 1 : serve.index(">/tmp/sppo-ray-serve.log")])
    assert not rest and options.host == "127.0.0.1", "no tokens, so nobody but the head itself"
    assert options.ray_address == f"http://127.0.0.1:{starts[0]['dashboard_port']}"


# -------------------------------------------------------------------------------------------- Slurm


def test_the_slurm_script_is_a_shell_script() -> None:
    subprocess.run(["bash", "-n", str(REPOSITORY / SBATCH)], check=True, timeout=10)
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", str(REPOSITORY / SBATCH)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout


def test_the_slurm_script_s_commands_exist() -> None:
    lines = joined(text_of(SBATCH))
    values = {"address": "10.0.0.1", "port": "20001", "cpus": "4", "gpus": "0", "RAY_TMPDIR": "/tmp/ray-1"}
    starts = []
    for line in (
        line for line in lines if "ray start" in line and line.startswith(("on_one_node", "    on_one_node"))
    ):
        for name, value in values.items():
            line = line.replace(f"${name}", value)
        starts.append(check_ray_start(shlex.split(line.rstrip("& "))[2:]))
    head, worker = starts
    assert head["head"] and head["block"] and worker["block"] and not worker["head"]
    assert worker["address"] == f"{head['node_ip_address']}:{head['port']}"
    (train,) = [line for line in lines if line.startswith("python -m sppo_ray")]
    options, settings = parse_ours(["train", "quickstart", "--run-dir=runs/a", "--resume"])
    assert options.resume and "train" in train and not settings
    assert "RAY_AUTH_TOKEN=" not in "".join(line for line in lines if "srun" in line), (
        "never on a command line"
    )


# what the script calls, in the least that lets it go on; `python` leaves what it was asked to train
# with
FAKES = {
    "scontrol": "echo node-1",
    "srun": 'case "$*" in *"ray start"*) exec sleep 10 &>/dev/null ;; *) echo 10.0.0.1 ;; esac',
    "ray": "true",
    "python": '[ "$2" != sppo_ray ] || printf "%s\\n" "$@" >"$WORDS"',
}


def trained_with(tmp_path: Path, *arguments: str) -> SimpleNamespace:
    """Options of `sppo-ray train` when the script is submitted with `arguments`, on one fake
    node.
    """
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    for name, body in FAKES.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "sppo-ray",
        "SLURM_JOB_NODELIST": "node-1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    environment = {
        "PATH": os.environ["PATH"],
        "SPPO_RAY_VENV": str(programs.parent),
        "WORDS": str(tmp_path / "words"),
        **job,
    }
    command = ["bash", str(REPOSITORY / SBATCH), *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    options, settings = parse_ours((tmp_path / "words").read_text(encoding="utf-8").splitlines()[2:])
    assert options.recipe == "quickstart" and settings == ["--loop.steps=3"]
    return options


@pytest.mark.parametrize(
    "given", [["--run-dir=runs/a b"], ["--run-dir", "runs/a b"]], ids=["equals", "space"]
)
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_slurm_job_runs_where_it_is_told_and_resumes_there(
    given: list[str], again: bool, tmp_path: Path
) -> None:
    if again:
        (tmp_path / "runs/a b").mkdir(parents=True)
        (tmp_path / "runs/a b/config.yaml").touch()
    options = trained_with(tmp_path, "quickstart", *given, "--loop.steps=3")
    assert (str(options.run_dir), options.resume) == ("runs/a b", again)


def test_a_slurm_job_without_a_run_directory_has_one_of_its_own(tmp_path: Path) -> None:
    options = trained_with(tmp_path, "quickstart", "--loop.steps=3")
    assert (options.run_dir, options.resume) == (tmp_path / "runs/sppo-ray-7", False)


# --------------------------------------------------------------------------- Prometheus and Grafana


def our_metrics() -> set[str]:
    """Names that the server exposes, whether or not there is a job."""
    from sppo_ray.api.prometheus import exposition

    text = exposition([], ray_up=True, streams=0).decode()
    return set(re.findall(r"^# TYPE (\S+)", text, re.M))


def expressions() -> list[str]:
    dashboard = json.loads(text_of("deploy/monitoring/grafana-dashboard.json"))
    rules = yaml.safe_load(text_of("deploy/monitoring/alerts.yml"))["groups"][0]["rules"]
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + [
        rule["expr"] for rule in rules
    ]


def test_panels_and_alerts_ask_for_metrics_that_exist() -> None:
    asked = {name for text in expressions() for name in re.findall(r"\b(?:sppo_ray|ray)_\w+", text)}
    assert len(asked) > 15
    assert asked <= our_metrics() | RAY_METRICS


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads(text_of("deploy/monitoring/grafana-dashboard.json"))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24 and panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "run"}


def test_prometheus_scrapes_the_ports_that_are_used() -> None:
    config = yaml.safe_load(text_of("deploy/monitoring/prometheus.yml"))
    ports = {
        job["job_name"]: {t.split(":")[1] for s in job["static_configs"] for t in s["targets"]}
        for job in config["scrape_configs"]
    }
    assert ports == {"sppo-ray": {"8642"}, "ray": {"8080"}}
    assert all((DEPLOY / "monitoring" / name).exists() for name in config["rule_files"])
    if shutil.which("promtool"):
        for check in (["config", "--syntax-only", "prometheus.yml"], ["rules", "alerts.yml"]):
            done = subprocess.run(
                ["promtool", "check", *check],
                cwd=DEPLOY / "monitoring",
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------ documentation


def documented() -> list[tuple[str, str]]:
    """(file, command) of every code block and table of the deployment's pages."""
    found = []
    for page in ("deploy/README.md", "docs/operations.md", "docs/api.md"):
        for block in re.findall(r"```\w*\n(.*?)```", text_of(page), re.S):
            found += [(page, line.partition("  #")[0].strip()) for line in joined(block)]
        found += [
            (page, command)
            for command in re.findall(r"`((?:sppo-ray|kubectl|docker|sbatch|make|ray) [^`]+)`", text_of(page))
        ]
    return [(page, command) for page, command in found if command]


PLACEHOLDERS = {"JOB": "raysubmit_1", "RECIPE": "quickstart", "NAME": "alice"}


def words_of_ours(command: str) -> list[str]:
    """What a documented command hands to our program; [] for another program's command."""
    match = re.search(r"(?:^|; )(?:\w+=\S+ )*sppo-ray (.+)|python -m sppo_ray (.+)", command)
    text = re.sub(r"\s*[<>|].*$|`", "", (match[1] or match[2]) if match else "")
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(text)]


@pytest.mark.parametrize(
    "words", [words for _, command in documented() if (words := words_of_ours(command))], ids=" ".join
)
def test_our_commands_in_the_pages_parse(words: list[str]) -> None:
    if len(words) == 1:  # the name of a command, not a use of it
        assert words[0] in command_names()
        return
    options, rest = parse_ours(words)
    assert all(text.startswith("--") and "=" in text for text in rest), rest
    if options.command == "train" and not options.recipe.endswith(".yaml"):
        training_run(words)


@pytest.mark.parametrize(("page", "command"), documented())
def test_paths_and_targets_in_the_pages_exist(page: str, command: str) -> None:
    for path in re.findall(r"\b(?:deploy|docker|docs|requirements)/[\w./-]+", command):
        assert (REPOSITORY / path.rstrip("./")).exists() or (REPOSITORY / path).exists(), path
    for target in re.findall(r"^make (\S+)", command):
        assert re.search(rf"^{re.escape(target)}:", text_of("Makefile"), re.M), target
    for overlay in re.findall(r"overlays/([\w-]+)", command):
        assert (OVERLAYS / overlay).is_dir()
