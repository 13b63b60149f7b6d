"""What the tests of deploy/ and docker/ read them with: Kustomize, our own command line and
Ray's.
"""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml

from sppo_ray.cli.main import COMMANDS, app
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import load_config

REPOSITORY = Path(__file__).resolve().parents[3]
DEPLOY = REPOSITORY / "deploy"
OVERLAYS = DEPLOY / "kubernetes/overlays"
SHARED = "/srv/sppo-ray"
Manifest = dict[str, Any]


@cache
def _built(folder: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, and `kubectl kustomize` builds the overlays")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(overlay: str | Path) -> list[Manifest]:
    """The manifests that `kubectl apply -k` applies: of an overlay by its name, or of a folder."""
    return list(yaml.safe_load_all(_built(OVERLAYS / overlay)))


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def ray_cluster(manifests: Sequence[Manifest]) -> Manifest:
    """The one Ray cluster's specification, wherever it stands."""
    places = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
    found = []
    for manifest in manifests:
        if manifest["kind"] in places:
            spec = manifest["spec"]
            for key in places[manifest["kind"]]:
                spec = spec[key]
            found.append(spec)
    (spec,) = found
    return spec


def pod_templates(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """Every pod that an overlay starts, by its component."""
    templates = [manifest["spec"]["template"] for manifest in of_kind(manifests, "Deployment")]
    cluster = ray_cluster(manifests)
    templates += [
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


# ---------------------------------------------------------------------- commands of ours and of Ray


def parse_ours(words: Sequence[str]) -> tuple[SimpleNamespace, list[str]]:
    """(options, settings) of a command line of ours, as the program itself reads it. `words` begins
    after the program's name.
    """
    command = typer.main.get_command(app).commands[words[0]]
    options = command.make_context(words[0], list(words[1:])).params
    return SimpleNamespace(command=words[0], **options), list(options.pop("overrides", ()))


def command_names() -> set[str]:
    """The subcommands of our program."""
    return set(COMMANDS)


def training_run(words: Sequence[str]) -> RunConfig:
    """The configuration that `train ...` would run with. Raises UserError for what it would
    refuse.
    """
    options, settings = parse_ours(words)
    assert options.command == "train"
    return load_config(options.recipe, settings)


def check_ray_start(words: Sequence[str]) -> dict[str, Any]:
    """Options of a `ray start` command line as Ray itself parses them; nothing is started."""
    from ray.scripts.scripts import cli as ray_cli

    assert list(words[:2]) == ["ray", "start"], words
    context = ray_cli.commands["start"].make_context("start", copy.copy(list(words[2:])))
    return context.params


def words_of_training(entrypoint: str) -> list[str]:
    """The words after `python -m sppo_ray` of a job's entrypoint, which is a line for a shell."""
    command = entrypoint[entrypoint.index("python -m sppo_ray") :]
    return shlex.split(re.sub(r"\$\{RESUME:-\}", "--resume", command))[3:]


def text_of(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")
